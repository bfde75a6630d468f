"""Agents as the coordinator sees them, whose roles do what a test says of them, and a clock of the test's own."""

from typing import Any

from deploy.cluster.coordinator import Coordinator, GenerationSpec, State
from deploy.cluster.messages import DesiredState, Failure, Heartbeat, NumberedEvent
from deploy.topology import AcceptedRoles, Address
from trainer.config.run_sections import ClusterConfig
from trainer.runs.events import CheckpointSaved, Event, StepEvent, to_json

STALL, GRACE, RESTARTS = 100.0, 20.0, 3
KILLED = Failure(message="server-0 was killed by SIGKILL", details="log: run/logs/server-0.log")


class Host:
    """An agent as the coordinator sees one. It obeys at once, and its roles do what the test says of them."""

    def __init__(
        self, place: "Place", address: str, identity: str | None = None, offers: AcceptedRoles = "all"
    ) -> None:
        self.place, self.address, self.id = place, address, identity or f"agent of {address}"
        self.offers = offers
        self.coordinator: str | None = None
        self.generation: int | None = None
        self.roles: dict[str, Any] = {}
        self.ended = self.number = self.events = 0
        self.order: DesiredState

    def make(self, **changes: Any) -> Heartbeat:
        """The report that it would send."""
        self.number += 1
        values: dict[str, Any] = {
            "agent": self.id,
            "host": f"host {self.address}",
            "address": self.address,
            "accepted_roles": self.offers,
            "number": self.number,
            "coordinator": self.coordinator,
            "generation": self.generation,
            "ended": self.ended,
            "roles": self.roles,
        }
        return Heartbeat(**values | changes)

    def report(self, **changes: Any) -> DesiredState:
        """Report, and obey the answer."""
        self.order = order = self.place.coordinator.report(self.make(**changes))
        if order.coordinator != self.coordinator:
            self.coordinator, self.generation, self.roles, self.ended = order.coordinator, None, {}, 0
            return self.report() if order.do != "leave" else order
        if self.generation is not None and (order.do in {"wait", "leave"} or order.generation != self.generation):
            self.ended, self.generation, self.roles = self.generation, None, {}
        if order.do == "run" and self.generation is None and order.generation > self.ended:
            self.generation, self.roles = order.generation, dict.fromkeys(order.roles, "running")
        return order

    def tell(self, *events: Event, **changes: Any) -> DesiredState:
        """Report events of a role of its generation."""
        return self.report(events=self.number_events(*events), **changes)

    def number_events(self, *events: Event) -> list[NumberedEvent]:
        sent = []
        for event in events:
            self.events += 1
            sent.append(
                NumberedEvent(number=self.events, generation=self.generation or 0, role="worker-0", event=event)
            )
        return sent

    def end_well(self) -> DesiredState:
        """Report that all its roles are done."""
        self.roles = dict.fromkeys(self.roles, "done")
        return self.report()


def step(number: int) -> StepEvent:
    return StepEvent(
        epoch=1,
        step=number,
        steps=1000,
        examples=number,
        loss=1.0,
        learning_rate=0.1,
        local_examples=1,
        rows={},
        seconds={},
    )


def saved(number: int) -> CheckpointSaved:
    return CheckpointSaved(
        step=number, checkpoint=f"checkpoints/step-{number}", pause_seconds=0.0, seconds=1.0, bytes=100
    )


class Place:
    """A coordinator, its clock and its agents; ``home`` has joined."""

    def __init__(
        self, *, hosts: int = 1, servers: int = 2, workers: int = 2, begun: bool = False, **settings: Any
    ) -> None:
        self.now = 1000.0
        cluster = ClusterConfig(
            servers=servers,
            workers=workers,
            hosts=hosts,
            stall_timeout_seconds=STALL,
            grace_period_seconds=GRACE,
            max_restarts=RESTARTS,
            **settings,
        )
        self.coordinator = Coordinator(cluster, job="digest", started_before=begun, clock=lambda: self.now)
        self.port = 5000
        self.home = Host(self, "10.0.0.1", self.coordinator.local_agent)
        self.home.report()
        self.hosts = [self.home]

    @property
    def state(self) -> State:
        return self.coordinator.state

    def join(self, address: str, offers: AcceptedRoles = "all") -> Host:
        host = Host(self, address, offers=offers)
        host.report()
        self.hosts.append(host)
        return host

    def begin(self, checkpoint: str | None = None, at_step: int = 0, **more: Any) -> None:
        """Find what the next generation starts from, and let all hosts start it."""
        assert self.state is State.PREPARING
        self.port += 1
        self.coordinator.start_generation(GenerationSpec(Address("10.0.0.1", self.port), checkpoint, at_step, **more))
        self.report_all()

    def report_all(self) -> None:
        for host in list(self.hosts):
            host.report()

    def wait(self, seconds: float) -> None:
        """Let time pass, in which every agent reports once a second and no role makes progress."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(self.now + 1.0, until)
            self.report_all()
            self.coordinator.tick()
        self.report_all()  # obeys
        self.report_all()  # and says so

    def pass_time(self, seconds: float) -> None:
        """Let time pass in silence."""
        self.now += seconds
        self.coordinator.tick()

    def fail(self, failure: Failure = KILLED) -> None:
        """Let a role fail, and all hosts end theirs."""
        self.home.report(failure=failure)
        self.report_all()
        self.report_all()

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [to_json(event) for event in self.coordinator.take_events() if event.kind == kind]
