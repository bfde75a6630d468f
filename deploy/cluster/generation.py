"""One generation of a job's roles: where each runs, what it reported, and the progress of training."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from crossfade.deploy.cluster.job_state import GenerationSpec
from crossfade.deploy.cluster.messages import Action, DesiredState, Endpoint, NumberedEvent
from crossfade.deploy.cluster.slow_roles import WINDOW_SECONDS, SlowRoles
from crossfade.deploy.topology import Role
from crossfade.trainer.runs.events import (
    CheckpointSaved,
    EpochEvent,
    LoadEvent,
    MetricsAddress,
    PhaseEvent,
    StepEvent,
    StoppedEvent,
)

if TYPE_CHECKING:
    from crossfade.trainer.training.checkpointing import StopResult

_PROGRESS_EVENTS = (StepEvent, EpochEvent, PhaseEvent, CheckpointSaved)


class Generation:
    """A generation, numbered from 1. Number 0 stands for the time before the first, and has no roles."""

    def __init__(
        self,
        number: int,
        spec: GenerationSpec,
        assigned: dict[str, list[Role]],
        hosts: dict[str, str],
        now: float,
        addresses: list[str] | None = None,
        compared_seconds: float = WINDOW_SECONDS,
    ) -> None:
        """Start the roles in ``assigned``, by agent, from ``spec``.

        ``hosts`` names the host of each role; ``addresses`` are those from which the roles connect. The roles are
        compared over the last ``compared_seconds``.
        """
        self.number, self.spec = number, spec
        self.assigned, self.hosts = assigned, hosts
        self._secret, self._addresses = secrets.token_hex(32), addresses or []
        self.metrics_addresses: dict[str, str] = {}
        """HOST:PORT by role."""
        self.loads: dict[str, dict[str, Any]] = {}
        self.slow_roles = SlowRoles(compared_seconds)
        self.step = self.checkpoint_step = spec.step
        self.has_trained = False
        self._step_at = now
        self._begun_at: dict[int, float] = {}
        """When training after a step began, for the step that training started from and those of checkpoints."""
        self.stop_result: StopResult | None = None
        """What the workers reported once they had stopped as requested."""
        self.progress_at = now

    @property
    def wrote_checkpoint(self) -> bool:
        """Whether there is a newer checkpoint than the one it started from."""
        return self.checkpoint_step > self.spec.step

    def lost_since(self, step: int) -> tuple[int, float | None]:
        """Return how many steps were taken after ``step``, and in how many seconds; None if that is not known."""
        begun_at = self._begun_at.get(step)
        seconds = None if begun_at is None else max(0.0, self._step_at - begun_at)
        return max(0, self.step - step), seconds

    def agent_of(self, role: str) -> str:
        """Return the agent that runs the role named ``role``."""
        return next(agent for agent, assigned in self.assigned.items() if role in {each.name for each in assigned})

    def desired_state(self, agent: str, action: Action, **job: Any) -> DesiredState:
        """Return the desired state of ``agent``; ``job`` has the fields that are the same in all generations.

        An agent without roles gets no secret.
        """
        local = [role.name for role in self.assigned.get(agent, [])]
        return DesiredState(
            action=action,
            generation=self.number,
            roles=local,
            scheduler=Endpoint(host=self.spec.scheduler.host, port=self.spec.scheduler.port),
            rendezvous=self.spec.rendezvous,
            checkpoint=self.spec.checkpoint,
            secret=self._secret if local else "",
            hosts=self._addresses,
            **job,
        )

    def role_names(self) -> set[str]:
        """Return the names of all roles."""
        return {role.name for assigned in self.assigned.values() for role in assigned}

    def record(self, numbered: NumberedEvent, now: float) -> bool:
        """Record an event of a role; return whether others should see it too."""
        if isinstance(numbered.event, _PROGRESS_EVENTS):
            self.progress_at = now
        match numbered.event:
            case StepEvent(step=step):
                self.step, self.has_trained, self._step_at = step, True, now
            case PhaseEvent(name="training"):
                self._begun_at[self.spec.step] = now
            case CheckpointSaved(step=step, seconds=seconds):
                self.checkpoint_step = max(self.checkpoint_step, step)
                self._begun_at[step] = now - seconds
            case StoppedEvent(step=step, checkpoint=checkpoint):
                from crossfade.trainer.training.checkpointing import StopResult  # imports numba, which takes time

                self.stop_result = StopResult(step, checkpoint)
                self.step = step
            case MetricsAddress(address=address):
                self.metrics_addresses[numbered.role] = address
            case LoadEvent(load=load):
                self.loads[numbered.role] = load
                self.slow_roles.record(numbered.role, load, now)
                return False
        return True

    def scrape_targets(self) -> list[tuple[str, str, str]]:
        """Return where its roles can be scraped: process, host and HOST:PORT."""
        return [
            (role.name, self.hosts[role.name], self.metrics_addresses[role.name])
            for assigned in self.assigned.values()
            for role in assigned
            if role.name in self.metrics_addresses
        ]

    def describe(self, role: Role, states: Mapping[str, str]) -> dict[str, Any]:
        """Return the state of ``role``, of those by role in ``states``, its host, metrics address and newest load."""
        return {
            "state": states.get(role.name, "missing"),
            "host": self.hosts.get(role.name),
            "metrics": self.metrics_addresses.get(role.name),
            "load": self.loads.get(role.name, {}),
        }
