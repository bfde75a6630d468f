"""An agent: starts the roles of one host, watches them, and reports; what it is to run the coordinator says.

The agent makes its host's roles what the last order says they should be. It knows by itself only one rule: if it cannot
reach the coordinator for a while, its roles end, so that none of them still writes when the others go on elsewhere.
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

from deploy.cluster.messages import MAX_EVENTS, DesiredState, Failure, Heartbeat, NumberedEvent
from deploy.cluster.role_process import AGENT_VARIABLE, RoleProcess
from deploy.topology import AcceptedRoles, Address, JobTopology, Role, role_environment
from kvstore.errors import ClusterError
from kvstore.processes import die_with_parent
from trainer.runs.events import StepEvent
from trainer.runs.folder import JOB_FILE, RunFolder

AGENT_LEASE_SECONDS = 10.0
"""Without an answer for so long, an agent ends its roles: well before the coordinator gives it up."""


POLL_SECONDS = 0.05


RETRY_SECONDS = 2.0
"""The longest pause between two attempts to reach a coordinator that is away."""


CHECKPOINT_SIGNAL = signal.SIGURG
"""What asks a worker for a checkpoint. Those who do not listen to it yet are not disturbed."""


Send = Callable[[Heartbeat], DesiredState]


class CoordinatorUnreachable(Exception):  # noqa: N818 - a state of affairs; nobody sees it as an error
    """The coordinator cannot be reached just now."""


class Agent:
    """The agent of one host. ``turn`` is called over and over; it returns within moments unless ``send`` does not."""

    def __init__(
        self,
        folder: RunFolder,
        send: Send,
        address: str,
        *,
        offers: AcceptedRoles = "all",
        identity: str | None = None,
        heartbeat_seconds: float,
        lease_seconds: float = AGENT_LEASE_SECONDS,
        notify: Callable[[str], None] = lambda _: None,
        metrics: str | None = None,
        interruption_notice: Callable[[], str | None] = lambda: None,
        checkpoints_requested: Callable[[], int] = lambda: 0,
    ) -> None:
        """Run roles in ``folder``, which listen on ``address`` and reach the others from there.

        It takes the kinds of roles that it ``offers``. Without an ``identity`` it makes one up.

        ``send`` brings a report to the coordinator and gives its order; it raises Unreachable, and after
        ``lease_seconds`` of that the roles end. ``tell`` gets what a person may want to know. At ``metrics``,
        HOST:PORT, the agent can be watched. Once ``notice`` says why the host will soon be gone, the job gives way;
        whenever ``checkpoints_requested`` has grown, it writes a checkpoint.
        """
        self.id = identity or secrets.token_hex(8)
        self.left: DesiredState | None = None
        """The order to leave, once it has come."""
        self._folder, self._send, self._address, self._tell = folder, send, address, notify
        self._offers = offers
        self.host = socket.gethostname()
        self._heartbeat_seconds, self._lease_seconds = heartbeat_seconds, lease_seconds
        self._metrics = metrics
        self._notice, self._checkpoints_requested = interruption_notice, checkpoints_requested
        self._told: tuple[str | None, int] = (None, 0)
        self._saves_asked = 0
        self._selector = selectors.DefaultSelector()
        self._processes: list[RoleProcess] = []
        self._coordinator: str | None = None
        self._generation: int | None = None
        self._ended = 0
        self._failure: Failure | None = None
        self._done: set[str] = set()
        self._asked_to_stop = False
        self._events: list[NumberedEvent] = []
        self._reports = self._event_number = 0
        self._news = True
        self._next_report = self._answered = time.monotonic()
        self._retry_seconds = 0.0

    def run_once(self) -> None:
        """See what the roles have done, report it, and obey the answer."""
        self._watch(0.0 if self._news and not self._retry_seconds else POLL_SECONDS)
        now = time.monotonic()
        self._news |= self._told != (self._notice(), self._checkpoints_requested())
        if self._processes and now - self._answered > self._lease_seconds:
            self._tell(f"no answer for {self._lease_seconds:.0f} s: ending the roles of generation {self._generation}")
            self._end()
        if now >= self._next_report or (self._news and not self._retry_seconds):
            self._send_heartbeat()

    def close(self) -> None:
        """End all roles, and tell the coordinator that this agent leaves, if it can be told."""
        self._end()
        if self._coordinator is not None:
            with suppress(CoordinatorUnreachable):
                self._send(self._report(leaving=True))
        self._selector.close()

    @property
    def has_joined(self) -> bool:
        """Whether a coordinator has answered."""
        return self._coordinator is not None

    @property
    def silent_seconds(self) -> float:
        """How long the coordinator has not answered."""
        return time.monotonic() - self._answered

    def running_roles(self) -> int:
        """How many roles run here. Any thread may ask."""
        return sum(process.process.returncode is None for process in list(self._processes))

    # ---- roles

    def _watch(self, timeout_seconds: float) -> None:
        """Wait for the roles to say something, or to end."""
        for key, _ in self._selector.select(timeout_seconds):
            self._read(key.data)
            if key.data.process.poll() is not None:
                self._selector.unregister(key.fileobj)
        for process in self._processes:
            if self._failure is None and (process.error or process.process.poll() not in {None, 0}):
                self._read(process)
                self._failure, self._news = process.failure(), True
            elif process.process.poll() == 0 and process.role.name not in self._done:
                self._read(process)
                self._done.add(process.role.name)
                self._news = True

    def _read(self, process: RoleProcess) -> None:
        assert self._generation is not None
        for event in process.read_events():
            step = isinstance(event, StepEvent)
            if step and self._events and isinstance(self._events[-1].event, StepEvent):
                self._events.pop()  # only the newest matters: so what waits for a coordinator that is away stays short
            self._event_number += 1
            sent = NumberedEvent(
                number=self._event_number, generation=self._generation, role=process.role.name, event=event
            )
            self._events.append(sent)
            self._news |= not step

    def _begin(self, order: DesiredState) -> None:
        assert order.scheduler is not None
        self._generation, self._failure, self._done, self._asked_to_stop = order.generation, None, set(), False
        self._saves_asked = order.checkpoints_requested
        self._tell(f"generation {order.generation}: {', '.join(order.roles) or 'no roles'} (logs: {self._folder.logs})")
        roles = [Role.from_name(name) for name in order.roles]
        scheduler = Address(order.scheduler.host, order.scheduler.port)
        workers_here = sum(role.kind == "worker" for role in roles)
        around = JobTopology(scheduler, self._address, order.servers, order.workers, workers_here, order.rendezvous)
        cores = len(os.sched_getaffinity(0))
        try:
            self._check_job(order)
            self._folder.logs.mkdir(exist_ok=True)
            for role in roles:
                process = RoleProcess(role, self._folder, order, role_environment(role, around, cores))
                self._processes.append(process)
                self._selector.register(process.pipe, selectors.EVENT_READ, process)
        except (OSError, ClusterError) as error:
            self._failure = Failure(message=f"the roles on {self.host} could not be started: {error}")

    def _check_job(self, order: DesiredState) -> None:
        path = self._folder.path / JOB_FILE
        if order.job and job_digest(self._folder) != order.job:
            raise ClusterError(
                f"{path} is not the job that the coordinator runs; --run-dir must be the run's folder, "
                "on a file system that all hosts share (cluster.shared_run_dir)"
            )

    def _end(self) -> None:
        """Kill what still runs of this generation, and wait until it has ended."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            if process.pipe in self._selector.get_map():
                self._selector.unregister(process.pipe)
            process.wait()
        self._processes = []
        if self._generation is not None:
            self._ended = max(self._ended, self._generation)
            self._generation, self._failure, self._done, self._news = None, None, set(), True

    # ---- the coordinator

    def _send_heartbeat(self) -> None:
        sent = time.monotonic()
        self._news = False
        try:
            order = self._send(self._report())
        except CoordinatorUnreachable as error:
            if not self._retry_seconds:
                self._tell(f"{error}; trying again until it answers")
            self._retry_seconds = min(max(0.2, 2 * self._retry_seconds), RETRY_SECONDS)
            self._next_report = time.monotonic() + self._retry_seconds * random.uniform(0.5, 1.0)  # noqa: S311
            self._news = True
            return
        # The lease counts from when the answered report was sent: the coordinator's begins later, if anything.
        self._answered, self._next_report, self._retry_seconds = sent, sent + self._heartbeat_seconds, 0.0
        self._apply(order)

    def _report(self, *, leaving: bool = False) -> Heartbeat:
        self._reports += 1
        self._told = interruption_notice, checkpoints_requested = self._notice(), self._checkpoints_requested()
        return Heartbeat(
            agent=self.id,
            host=self.host,
            address=self._address,
            accepted_roles=self._offers,
            number=self._reports,
            coordinator=self._coordinator,
            generation=self._generation,
            ended=self._ended,
            roles={p.role.name: "done" if p.role.name in self._done else "running" for p in self._processes},
            events=self._events[:MAX_EVENTS],
            failure=self._failure,
            metrics=self._metrics,
            leaving=leaving,
            notice=interruption_notice,
            checkpoints_requested=checkpoints_requested,
        )

    def _apply(self, order: DesiredState) -> None:
        if order.do == "leave":
            self._end()
            self.left = order
            return
        if order.coordinator != self._coordinator:
            # What ran was the earlier one's; generations are counted anew.
            self._end()
            self._folder.write_role_files(order.files)
            self._coordinator, self._ended, self._events, self._news = order.coordinator, 0, [], True
            self._tell("joined the coordinator")
            return
        self._events = [event for event in self._events if event.number > order.acknowledged]
        if self._generation is not None and (order.do == "wait" or order.generation != self._generation):
            self._tell(f"generation {self._generation} has ended")
            self._end()
        if order.do == "run" and self._generation is None and order.generation > self._ended:
            self._begin(order)
            self._news = True
        if order.do == "stop" and not self._asked_to_stop:
            self._asked_to_stop = True
            self._signal_workers(signal.SIGTERM)
        if order.do == "run" and order.checkpoints_requested > self._saves_asked:
            self._saves_asked = order.checkpoints_requested
            self._signal_workers(CHECKPOINT_SIGNAL)

    def _signal_workers(self, number: signal.Signals) -> None:
        for process in self._processes:
            if process.role.kind == "worker" and process.process.poll() is None:
                process.process.send_signal(number)


def job_digest(folder: RunFolder) -> str:
    """SHA-256 of the job file of a run, by which hosts see that they have the same folder.

    Raises:
        ClusterError: it cannot be read.
    """
    path = folder.path / JOB_FILE
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ClusterError(f"{path} cannot be read: {error.strerror}") from error


def die_with_agent() -> bool:
    """In a role that an agent started: see to it that this process dies with the agent, however that dies.

    Whether it was an agent that started it.
    """
    agent = os.environ.get(AGENT_VARIABLE)
    if agent is not None:
        die_with_parent(int(agent))
    return agent is not None
