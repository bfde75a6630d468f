"""Roles of a distributed job whose workers run a script of a test's own instead of a training run.

The test calls ``running_roles``, which starts the script once for each role. The script calls ``play_role`` with what a
worker does; the scheduler and the servers are the product's own. A worker and its test talk in JSON lines through the
worker's standard input and output.
"""

import json
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import psutil
from running_command import Mark

from deploy.topology import JobTopology, role_environment, roles, scheduler_address
from kvstore.mxnet.client import MXNetStore
from kvstore.mxnet.server import run_role
from trainer.config.run_sections import ClusterConfig

END_SECONDS = 60.0


def play_role(work: Callable[[MXNetStore], None], key_bytes: int) -> None:
    """In the script: be the role that the environment names. An error ends the process at once."""
    try:
        if os.environ["DMLC_ROLE"] == "worker":
            store = MXNetStore(key_bytes)
            work(store)
            store.close()
        else:
            run_role(_fail)
    except Exception as error:
        _fail(error)


def _fail(error: BaseException) -> NoReturn:
    traceback.print_exception(error)
    sys.stderr.flush()
    os._exit(1)


def tell(**values: Any) -> None:
    """In a worker: send a line to the test."""
    print(json.dumps(values), flush=True)


def tell_and_wait(**values: Any) -> None:
    """In a worker: send a line, and return when the test says so."""
    tell(**values)
    if not sys.stdin.readline():
        raise EOFError("the test has gone")


class RunningRole:
    """One role of a script, started by a test."""

    def __init__(self, name: str, process: "subprocess.Popen[str]", log: Path) -> None:
        self.name = name
        self.pid = process.pid
        self.log = log
        self._process = process

    def hear(self) -> dict[str, Any]:
        """The next line that a worker tells; its log, if it ended instead."""
        line = self._process.stdout.readline()
        assert line, f"{self.name} ended: {self.log.read_text()}"
        heard: dict[str, Any] = json.loads(line)
        return heard

    def go_on(self) -> None:
        """Let a worker that waits go on."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def exit_code(self) -> int:
        """Wait for its end."""
        return self._process.wait(END_SECONDS)

    def release(self) -> None:
        """Close the pipes, once it has ended."""
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            pipe.close()


class RunningRoles:
    """All roles of a script."""

    def __init__(self, mark: Mark, all_roles: list[RunningRole]) -> None:
        self.mark = mark
        self.all = all_roles

    @property
    def workers(self) -> list[RunningRole]:
        """The workers, in the order in which they were started: their ranks may be others."""
        return [role for role in self.all if role.name.startswith("worker")]

    def exit_codes(self) -> dict[str, int]:
        """Wait for the end of all."""
        return {role.name: role.exit_code() for role in self.all}

    def logs(self) -> str:
        """What all have said on stderr."""
        return "\n".join(f"{role.name}: {role.log.read_text()}" for role in self.all)

    def left_running(self) -> list[psutil.Process]:
        """Processes that are still there."""
        return self.mark.processes()


@contextmanager
def running_roles(
    script: str,
    *arguments: object,
    servers: int,
    workers: int,
    folder: Path,
    variables: Mapping[str, str] | None = None,
    seconds: float = 180.0,
) -> Iterator[RunningRoles]:
    """Run ``tests/SCRIPT`` in every role; whatever is left at the end, or after ``seconds``, is killed."""
    cluster = ClusterConfig(servers=servers, workers=workers)
    scheduler = scheduler_address(cluster)
    around = JobTopology(scheduler, scheduler.host, servers, workers, workers_here=workers)
    cores = len(os.sched_getaffinity(0))
    mark = Mark()
    running: list[RunningRole] = []
    guard = threading.Timer(seconds, mark.kill)
    guard.start()
    try:
        for role in roles(cluster):
            log = folder / f"{role.name}.log"
            with log.open("w") as stderr:
                process = subprocess.Popen(
                    [sys.executable, Path(__file__).with_name(script), *map(str, arguments)],
                    cwd=folder,
                    env=mark.environment({**role_environment(role, around, cores), **(variables or {})}),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    text=True,
                )
            running.append(RunningRole(role.name, process, log))
        yield RunningRoles(mark, running)
    finally:
        guard.cancel()
        mark.kill()
        for role in running:
            role.release()
