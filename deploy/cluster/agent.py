"""The agent of a host: runs roles as the coordinator requires, and reports their state.

    with closing(Agent(folder, remote.send_heartbeat, "10.0.0.2", heartbeat_seconds=1.0)) as agent:
        while agent.final_state is None:
            agent.run_once()

The agent makes its host's roles match the newest desired state. It acts on its own in one case: if it cannot reach the
coordinator for the length of its lease, it ends its roles, so that none of them still writes when the others start
again elsewhere.
"""

from __future__ import annotations

import hashlib
import os
import random
import secrets
import selectors
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from crossfade.base.errors import ClusterError, Option
from crossfade.base.machine import usable_cores
from crossfade.deploy.cluster.messages import MAX_EVENTS, DesiredState, Endpoint, Failure, Heartbeat, NumberedEvent
from crossfade.deploy.cluster.role_environment import role_environment, socket_number
from crossfade.deploy.cluster.role_process import RoleProcess
from crossfade.deploy.cluster.role_variables import RoleCredentials
from crossfade.deploy.topology import AcceptedRoles, Role
from crossfade.kvstore.mxnet.ports import SOCKET_FOLDER
from crossfade.trainer.runs.events import PhaseEvent, StepEvent
from crossfade.trainer.runs.run_folder import JOB_FILE, RunFolder

AGENT_LEASE_SECONDS = 10.0
"""Time without an answer after which an agent ends its roles: less than the coordinator's lease for it."""
POLL_SECONDS = 0.05
MAX_RETRY_SECONDS = 2.0
"""Maximum pause between two attempts to reach a coordinator that does not answer."""

SendHeartbeat = Callable[[Heartbeat], DesiredState]


class CoordinatorUnreachable(Exception):  # noqa: N818 - expected now and then, and retried
    """The coordinator did not answer."""


