"""What a job's coordinator, agents and machines measure, and where its processes can be scraped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client.core import Metric as Family

from deploy.capacity.machine import available_bytes, limit_bytes
from deploy.cluster.agent import Agent
from deploy.cluster.coordinator import Coordinator, State
from deploy.topology import roles
from trainer.config.run_sections import ClusterConfig
from trainer.monitoring import names
from trainer.monitoring.registry import ProcessMetrics


class MachineMetrics:
    """The memory of this machine, or of this container."""

    def collect(self) -> Iterator[Family]:
        """All there is."""
        yield names.MEMORY_LIMIT.single(limit_bytes())
        yield names.MEMORY_AVAILABLE.single(available_bytes())

    def load(self) -> dict[str, Any]:
        """The same."""
        return {"memory_limit_bytes": limit_bytes(), "memory_available_bytes": available_bytes()}


class JobMetrics:
    """How a distributed job fares, as its coordinator knows."""

    def __init__(self, coordinator: Coordinator, cluster: ClusterConfig) -> None:
        """Show what ``coordinator`` knows of a job on ``cluster``."""
        self._coordinator, self._cluster = coordinator, cluster

    def collect(self) -> Iterator[Family]:
        """All there is."""
        status = self._coordinator.status()
        reported = {name for agent in status["agents"] for name in agent["roles"]}
        yield names.RESTARTS.single(len(status["restarts"]))
        yield names.GENERATION.single(status["generation"])
        yield names.JOB_STATE.family(*(((state.value,), float(state == status["state"])) for state in State))
        yield names.ROLE_UP.family(*(((role.name,), float(role.name in reported)) for role in roles(self._cluster)))


class HostMetrics:
    """What an agent knows of its host."""

    def __init__(self, agent: Agent) -> None:
        """Show what ``agent`` runs."""
        self._agent = agent

    def collect(self) -> Iterator[Family]:
        """All there is."""
        yield names.RUNNING_ROLES.single(self._agent.running_roles())


def process_metrics(run: str, role: str, stall_seconds: float | None = None) -> ProcessMetrics:
    """The metrics of a process of ``run``, with those of its machine."""
    metrics = ProcessMetrics(run, role, stall_seconds)
    metrics.register("machine", MachineMetrics())
    return metrics


def target(run: str, process: str, host: str, address: str) -> dict[str, Any]:
    """One process as Prometheus's HTTP service discovery has it."""
    return {"targets": [address], "labels": {"run": run, "process": process, "host": host}}
