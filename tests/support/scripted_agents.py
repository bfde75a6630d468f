"""A coordinator with scripted agents, whose roles behave as a test scripts, on a clock that the test moves."""

from typing import Any

from crossfade.deploy.cluster.coordinator import Coordinator
from crossfade.deploy.cluster.job_state import GenerationSpec, State
from crossfade.deploy.cluster.messages import DesiredState, Failure, Heartbeat, NumberedEvent
from crossfade.deploy.topology import AcceptedRoles, Address
from crossfade.trainer.config.sections import ClusterConfig
from crossfade.trainer.runs.events import CheckpointSaved, Event, PhaseEvent, StepEvent, to_json

STALL, GRACE, RESTARTS = 100.0, 20.0, 3
KILLED = Failure(message="server-0 was killed by SIGKILL", details="log: run/logs/server-0.log")


class Host:
    """An agent as the coordinator sees one. It applies each desired state at once."""

    def __init__(
        self, cluster: "Cluster", address: str, identity: str | None = None, accepted_roles: AcceptedRoles = "all"
    ) -> None:
        self.cluster, self.address, self.id = cluster, address, identity or f"agent of {address}"
        self.accepted_roles = accepted_roles
        self.coordinator: str | None = None
        self.generation: int | None = None
        self.roles: dict[str, Any] = {}
        self.ended_generation = self.number = self.events = 0
        self.desired: DesiredState

    def make_heartbeat(self, **changes: Any) -> Heartbeat:
        """Return its next heartbeat."""
        self.number += 1
        values: dict[str, Any] = {
            "agent": self.id,
            "host": f"host {self.address}",
            "address": self.address,
            "accepted_roles": self.accepted_roles,
            "number": self.number,
            "coordinator": self.coordinator,
            "generation": self.generation,
            "ended_generation": self.ended_generation,
            "roles": self.roles,
        }
        return Heartbeat(**values | changes)

    def heartbeat(self, **changes: Any) -> DesiredState:
        """Send a heartbeat, and apply the answer."""
        answer = self.cluster.coordinator.handle_heartbeat(self.make_heartbeat(**changes))
        self.desired = answer
        if answer.coordinator != self.coordinator:
            self.coordinator, self.generation, self.roles, self.ended_generation = answer.coordinator, None, {}, 0
            return self.heartbeat() if answer.action != "leave" else answer
        if self.generation is not None and (answer.action in {"wait", "leave"} or answer.generation != self.generation):
            self.ended_generation, self.generation, self.roles = self.generation, None, {}
        if answer.action == "run" and self.generation is None and answer.generation > self.ended_generation:
            self.generation, self.roles = answer.generation, dict.fromkeys(answer.roles, "running")
        return answer

    def report_events(self, *events: Event, **changes: Any) -> DesiredState:
        """Send events of a role of its generation."""
        return self.heartbeat(events=self.number_events(*events), **changes)

    def number_events(self, *events: Event, role: str = "worker-0") -> list[NumberedEvent]:
        numbered = []
        for event in events:
            self.events += 1
            numbered.append(NumberedEvent(number=self.events, generation=self.generation or 0, role=role, event=event))
        return numbered

    def leave(self, *workers: str) -> DesiredState:
        """Report that ``workers`` leave: all results are written."""
        for worker in workers:
            self.heartbeat(events=self.number_events(PhaseEvent(name="leaving"), role=worker))
        return self.desired

    def finish_roles(self) -> DesiredState:
        """Report that all its roles are done."""
        self.roles = dict.fromkeys(self.roles, "done")
        return self.heartbeat()


def step(number: int) -> StepEvent:
    counts: dict[str, Any] = {"epoch": 1, "steps": 1000, "examples": number, "local_examples": 1}
    return StepEvent(step=number, **counts, loss=1.0, learning_rate=0.1, rows={}, seconds={})


def saved(number: int) -> CheckpointSaved:
    return CheckpointSaved(
        step=number, checkpoint=f"checkpoints/step-{number}", pause_seconds=0.0, seconds=1.0, bytes=100
    )


class Cluster:
    """A coordinator, its clock and its agents; ``local``, the one on the coordinator's host, has joined."""

    def __init__(
        self, *, hosts: int = 1, servers: int = 2, workers: int = 2, started_before: bool = False, **settings: Any
    ) -> None:
        self.now = self.began = 1000.0
        config = ClusterConfig(
            servers=servers,
            workers=workers,
            hosts=hosts,
            stall_timeout_seconds=STALL,
            grace_period_seconds=GRACE,
            max_restarts=RESTARTS,
            **settings,
        )
        self.coordinator = Coordinator(
            config, job_digest="digest", started_before=started_before, clock=lambda: self.now
        )
        self.port = 5000
        self.local = Host(self, "10.0.0.1", self.coordinator.local_agent)
        self.local.heartbeat()
        self.hosts = [self.local]

    @property
    def state(self) -> State:
        return self.coordinator.state

    def join(self, address: str, accepted_roles: AcceptedRoles = "all") -> Host:
        host = Host(self, address, accepted_roles=accepted_roles)
        host.heartbeat()
        self.hosts.append(host)
        return host

    def start(self, checkpoint: str | None = None, at_step: int = 0, **more: Any) -> None:
        """Find what the next generation starts from, and let all hosts start it."""
        assert self.state is State.PREPARING
        self.port += 1
        self.coordinator.start_generation(GenerationSpec(Address("10.0.0.1", self.port), checkpoint, at_step, **more))
        self.heartbeat_all()

    def heartbeat_all(self) -> None:
        for host in list(self.hosts):
            host.heartbeat()

    def wait(self, seconds: float) -> None:
        """Let time pass, in which every agent sends a heartbeat each second and no role makes progress."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(self.now + 1.0, until)
            self.heartbeat_all()
            self.coordinator.tick()
        self.heartbeat_all()  # applies the desired state
        self.heartbeat_all()  # and reports that

    def wait_silently(self, seconds: float) -> None:
        """Let time pass without a heartbeat."""
        self.now += seconds
        self.coordinator.tick()

    def back_off(self, seconds: float = 0.25) -> float:
        """Let time pass, ``seconds`` at a time, until the next start may be searched for; return how long that took."""
        begin = self.now
        while self.state is State.BACKOFF:
            self.wait_silently(seconds)
        return self.now - begin

    def fail(self, failure: Failure = KILLED) -> None:
        """Let a role fail, and all hosts end theirs."""
        self.local.heartbeat(failure=failure)
        self.heartbeat_all()
        self.heartbeat_all()

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [to_json(event) for event in self.coordinator.take_events() if event.kind == kind]