class Agent:
    """The agent of one host. Call ``run_once`` repeatedly: it blocks only in ``send``."""

    def __init__(
        self,
        folder: RunFolder,
        send: SendHeartbeat,
        address: str,
        *,
        accepted_roles: AcceptedRoles = "all",
        identity: str | None = None,
        heartbeat_seconds: float,
        lease_seconds: float = AGENT_LEASE_SECONDS,
        notify: Callable[[str], None] = lambda _: None,
        metrics_address: str | None = None,
        interruption_notice: Callable[[], str | None] = lambda: None,
    ) -> None:
        """Run roles.

        Args:
            folder: the run folder, where the roles log.
            send: sends a heartbeat and returns the desired state, or raises CoordinatorUnreachable.
            address: where roles listen, and from where they reach the others.
            accepted_roles: the kinds of roles that the host accepts.
            identity: the agent's ID; by default a new random one.
            heartbeat_seconds: the pause between heartbeats when there is nothing new.
            lease_seconds: how long the coordinator may not answer before the roles end.
            notify: receives lines about joining, generations and outages, for the user.
            metrics_address: where the agent's own metrics can be scraped, HOST:PORT.
            interruption_notice: returns why the host is about to be reclaimed, once it is; the job then drains.
        """
        self.id, self.host = identity or secrets.token_hex(8), socket.gethostname()
        self.final_state: DesiredState | None = None
        """The desired state ``leave``, once it has arrived: the agent must end."""
        self._folder, self._send, self._address = folder, send, address
        self._accepted_roles, self._metrics_address, self._notify = accepted_roles, metrics_address, notify
        self._heartbeat_seconds, self._lease_seconds = heartbeat_seconds, lease_seconds
        self._interruption_notice = interruption_notice
        self._reported_notice: str | None = None
        self._selector = selectors.DefaultSelector()
        self._processes: list[RoleProcess] = []
        self._coordinator: str | None = None
        self._earlier_coordinators: set[str] = set()
        self._generation: int | None = None
        self._failure: Failure | None = None
        self._done: set[str] = set()
        self._ended_generation, self._stop_requested = 0, False
        self._events: list[NumberedEvent] = []
        self._heartbeat_number, self._event_number, self._has_news = 0, 0, True
        self._next_heartbeat = self._answered_at = time.monotonic()
        self._retry_seconds = 0.0

    def run_once(self) -> None:
        """Observe the roles, send a heartbeat if one is due, and apply the answer."""
        self._observe_roles(0.0 if self._has_news and not self._retry_seconds else POLL_SECONDS)
        now = time.monotonic()
        self._has_news |= self._reported_notice != self._interruption_notice()
        if self._processes and now - self._answered_at > self._lease_seconds:
            self._notify(
                f"no answer for {self._lease_seconds:.0f} s: ending the roles of generation {self._generation}"
            )
            self._end_roles()
        if now >= self._next_heartbeat or (self._has_news and not self._retry_seconds):
            self._send_heartbeat()

    def close(self) -> None:
        """End all roles, and report to the coordinator, if it can be reached, that this agent leaves."""
        self._end_roles()
        if self._coordinator is not None:
            with suppress(CoordinatorUnreachable):
                self._send(self._heartbeat(leaving=True))
        self._selector.close()

    @property
    def has_joined(self) -> bool:
        """Whether a coordinator has answered."""
        return self._coordinator is not None

    @property
    def silent_seconds(self) -> float:
        """Seconds since the last heartbeat that the coordinator answered."""
        return time.monotonic() - self._answered_at

    # ---- roles

    def _observe_roles(self, timeout_seconds: float) -> None:
        """Read events, and note roles that failed or are done; wait ``timeout_seconds`` if nothing happens."""
        for key, _ in self._selector.select(timeout_seconds):
            self._read_events(key.data)
            if key.data.process.poll() is not None:
                self._selector.unregister(key.fileobj)
        for process in self._processes:
            if self._failure is None and (process.error or process.process.poll() not in {None, 0}):
                self._read_events(process)
                self._failure, self._has_news = process.failure(), True
            elif process.process.poll() == 0 and process.role.name not in self._done:
                self._read_events(process)
                self._done.add(process.role.name)
                self._has_news = True

    def _read_events(self, process: RoleProcess) -> None:
        assert self._generation is not None
        for event in process.read_events():
            is_step = isinstance(event, StepEvent)
            if is_step and self._events and isinstance(self._events[-1].event, StepEvent):
                self._events.pop()  # only the newest matters: the queue for an absent coordinator stays short
            self._event_number += 1
            self._events.append(
                NumberedEvent(
                    number=self._event_number, generation=self._generation, role=process.role.name, event=event
                )
            )
            self._has_news |= not is_step
            if isinstance(event, PhaseEvent) and event.name == "training":
                for each in self._processes:  # all are connected: from now on nobody else can connect
                    each.remove_socket()

    def _start_roles(self, desired: DesiredState) -> None:
        self._generation, self._failure, self._done, self._stop_requested = desired.generation, None, set(), False
        names = ", ".join(desired.roles) or "no roles"
        self._notify(f"generation {desired.generation}: {names} (logs: {self._folder.logs})")
        scheduler = desired.scheduler
        # On one host, MXNet's roles connect by Unix sockets, which ps-lite has.
        on_one_host = (
            scheduler is not None and set(desired.hosts) == {self._address} and os.access(SOCKET_FOLDER, os.W_OK)
        )
        if scheduler is not None and on_one_host:
            desired = desired.model_copy(update={"scheduler": Endpoint(host=scheduler.host, port=socket_number())})
        # Horovod takes the rendezvous from the environment.
        rendezvous = desired.rendezvous if scheduler is None else None
        credentials = RoleCredentials(desired.secret, [] if on_one_host else desired.hosts, rendezvous)
        cores = usable_cores()
        try:
            self._check_job(desired)
            self._folder.logs.mkdir(exist_ok=True)
            for role in map(Role.from_name, desired.roles):
                variables = role_environment(role, desired, self._address, cores, on_one_host=on_one_host)
                process = RoleProcess(role, self._folder, desired, variables, credentials)
                self._processes.append(process)
                self._selector.register(process.pipe, selectors.EVENT_READ, process)
        except (OSError, ClusterError) as error:
            self._failure = Failure(message=f"the roles on {self.host} could not be started: {error}")
            self._notify(self._failure.message)

    def _check_job(self, desired: DesiredState) -> None:
        path = self._folder.path / JOB_FILE
        if desired.job_digest and job_digest(self._folder) != desired.job_digest:
            raise ClusterError(
                f"{path} is not the job that the coordinator runs; ",
                Option("run_dir"),
                " must be the run's folder, on a file system that all hosts share (cluster.shared_run_dir)",
            )

    def _end_roles(self) -> None:
        """Kill the roles of this generation that still run, and wait until they have ended."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            if process.pipe in self._selector.get_map():
                self._selector.unregister(process.pipe)
            process.wait()
        self._processes = []
        if self._generation is not None:
            self._ended_generation = max(self._ended_generation, self._generation)
            self._generation, self._failure, self._done, self._has_news = None, None, set(), True

    # ---- the coordinator

    def _send_heartbeat(self) -> None:
        sent_at = time.monotonic()
        self._has_news = False
        try:
            desired = self._send(self._heartbeat())
            if desired.coordinator in self._earlier_coordinators:
                raise CoordinatorUnreachable("an earlier coordinator answers, which another one has replaced")
        except CoordinatorUnreachable as error:
            if not self._retry_seconds:
                self._notify(f"{error}; trying again until it answers")
            self._retry_seconds = min(max(0.2, 2 * self._retry_seconds), MAX_RETRY_SECONDS)
            self._next_heartbeat = time.monotonic() + self._retry_seconds * random.uniform(0.5, 1.0)  # noqa: S311
            self._has_news = True
            return
        # The lease counts from when the answered heartbeat was sent: the coordinator's begins then or later.
        self._answered_at, self._next_heartbeat, self._retry_seconds = sent_at, sent_at + self._heartbeat_seconds, 0.0
        self._apply(desired)

    def _heartbeat(self, *, leaving: bool = False) -> Heartbeat:
        self._heartbeat_number += 1
        self._reported_notice = self._interruption_notice()
        return Heartbeat(
            agent=self.id,
            host=self.host,
            address=self._address,
            accepted_roles=self._accepted_roles,
            number=self._heartbeat_number,
            coordinator=self._coordinator,
            generation=self._generation,
            ended_generation=self._ended_generation,
            roles={p.role.name: "done" if p.role.name in self._done else "running" for p in self._processes},
            events=self._events[:MAX_EVENTS],
            failure=self._failure,
            metrics_address=self._metrics_address,
            leaving=leaving,
            interruption_notice=self._reported_notice,
        )

    def _apply(self, desired: DesiredState) -> None:
        """Make the roles match ``desired``."""
        if desired.action == "leave":
            self._end_roles()
            self.final_state = desired
            return
        if desired.coordinator != self._coordinator:
            self._join(desired)
            return
        self._events = [event for event in self._events if event.number > desired.acknowledged_event]
        if self._generation is not None and (desired.action == "wait" or desired.generation != self._generation):
            self._notify(f"generation {self._generation} has ended")
            self._end_roles()
        if desired.action == "run" and self._generation is None and desired.generation > self._ended_generation:
            self._start_roles(desired)
            self._has_news = True
        if desired.action == "stop" and not self._stop_requested:
            self._stop_requested = True
            for process in self._processes:
                if process.role.kind == "worker" and process.process.poll() is None:
                    process.process.send_signal(signal.SIGTERM)

    def _join(self, desired: DesiredState) -> None:
        """Join the coordinator that sent ``desired``: it counts generations and events anew."""
        self._end_roles()
        self._folder.write_role_files(desired.files)
        if self._coordinator is not None:
            self._earlier_coordinators.add(self._coordinator)
        self._coordinator = desired.coordinator
        self._ended_generation, self._events, self._has_news = 0, [], True
        self._notify("joined the coordinator")


def job_digest(folder: RunFolder) -> str:
    """Return the SHA-256 of a run's job file, by which hosts check that they share a folder.

    Raises:
        ClusterError: the file cannot be read.
    """
    path = folder.path / JOB_FILE
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ClusterError(f"{path}: cannot be read: {error.strerror}") from error
