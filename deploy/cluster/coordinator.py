"""Which generation of a job runs, where, and what follows when it ends: a state machine without input and output.

    waiting ──► preparing ──► running ──► done            (waiting: for enough agents; preparing: port and checkpoint)
       ▲                       │ │  └───► stopping ──► stopped
       │                       │ └──► giving way          (a host will soon be gone: a checkpoint first)
       │                       ▼          │
    backing off ◄────────── ending ◄──────┘
                               └────► failed

MXNet has no failover, so whatever dies or falls silent ends the generation everywhere, and the next one starts from
the newest whole checkpoint. Agents report and get orders (``reports.py``); the owner calls ``tick`` now and then, finds
what a generation starts from while the state is ``preparing``, and shows the events. Only a monotonic clock is read.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from deploy.aws.spot import INTERRUPTED_EXIT_CODE, NOTICE_SECONDS
from deploy.cluster.messages import Action, DesiredState, Endpoint, Failure, Heartbeat, NumberedEvent, RoleState
from deploy.topology import AcceptedRoles, Address, Role, assign_roles, missing_hosts, roles
from kvstore.errors import ClusterError, CrossfadeError, InputError
from trainer.config.run_sections import ClusterConfig
from trainer.runs.events import (
    BackoffEvent,
    CheckpointSaved,
    EpochEvent,
    Event,
    HostsMissing,
    InterruptionNotice,
    LoadEvent,
    MetricsAddress,
    PhaseEvent,
    RestartEvent,
    ResumeEvent,
    StepEvent,
    StoppedEvent,
    WaitingForHosts,
)
from trainer.training.checkpointing import StopResult

LEASE_SECONDS = 15.0
"""How long an agent may be silent. Longer than an agent waits before it ends its roles, as it must be."""
EXIT_TIMEOUT_SECONDS = 30.0
"""How long the other roles may take to end once one has ended well."""
MAX_BACKOFF_SECONDS = 60.0
_PROGRESS = (StepEvent, EpochEvent, PhaseEvent, CheckpointSaved)
_STOPPED_EXIT_CODE = 143


class State(StrEnum):
    """Where the job stands."""

    WAITING = "waiting"
    PREPARING = "preparing"
    RUNNING = "running"
    STOPPING = "stopping"
    DRAINING = "draining"
    TERMINATING = "terminating"
    BACKOFF = "backing_off"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"


FINISHED = (State.DONE, State.FAILED, State.STOPPED)
_LIVE = (State.RUNNING, State.STOPPING, State.DRAINING)


@dataclass(frozen=True)
class GenerationSpec:
    """What a generation starts from."""

    scheduler: Address
    checkpoint: str | None = None
    step: int = 0
    skipped: Sequence[str] = ()
    """Why newer checkpoints than this one were not taken."""
    rendezvous: str | None = None
    """Where its workers meet for Horovod, if they do."""


@dataclass
class Restart:
    """That a generation was started because the one before had ended, and how long nothing was trained."""

    generation: int
    cause: str
    step: int
    seconds: float = 0.0


@dataclass
class _Member:
    """An agent, as it was last heard of."""

    id: str
    host: str
    address: str
    offers: AcceptedRoles
    seen: float
    reports: int = 0
    metrics: str | None = None
    events: int = 0
    checkpoints_requested: int = 0
    notice: str | None = None
    roles: dict[str, RoleState] = field(default_factory=dict)
    clear: bool = True
    """Whether it has said, since the generation was to end, that it runs nothing of it."""


class Coordinator:
    """The state machine. Its methods may be called from several threads."""

    def __init__(
        self,
        cluster: ClusterConfig,
        *,
        job: str = "",
        files: dict[str, str] | None = None,
        started_before: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Coordinate a job on ``cluster``; by ``job``, the SHA-256 of its file, hosts see that they share it.

        Hosts that share no folder get ``files`` when they join: the text of each by its name in the run folder.
        ``begun``: roles of it ran before, under another coordinator, so that hosts that are missing may be lost.
        """
        self.id = secrets.token_hex(8)
        self.local_agent = secrets.token_hex(8)
        """The id for the agent in this process, which gets the scheduler and has no lease."""
        self.state = State.WAITING
        self.generation = 0
        self.refused: frozenset[str] = frozenset()
        self.restarts: list[Restart] = []
        self.message = ""
        """How the job was stopped."""
        self._cluster, self._job, self._files, self._clock = cluster, job, files or {}, clock
        self._lock = threading.RLock()
        self._members: dict[str, _Member] = {}
        self._begun = started_before
        self._changed_at = clock()
        """When a host last came or went."""
        self._gone: set[str] = set()
        self._dealt: dict[str, list[Role]] = {}
        self._metrics: dict[str, str] = {}
        self._loads: dict[str, dict[str, Any]] = {}
        self._placed: dict[str, str] = {}
        self._start = GenerationSpec(Address("", 0))
        self._next = State.BACKOFF
        self._error: Failure | None = None
        self._cause: str | None = None
        self._restarts_without_checkpoint = 0
        self._down_since: float | None = None
        self._step = 0
        self._trained = False
        self._saved_step = 0
        self._stopped: StopResult | None = None
        self._checkpoints_requested = 0
        self._interruption: str | None = None
        self._deadline = float("inf")
        self._progress_at = clock()
        self._events: list[Event] = []

    def report(self, report: Heartbeat) -> DesiredState:
        """Take an agent's report, and answer what it is to do."""
        with self._lock:
            if refusal := self._refusal(report):
                return DesiredState(coordinator=self.id, do="leave", exit_code=1, message=refusal)
            if report.coordinator != self.id:
                # It has heard of another coordinator, or of none: what it runs it ends first, and joins then.
                return DesiredState(
                    coordinator=self.id, do="wait", files={} if report.agent == self.local_agent else self._files
                )
            member = self._members.get(report.agent) or self._join(report)
            if report.number > member.reports:
                self._apply_report(member, report)
            self._advance()
            return self._order(member)

    def tick(self) -> None:
        """See what time has changed."""
        with self._lock:
            now = self._clock()
            for member in list(self._members.values()):
                if member.id != self.local_agent and now - member.seen > LEASE_SECONDS:
                    self._remove_member(member, f"was not heard of for {LEASE_SECONDS:.0f} s")
            if self.state is State.RUNNING and now - self._progress_at > self._cluster.stall_timeout_seconds:
                self._fail(Failure(message=f"no sign of progress for {self._cluster.stall_timeout_seconds:g} s"))
            if self.state in _LIVE and now > self._deadline:
                self._pass_deadline()
            self._advance()

    def start_generation(self, start: GenerationSpec) -> None:
        """Start the next generation from ``start``, unless the job no longer wants one."""
        with self._lock:
            if self.state is not State.PREPARING:
                return
            if not self._can_begin():
                self.state = State.WAITING
                return
            if start.step > self._start.step:
                self._restarts_without_checkpoint = min(self._restarts_without_checkpoint, 1)
            now = self._clock()
            self.generation += 1
            self._tell_start(start)
            if missing := missing_hosts(self._cluster, self._offers()):
                self._events.append(HostsMissing(hosts=missing))
            self.state, self._start = State.RUNNING, start
            self._saved_step, self._step, self._trained = start.step, start.step, False
            self._stopped, self._deadline, self._progress_at = None, float("inf"), now
            self._begun = True
            self._dealt, self._metrics, self._loads = assign_roles(self._cluster, self._offers()), {}, {}
            self._placed = {
                role.name: self._members[agent].host for agent, dealt in self._dealt.items() for role in dealt
            }
            for member in self._members.values():
                member.roles = {}

    def start_failed(self, error: Exception) -> None:
        """Take it that no start could be found: try again later, unless the input is wrong."""
        with self._lock:
            if self.state is State.PREPARING:
                permanent = isinstance(error, InputError)
                code = InputError.exit_code if permanent else 1
                self._fail(Failure(message=str(error), exit_code=code, restart=not permanent))
                self._advance()

    def stop(self) -> None:
        """Let the workers write a checkpoint and end; end everything if they do not within the job's grace."""
        with self._lock:
            if self.state is State.DRAINING or (self.state is State.RUNNING and self._trained):
                self.state = State.STOPPING
                self._deadline = self._clock() + self._grace_seconds()
            elif self.state is State.RUNNING:
                self._end(State.STOPPED, "before it took a step, so without a new checkpoint")
            elif self.state is State.TERMINATING and self._next is State.BACKOFF:
                self._next, self.message = State.STOPPED, f"after {self._cause}"
            elif self.state in {State.WAITING, State.PREPARING, State.BACKOFF}:
                self.state, self.message = State.STOPPED, "while nothing ran"
            self._advance()

    def interruption(self) -> str | None:
        """Why this host will soon be gone; None as long as nothing says so."""
        with self._lock:
            return self._interruption

    def take_events(self) -> list[Event]:
        """What happened since the last call, in order: the roles' events, and restarts."""
        with self._lock:
            events, self._events = self._events, []
            return events

    def remote_hosts(self) -> list[str]:
        """The hosts, beside this one, whose agents have not left."""
        with self._lock:
            return [member.host for member in self._members.values() if member.id != self.local_agent]

    def error(self) -> CrossfadeError:
        """Why the job failed."""
        assert self._error is not None
        kind = InputError if self._error.exit_code == InputError.exit_code else ClusterError
        return kind(self._error.explain())

    def status(self) -> dict[str, Any]:
        """What ``/v1/status`` answers."""
        with self._lock:
            now = self._clock()
            return {
                "state": self.state.value,
                "generation": self.generation,
                "step": self._step,
                "checkpoint_step": self._saved_step,
                "restarts": [vars(restart) for restart in self.restarts],
                "agents": [
                    {
                        "host": member.host,
                        "address": member.address,
                        "offers": member.offers,
                        "seen_seconds_ago": round(now - member.seen, 3),
                        "roles": member.roles,
                    }
                    for member in self._members.values()
                ],
            }

    def scrape_targets(self) -> list[tuple[str, str, str]]:
        """Where other hosts' agents, and the roles of this generation, can be scraped: process, host and HOST:PORT."""
        with self._lock:
            found = [("agent", member.host, member.metrics) for member in self._members.values() if member.metrics]
            for agent, dealt in self._dealt.items():
                host = self._members[agent].host if agent in self._members else ""
                found += [(role.name, host, self._metrics[role.name]) for role in dealt if role.name in self._metrics]
            return found

    def processes(self) -> dict[str, dict[str, Any]]:
        """Each role of the job: whether it runs, where, and what it has told last of its load."""
        with self._lock:
            told = {name: state for member in self._members.values() for name, state in member.roles.items()}
            return {
                role.name: {
                    "state": told.get(role.name, "missing"),
                    "host": self._placed.get(role.name),
                    "metrics": self._metrics.get(role.name),
                    "load": self._loads.get(role.name, {}),
                }
                for role in roles(self._cluster)
            }

    # ---- agents

    def _refusal(self, report: Heartbeat) -> str | None:
        if report.agent in self._gone:
            return f"this agent has left, or another one has come from {report.address} and replaces it"
        local_agent = self._members.get(self.local_agent)
        if local_agent is not None and report.agent != self.local_agent and report.address == local_agent.address:
            return (
                f"{report.address} is the coordinator's own address, where an agent runs already; give this host's "
                "with --advertise-address"
            )
        return None

    def _join(self, report: Heartbeat) -> _Member:
        for other in list(self._members.values()):
            if other.address == report.address:
                self._gone.add(other.id)
                self._remove_member(other, "was replaced by a new agent at its address")
        member = _Member(report.agent, report.host, report.address, report.accepted_roles, self._clock())
        self._members[member.id] = member
        self._changed_at = self._clock()
        return member

    def _remove_member(self, member: _Member, how: str) -> None:
        del self._members[member.id]
        self._changed_at = self._clock()
        if member.id in self._dealt:
            self._fail(Failure(message=f"the agent on {member.host} ({member.address}) {how}"))

    def _offers(self) -> dict[str, AcceptedRoles]:
        """What the agents that may get roles take, this host's first and the others as they joined."""
        staying = [member for member in self._members.values() if member.notice is None]
        remote_hosts = {member.id: member.offers for member in staying if member.offers != "none"}
        return {self.local_agent: "all", **remote_hosts}

    def _can_begin(self) -> bool:
        """Whether all hosts are here, or those that are missing have been waited for and can be done without."""
        offers = self._offers()
        if self.local_agent not in self._members:
            return False
        if not missing_hosts(self._cluster, offers):
            return True
        patience = self._cluster.host_timeout_seconds
        if patience is None or self._clock() - self._changed_at < patience:
            return False
        taken = {kind for agent, kind in offers.items() if agent != self.local_agent}
        # What has never run needs its hosts: who starts them may not have got round to all yet.
        return self._begun or (self._cluster.one_role_per_host and ("all" in taken or {"server", "worker"} <= taken))

    def _apply_report(self, member: _Member, report: Heartbeat) -> None:
        member.seen, member.reports, member.metrics = self._clock(), report.number, report.metrics
        current = report.generation == self.generation
        for event in report.events:
            if event.number > member.events:
                member.events = event.number
                if self.state in _LIVE and event.generation == self.generation:
                    self._note(event)
        member.roles = report.roles if current else {}
        member.clear = not current
        if report.checkpoints_requested > member.checkpoints_requested:
            member.checkpoints_requested = report.checkpoints_requested
            self._checkpoints_requested += 1
        if report.notice and not member.notice:
            member.notice, self._changed_at = report.notice, self._clock()
            if member.id == self.local_agent:
                self._interruption = report.notice
            self._events.append(InterruptionNotice(host=member.host, address=member.address, reason=report.notice))
        if report.leaving:
            self._gone.add(member.id)
            self._remove_member(member, "has left")
        elif self.state in _LIVE and member.id in self._dealt:
            if report.ended >= self.generation:
                self._fail(Failure(message=f"the agent on {member.host} ended its roles: it could not reach me"))
            elif current and report.failure:
                self._fail(report.failure)
            elif "done" in report.roles.values():
                self._see_done()
            elif member.notice and self.state is State.RUNNING and member.id != self.local_agent:
                self._give_way(member)

    def _order(self, member: _Member) -> DesiredState:
        do: Action = "wait"
        if self.state in FINISHED:
            code, how = self._end_of_job()
            return DesiredState(coordinator=self.id, do="leave", exit_code=code, message=f"the job {how}")
        if member.notice and member.id != self.local_agent and member.id not in self._dealt:
            how = f"the job goes on without this host: {member.notice}"
            return DesiredState(coordinator=self.id, do="leave", exit_code=INTERRUPTED_EXIT_CODE, message=how)
        if self.state in _LIVE and member.id in self._dealt:
            do = "run" if self.state is State.RUNNING else "stop"
        return DesiredState(
            coordinator=self.id,
            do=do,
            acknowledged=member.events,
            generation=self.generation,
            roles=[role.name for role in self._dealt.get(member.id, [])],
            scheduler=Endpoint(host=self._start.scheduler.host, port=self._start.scheduler.port),
            rendezvous=self._start.rendezvous,
            servers=self._cluster.servers,
            workers=self._cluster.workers,
            checkpoint=self._start.checkpoint,
            job=self._job,
            checkpoints_requested=self._checkpoints_requested,
        )

    def _end_of_job(self) -> tuple[int, str]:
        """The exit code of an agent of the job that has ended, and how that was."""
        if self.state is State.DONE:
            return 0, "is done"
        if self.state is State.FAILED:
            return 1, f"has failed: {self._error.message if self._error else ''}"
        if notice := self.interruption():
            return INTERRUPTED_EXIT_CODE, f"was stopped {self.message}, since its coordinator's host goes: {notice}"
        return _STOPPED_EXIT_CODE, f"was stopped {self.message}"

    # ---- the generation

    def _note(self, sent: NumberedEvent) -> None:
        """Take an event of a role of this generation."""
        if isinstance(sent.event, _PROGRESS):
            self._progress_at = self._clock()
        match sent.event:
            case StepEvent(step=step):
                self._step, self._trained = step, True
                self._is_up()
            case CheckpointSaved(step=step):
                self._saved_step = max(self._saved_step, step)
            case StoppedEvent(step=step, checkpoint=checkpoint):
                self._stopped = StopResult(step, checkpoint)
                self._step = step
            case MetricsAddress(address=address):
                self._metrics[sent.role] = address
            case LoadEvent(load=load):
                self._loads[sent.role] = load
                return
        self._events.append(sent.event)

    def _is_up(self) -> None:
        """Training goes on: the last restart is over."""
        if self._down_since is not None and self.restarts:
            self.restarts[-1].seconds, self._down_since = self._clock() - self._down_since, None

    def _see_done(self) -> None:
        """Some role has ended well: when all have, the job is done, or the generation has stopped as asked."""
        dealt = {role.name for roles in self._dealt.values() for role in roles}
        done = {name for member in self._members.values() for name, state in member.roles.items() if state == "done"}
        if done != dealt:
            # MXNet lets nobody leave before all workers have called their last barrier, so the others follow soon.
            self._deadline = min(self._deadline, self._clock() + EXIT_TIMEOUT_SECONDS)
        elif self._stopped is None:
            self.state = State.DONE
            self._is_up()
        elif self.state is State.STOPPING:
            self.state, self.message = State.STOPPED, self._stopped.explain()
        elif self.state is State.DRAINING:
            self._restarts_without_checkpoint = 0 if self._stopped.checkpoint else self._restarts_without_checkpoint
            self._end(State.BACKOFF)
        else:
            self._fail(Failure(message="a worker was asked to stop by someone else"))

    def _give_way(self, member: _Member) -> None:
        """A host with roles will soon be gone: have a checkpoint written, and start again without it."""
        self._cause = f"the host {member.host} ({member.address}) is taken away: {member.notice}"
        self._down_since = self._clock()
        if self._trained:
            self.state, self._deadline = State.DRAINING, self._clock() + NOTICE_SECONDS
        else:
            self._end(State.BACKOFF)  # there is nothing yet that a checkpoint could hold

    def _grace_seconds(self) -> float:
        return NOTICE_SECONDS if self.interruption() else self._cluster.grace_period_seconds

    def _pass_deadline(self) -> None:
        if self.state is State.STOPPING:
            self._end_stopped(f", which took more than {self._grace_seconds():g} s to write")
        elif self.state is State.DRAINING and self._stopped is None:
            self._fail(Failure(message=f"its checkpoint took more than {NOTICE_SECONDS:g} s to write"))
        else:
            roles = {name: state for member in self._members.values() for name, state in member.roles.items()}
            lingering = ", ".join(sorted(name for name, state in roles.items() if state != "done"))
            self._fail(
                Failure(message=f"the others are done, but {lingering} did not end in {EXIT_TIMEOUT_SECONDS:.0f} s")
            )

    def _fail(self, failure: Failure) -> None:
        """End the generation because of ``failure``, and decide what follows."""
        if self.state is State.STOPPING:
            self._end_stopped(f": {failure.message}")
        elif self.state in {State.RUNNING, State.DRAINING, State.PREPARING}:
            if failure.checkpoint is not None:
                self.refused |= {failure.checkpoint}
            if self._saved_step > self._start.step:
                self._restarts_without_checkpoint = 0
            # Of a generation that never began the cause comes after that of the one before, which it does not replace.
            if failure.message not in (self._cause or ""):
                self._cause = f"{self._cause}; then {failure.message}" if self._cause else failure.message
            if self._down_since is None:
                self._down_since = self._clock()
            if not failure.restart:
                self._error = failure
                self._end(State.FAILED)
            elif self._restarts_without_checkpoint >= self._cluster.max_restarts:
                limit = f"restarted {self._restarts_without_checkpoint} times without a new checkpoint (cluster.max_restarts)"
                self._error = failure.model_copy(update={"message": f"{failure.message}; {limit}", "exit_code": 1})
                self._end(State.FAILED)
            else:
                self._restarts_without_checkpoint += 1
                self._end(State.BACKOFF)

    def _end_stopped(self, why: str) -> None:
        """Stop without more ado; ``why`` there is no checkpoint, unless the workers have said that there is one."""
        self._end(State.STOPPED, self._stopped.explain() if self._stopped else f"without a checkpoint{why}")

    def _end(self, following: State, message: str = "") -> None:
        """Have all roles ended; ``following`` is the state after that."""
        self.state, self._next, self.message = State.TERMINATING, following, message
        self._deadline = float("inf")
        for member in self._members.values():
            member.clear = False

    def _advance(self) -> None:
        """Go on to what needs nothing more to happen."""
        if self.state is State.TERMINATING and all(self._is_clear(agent) for agent in self._dealt):
            self._dealt = {}
            self.state = self._next
            if self.state is State.BACKOFF:
                self._back_off()
        if self.state is State.BACKOFF and self._clock() >= self._deadline:
            self.state, self._deadline = State.WAITING, float("inf")
            if missing := missing_hosts(self._cluster, self._offers()):
                self._events.append(WaitingForHosts(hosts=missing))
        if self.state is State.WAITING and self._can_begin():
            self.state = State.PREPARING

    def _is_clear(self, agent: str) -> bool:
        member = self._members.get(agent)
        return member is None or member.clear

    def _back_off(self) -> None:
        seconds = (
            min(2.0 ** (self._restarts_without_checkpoint - 2), MAX_BACKOFF_SECONDS)
            if self._restarts_without_checkpoint > 1
            else 0.0
        )
        self._deadline = self._clock() + seconds
        if seconds:
            self._events.append(BackoffEvent(cause=self._cause or "", seconds=seconds))

    def _tell_start(self, start: GenerationSpec) -> None:
        origin: dict[str, Any] = {"step": start.step, "checkpoint": start.checkpoint, "skipped": list(start.skipped)}
        if self._cause is not None:
            self.restarts.append(Restart(self.generation, self._cause, self._step))
            self._events.append(RestartEvent(generation=self.generation, cause=self._cause, **origin))
            self._cause = None
        elif start.checkpoint or start.skipped:
            self._events.append(ResumeEvent(**origin))
