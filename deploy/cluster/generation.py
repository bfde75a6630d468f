"""One generation of a job's roles: where each runs, what it reported, and the progress of training."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from crossfade.base.formatting import lost
from crossfade.deploy.cluster.job_state import GenerationSpec
from crossfade.deploy.cluster.messages import MAX_MESSAGE, Action, DesiredState, Endpoint, Failure, NumberedEvent
from crossfade.deploy.topology import Role
from crossfade.trainer.runs.events import (
    CheckpointSaved,
    EpochEvent,
    FailureEvent,
    LoadEvent,
    MetricsAddress,
    PhaseEvent,
    StepEvent,
    StoppedEvent,
)
from crossfade.trainer.runs.resumption import UnsavedWork

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
    ) -> None:
        """Start the roles in ``assigned``, by agent, from ``spec``.

        ``hosts`` names the host of each role; ``addresses`` are the addresses from which the roles connect.
        """
        self.number, self.spec = number, spec
        self.assigned, self.hosts = assigned, hosts
        self._secret, self._addresses = secrets.token_hex(32), addresses or []
        self.metrics_addresses: dict[str, str] = {}
        """HOST:PORT by role."""
        self.loads: dict[str, dict[str, Any]] = {}
        self.work = UnsavedWork(spec.step, now)
        self.has_trained = False
        self.left: set[str] = set()
        """The workers that have left: each does once all have written their results."""
        self.stop_result: StopResult | None = None
        """What the workers reported once they had stopped as requested."""
        self.progress_at = now

    @property
    def wrote_checkpoint(self) -> bool:
        """Whether there is a newer checkpoint than the one it started from."""
        return self.work.checkpoint_step > self.spec.step

    @property
    def has_results(self) -> bool:
        """Whether the run is finished, and all its results are written: only the ends of roles are missing."""
        workers = {name for name in self.role_names() if name.startswith("worker-")}
        return self.stop_result is None and bool(workers) and workers <= self.left

    def failure_event(self, failure: Failure, *, ends_run: bool) -> FailureEvent:
        """Return the record of ``failure``: of which role, on which host, and what was lost."""
        written = self.has_results
        lost_steps, lost_seconds = (0, None) if written else self.work.since(self.work.checkpoint_step)
        return FailureEvent(
            generation=self.number,
            role=failure.role,
            host=failure.host or self.hosts.get(failure.role or ""),
            cause=failure.cause or failure.message,
            error=failure.error,
            log=failure.log,
            ends_run=ends_run,
            step=self.work.step,
            lost_steps=lost_steps,
            lost_seconds=lost_seconds,
            after_results=written or None,
        )

    def desired_state(self, agent: str, action: Action, **job: Any) -> DesiredState:
        """Return the desired state of ``agent``; ``job`` has the fields that are the same in all generations.

        An agent without roles gets no secret.
        """
        local = [role.name for role in self.assigned.get(agent, [])]
        scheduler = self.spec.scheduler
        return DesiredState(
            action=action,
            generation=self.number,
            roles=local,
            scheduler=Endpoint(host=scheduler.host, port=scheduler.port) if scheduler else None,
            rendezvous=self.spec.rendezvous if local else None,
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
        self.work.record(numbered.event, now)
        match numbered.event:
            case StepEvent():
                self.has_trained = True
            case PhaseEvent(name="leaving"):
                self.left.add(numbered.role)
            case StoppedEvent(step=step, checkpoint=checkpoint):
                from crossfade.trainer.training.checkpointing import StopResult  # imports numba, which takes time

                self.stop_result = StopResult(step, checkpoint)
            case MetricsAddress(address=address):
                self.metrics_addresses[numbered.role] = address
            case LoadEvent(load=load):
                self.loads[numbered.role] = load
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


def final_failure(failure: Failure, event: FailureEvent, limit: str | None) -> Failure:
    """Return the failure that ends a job: ``failure``, with what it lost if ``limit`` is why it was the last one."""
    if limit is None:
        return failure
    host = f"on {event.host}; " if event.role and event.host else ""
    work = lost(event.lost_steps, event.lost_seconds, from_step=event.step - event.lost_steps)
    details = f"{host}lost {work}; {failure.details}".removesuffix("; ")[:MAX_MESSAGE]
    return failure.model_copy(update={"message": f"{failure.message}; {limit}", "exit_code": 1, "details": details})
