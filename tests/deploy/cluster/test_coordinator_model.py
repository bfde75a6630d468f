"""Any order of messages, losses, duplicates, deaths and clock ticks keeps the coordinator's invariants.

Hosts send heartbeats and apply the answers as agents do, but a heartbeat or an answer may be lost, late or repeated.
"""

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scripted_agents import KILLED, Cluster, Host, saved, step

from crossfade.base.errors import InputError
from crossfade.deploy.cluster.agent import AGENT_LEASE_SECONDS
from crossfade.deploy.cluster.job_state import FINISHED, LIVE, GenerationSpec, State
from crossfade.deploy.cluster.messages import DesiredState, Failure, Heartbeat
from crossfade.deploy.topology import Address, roles
from crossfade.trainer.runs.events import InterruptionNotice, LoadEvent, StoppedEvent

pytestmark = pytest.mark.slow

HOSTS = 2
NOTICE = "EC2 terminates this spot instance at noon"
PICK = st.integers(0, 7)
SECONDS = st.sampled_from([0.5, 1.0, 4.0, 11.0, 16.0, 40.0, 130.0])


class Agent(Host):
    """A host whose messages the network may lose, delay or repeat, and which then ends its roles by its lease."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.answered_at = self.cluster.now
        self.notice: str | None = None
        self.failure: Failure | None = None
        self.has_left = False

    @property
    def is_local(self) -> bool:
        return self.id == self.cluster.coordinator.local_agent

    def make_heartbeat(self, **changes: Any) -> Heartbeat:
        return super().make_heartbeat(**{"interruption_notice": self.notice, "failure": self.failure} | changes)

    def end_roles(self) -> None:
        if self.generation is not None:
            self.ended_generation, self.generation, self.roles = self.generation, None, {}
        self.failure = None

    def apply(self, answer: DesiredState, sent_at: float) -> None:
        """Apply an answer as ``deploy/cluster/agent.py`` does."""
        self.answered_at = max(self.answered_at, sent_at)
        if answer.action == "leave":
            self.end_roles()
            self.has_left = True
        elif answer.coordinator != self.coordinator:
            self.end_roles()
            self.coordinator, self.ended_generation = answer.coordinator, 0
        else:
            if self.generation is not None and (answer.action == "wait" or answer.generation != self.generation):
                self.end_roles()
            if answer.action == "run" and self.generation is None and answer.generation > self.ended_generation:
                self.generation, self.roles = answer.generation, dict.fromkeys(answer.roles, "running")

    def end_roles_without_an_answer(self) -> None:
        if not self.is_local and self.cluster.now - self.answered_at > AGENT_LEASE_SECONDS:
            self.end_roles()


class CoordinatorMachine(RuleBasedStateMachine):
    """A coordinator, its hosts and the network between them."""

    def __init__(self) -> None:
        super().__init__()
        self.late: list[tuple[Agent, Heartbeat]] = []
        self.joined = 1
        self.generations: list[int] = []
        self.unwanted: set[str] = set()
        """The agents that are drained."""
        self.checkpoint_step = 0

    @initialize(one_role_per_host=st.booleans(), host_timeout=st.sampled_from([None, 30.0]))
    def begin(self, *, one_role_per_host: bool, host_timeout: float | None) -> None:
        self.cluster = Cluster(
            hosts=1 if one_role_per_host else HOSTS,
            servers=1,
            workers=2,
            one_role_per_host=one_role_per_host,
            host_timeout_seconds=host_timeout,
        )
        self.coordinator = self.cluster.coordinator
        local = Agent(self.cluster, "10.0.0.1", self.coordinator.local_agent)
        local.coordinator, local.number = self.coordinator.id, 9
        self.agents = [local]

    # ---- what may happen

    @rule(kind=st.sampled_from(["all", "server", "worker", "none"]))
    def join(self, kind: Any) -> None:
        if len(self.agents) < 6:
            self.joined += 1
            self.agents.append(Agent(self.cluster, f"10.0.0.{self.joined}", None, kind))

    @rule(pick=PICK)
    def replace(self, pick: int) -> None:
        """Start a new agent on a host; its roles die with the earlier agent."""
        if (old := self.pick(pick)) and not old.is_local:
            self.joined += 1
            self.agents[self.agents.index(old)] = Agent(self.cluster, old.address, f"agent {self.joined}")

    @rule(pick=PICK)
    def die(self, pick: int) -> None:
        if (agent := self.pick(pick)) and not agent.is_local:
            self.agents.remove(agent)

    @rule(pick=PICK, fate=st.sampled_from(["arrives", "arrives", "arrives", "lost", "late", "answer lost", "twice"]))
    def send(self, pick: int, fate: str) -> None:
        if agent := self.pick(pick):
            self.deliver(agent, agent.make_heartbeat(), "arrives" if agent.is_local else fate)

    @rule(pick=PICK)
    def deliver_late(self, pick: int) -> None:
        """Deliver a heartbeat that others have overtaken; its sender no longer waits for the answer."""
        if self.late:
            _, heartbeat = self.late.pop(pick % len(self.late))
            self.coordinator.handle_heartbeat(heartbeat)

    @rule(pick=PICK, event=st.sampled_from(["step", "saved", "stopped", "load"]))
    def report(self, pick: int, event: str) -> None:
        agent = self.pick(pick)
        if agent is None or "worker-0" not in agent.roles:
            return
        if event == "saved":
            self.checkpoint_step += 1
        events = {
            "step": step(self.checkpoint_step + 1),
            "saved": saved(self.checkpoint_step),
            "stopped": StoppedEvent(step=self.checkpoint_step, checkpoint="checkpoints/step"),
            "load": LoadEvent(load={}),
        }
        self.deliver(agent, agent.make_heartbeat(events=agent.number_events(events[event])))

    @rule(pick=PICK, restart=st.booleans(), corrupt=st.booleans())
    def fail(self, pick: int, *, restart: bool, corrupt: bool) -> None:
        agent = self.pick(pick)
        if agent is not None and agent.roles:
            checkpoint = "checkpoints/step-1" if corrupt else None
            agent.failure = KILLED.model_copy(update={"restart": restart or pick > 0, "checkpoint": checkpoint})

    @rule(pick=PICK)
    def finish_roles(self, pick: int) -> None:
        if agent := self.pick(pick):
            agent.roles = dict.fromkeys(agent.roles, "done")

    @rule(pick=PICK)
    def announce_interruption(self, pick: int) -> None:
        if agent := self.pick(pick):
            agent.notice = NOTICE

    @rule(seconds=SECONDS)
    def let_time_pass(self, seconds: float) -> None:
        self.cluster.now += seconds
        self.tick()

    @precondition(lambda self: self.coordinator.state is State.PREPARING)
    @rule(error=st.sampled_from([None, None, None, OSError("S3 is away"), InputError("no such folder")]))
    def find_start(self, error: Exception | None) -> None:
        if error is not None:
            self.coordinator.start_failed(error)
        else:
            self.cluster.port += 1
            spec = GenerationSpec(Address("10.0.0.1", self.cluster.port), "checkpoints/step", self.checkpoint_step)
            before = self.coordinator.generation
            self.coordinator.start_generation(spec)
            if self.coordinator.generation > before:
                assert not self.coordinator._generation.assigned.keys() & self.unwanted - {self.coordinator.local_agent}

    @precondition(lambda self: self.coordinator.generation > 3)
    @rule()
    def stop(self) -> None:
        self.coordinator.stop()

    # ---- how it happens

    def pick(self, pick: int) -> Agent | None:
        """Return one of the agents that have not left."""
        present = [agent for agent in self.agents if not agent.has_left]
        return present[pick % len(present)] if present else None

    def deliver(self, agent: Agent, heartbeat: Heartbeat, fate: str = "arrives") -> None:
        sent_at = self.cluster.now
        if fate in {"lost", "late"}:
            self.late += [(agent, heartbeat)] * (fate == "late")
            return
        answer = self.coordinator.handle_heartbeat(heartbeat)
        if self.coordinator.state not in FINISHED and not agent.has_left:
            assert (answer.action, answer.exit_code) != ("leave", 1), "a message of an earlier agent has replaced it"
        if fate == "twice":
            answer = self.coordinator.handle_heartbeat(heartbeat)
        if fate != "answer lost":
            agent.apply(answer, sent_at)

    def tick(self) -> None:
        for agent in self.agents:
            agent.end_roles_without_an_answer()
        if self.coordinator.interruption_notice():
            self.coordinator.stop()
        self.coordinator.tick()

    # ---- what always holds

    @invariant()
    def at_most_one_generation_runs(self) -> None:
        running = {agent.generation for agent in self.agents if agent.generation is not None}
        assert len(running) <= 1, running
        placed = [role for agent in self.agents for role in agent.roles]
        assert len(placed) == len(set(placed)), placed

    @invariant()
    def running_generation_has_each_role_once(self) -> None:
        if self.coordinator.state in LIVE:
            assigned = self.coordinator._generation.assigned
            placed = sorted(role.name for local in assigned.values() for role in local)
            assert placed == sorted(role.name for role in roles(self.coordinator._cluster))

    @invariant()
    def generation_numbers_grow(self) -> None:
        number = self.coordinator.generation
        if not self.generations or self.generations[-1] != number:
            assert number == len(self.generations)
            self.generations.append(number)

    @invariant()
    def status_and_error_can_be_read(self) -> None:
        for event in self.coordinator.take_events():
            if isinstance(event, InterruptionNotice):
                self.unwanted |= {agent.id for agent in self.agents if agent.address == event.address}
        self.coordinator.processes()
        if self.coordinator.state is State.FAILED:
            assert str(self.coordinator.error())

    def teardown(self) -> None:
        """Once faults end and enough hosts are there, the job trains, or has ended."""
        if not hasattr(self, "cluster"):
            return
        for kind in ("all", "server", "worker", "all"):
            self.joined += 1
            self.agents.append(Agent(self.cluster, f"10.0.0.{self.joined}", None, kind))
        for agent in self.agents:
            agent.failure = None
            if agent.roles:
                agent.roles = dict.fromkeys(agent.roles, "running")
        for _ in range(400):
            self.cluster.now += 1.0
            for agent in self.agents:
                if not agent.has_left:
                    self.deliver(agent, agent.make_heartbeat())
            self.tick()
            if self.coordinator.state is State.PREPARING:
                self.find_start(None)
            self.at_most_one_generation_runs()
            if self.trains():
                return
        raise AssertionError(f"no progress: {self.coordinator.state}")

    def trains(self) -> bool:
        if self.coordinator.state in FINISHED:
            return True
        placed = {role for agent in self.agents for role in agent.roles}
        return self.coordinator.state is State.RUNNING and len(placed) == 4


TestCoordinator = CoordinatorMachine.TestCase
TestCoordinator.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
