"""Starts the roles of a job on this host and watches them: when one fails, all end, with its error.

MXNet has no failover: a dead worker or server makes the others wait for ever. So nothing here waits for them to
notice. The first process that raises or dies ends the rest within seconds, and its error is the job's.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from deploy.cluster import Address, Role, environment, roles
from deploy.events import EVENTS_VARIABLE, EventLines
from kvstore.errors import ClusterError, InputError
from kvstore.processes import die_with_parent
from trainer.job import Cluster
from trainer.run import RunFolder

AGENT_VARIABLE = "CROSSFADE_AGENT_PID"
POLL_SECONDS = 0.05
LAST_WORDS_SECONDS = 1.0
TERMINATE_SECONDS = 5.0
LINGER_SECONDS = 30.0
"""How long the other roles may take to end once one has ended well."""
_LOG_TAIL_LINES = 20
_NOT_FROM_HERE = ["-P"]
"""Python's option to import nothing from the current folder, which may have a trainer/ of its own."""

Emit = Callable[[dict[str, Any]], None]


class RoleProcess:
    """One running role: its process, its log and what it has told."""

    def __init__(self, role: Role, folder: RunFolder, variables: dict[str, str]) -> None:
        """Start it. It leads a session of its own, so that a terminal's Ctrl-C reaches the agent alone."""
        self.role = role
        self.log = folder.logs / f"{role.name}.log"
        self.error: dict[str, Any] | None = None
        self._lines = EventLines()
        self.pipe, theirs = os.pipe()
        os.set_blocking(self.pipe, False)
        try:
            with self.log.open("wb") as log:
                self.process = subprocess.Popen(  # noqa: S603 - our own command
                    [sys.executable, *_NOT_FROM_HERE, "-m", "crossfade", role.kind, "--run-dir", str(folder.path)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**variables, EVENTS_VARIABLE: str(theirs), AGENT_VARIABLE: str(os.getpid())},
                    pass_fds=[theirs],
                    start_new_session=True,
                )
        finally:
            os.close(theirs)

    def read_events(self) -> list[dict[str, Any]]:
        """What it has told since; an error is kept."""
        events = []
        while True:
            try:
                data = os.read(self.pipe, 1 << 16)
            except BlockingIOError:
                break
            if not data:
                break
            events += self._lines.feed(data)
        for event in events:
            if event["event"] == "error":
                self.error = self.error or event
        return [event for event in events if event["event"] != "error"]

    def failure(self) -> Exception:
        """What its end means, with the error that it reported or, failing that, the end of its log."""
        if self.error is not None:
            kind = InputError if self.error["exit_code"] == InputError.exit_code else ClusterError
            return kind(f"{self.role.name}: {self.error['message']} (log: {self.log})")
        code = self.process.returncode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        with self.log.open("rb") as log:
            tail = b" | ".join(line.strip() for line in deque(log, _LOG_TAIL_LINES) if line.strip())
        said = f"; its log ends: {tail.decode('utf-8', errors='replace')}" if tail else ""
        return ClusterError(f"{self.role.name} {how} before the job was done{said} (log: {self.log})")


def run_cluster(cluster: Cluster, scheduler: Address, folder: RunFolder, emit: Emit) -> None:
    """Run all roles of a job on this host until it is done; ``emit`` gets what the first worker tells.

    Raises:
        InputError: a role found the input wrong.
        ClusterError: a role raised or died. Whatever is raised, all processes have ended by then.
    """
    folder.logs.mkdir(exist_ok=True)
    with _started(cluster, folder, scheduler) as processes, selectors.DefaultSelector() as selector:
        for process in processes:
            selector.register(process.pipe, selectors.EVENT_READ, process)
        _watch(processes, selector, emit)


@contextmanager
def _started(cluster: Cluster, folder: RunFolder, scheduler: Address) -> Iterator[list[RoleProcess]]:
    processes: list[RoleProcess] = []
    cores = len(os.sched_getaffinity(0))
    try:
        for role in roles(cluster):
            processes.append(RoleProcess(role, folder, environment(cluster, role, scheduler, cores)))
        yield processes
    finally:
        _end(processes)
        for process in processes:
            os.close(process.pipe)


def _watch(processes: list[RoleProcess], selector: selectors.BaseSelector, emit: Emit) -> None:
    """Return when all have ended well; raise when one has not.

    MXNet lets nobody leave before all workers have called their last barrier, so once one has left, the job is done
    and the others follow soon.
    """
    deadline = float("inf")
    running = True
    while running:
        # Asked before the look at each, so that whoever ends after it is looked at once more.
        running = any(process.process.poll() is None for process in processes)
        _read(selector, POLL_SECONDS if running else 0, emit)
        for process in processes:
            code = process.process.poll()
            if process.error or code not in (None, 0):
                _read_last_words(process, selector, emit)
                raise process.failure()
            if code == 0:
                deadline = min(deadline, time.monotonic() + LINGER_SECONDS)
        if time.monotonic() > deadline:
            lingering = ", ".join(p.role.name for p in processes if p.process.poll() is None)
            raise ClusterError(f"the job is done, but {lingering} did not end within {LINGER_SECONDS:.0f} s")


def _read(selector: selectors.BaseSelector, timeout_seconds: float, emit: Emit) -> None:
    for key, _ in selector.select(timeout_seconds):
        events = key.data.read_events()
        for event in events:
            emit(event)
        if not events and key.data.process.poll() is not None:
            selector.unregister(key.fileobj)


def _read_last_words(process: RoleProcess, selector: selectors.BaseSelector, emit: Emit) -> None:
    """Let a failed process say why and end, for a moment."""
    deadline = time.monotonic() + LAST_WORDS_SECONDS
    while (process.error is None or process.process.poll() is None) and time.monotonic() < deadline:
        if process.process.poll() is not None:
            _read(selector, 0, emit)
            break
        _read(selector, POLL_SECONDS, emit)


def _end(processes: list[RoleProcess]) -> None:
    """End whoever still runs: by SIGTERM, and after a grace by SIGKILL."""
    for process in processes:
        if process.process.poll() is None:
            process.process.terminate()
    deadline = time.monotonic() + TERMINATE_SECONDS
    for process in processes:
        try:
            process.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.process.kill()
            process.process.wait()


def die_with_agent() -> None:
    """In a role that an agent started: ask the kernel to kill this process when the agent dies, however it dies.

    Linux only; elsewhere a killed agent leaves its roles to be ended by hand.
    """
    agent = os.environ.get(AGENT_VARIABLE)
    if agent is not None:
        die_with_parent(int(agent))
