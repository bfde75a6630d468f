"""The metrics of the processes of a job, with the memory of their machine, and its scrape targets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client.core import Metric as Family

from crossfade.base.machine import available_bytes, limit_bytes
from crossfade.deploy.cluster.job_state import State
from crossfade.deploy.topology import roles
from crossfade.trainer.config.sections import ClusterConfig
from crossfade.trainer.monitoring import names
from crossfade.trainer.monitoring.registry import ProcessMetrics

if TYPE_CHECKING:
    from crossfade.deploy.cluster.coordinator import Coordinator


class MachineMetrics:
    """The memory of this machine, or of this container."""

    def collect(self) -> Iterator[Family]:
        """Yield the current values."""
        yield names.MEMORY_LIMIT.single(limit_bytes())
        yield names.MEMORY_AVAILABLE.single(available_bytes())

    def snapshot(self) -> dict[str, Any]:
        """Return the same values for the run folder."""
        return {"memory_limit_bytes": limit_bytes(), "memory_available_bytes": available_bytes()}


def process_metrics(run: str, role: str, stall_timeout_seconds: float | None = None) -> ProcessMetrics:
    """Return the metrics of a process of ``run``, with those of its machine."""
    metrics = ProcessMetrics(run, role, stall_timeout_seconds)
    metrics.register("machine", MachineMetrics())
    return metrics


class JobMetrics:
    """The state of a distributed job."""

    def __init__(self, coordinator: Coordinator, cluster: ClusterConfig) -> None:
        """Read the state from ``coordinator``, of a job on ``cluster``."""
        self._coordinator, self._cluster = coordinator, cluster

    def collect(self) -> Iterator[Family]:
        """Yield the current values."""
        current, states = self._coordinator.state, self._coordinator.role_states()
        yield names.RESTARTS.single(self._coordinator.restarts)
        yield names.GENERATION.single(self._coordinator.generation)
        yield names.JOB_STATE.family(*(((state.value,), float(state is current)) for state in State))
        yield names.ROLE_UP.family(*(((role.name,), float(role.name in states)) for role in roles(self._cluster)))


def target(run: str, process: str, host: str, address: str) -> dict[str, Any]:
    """Return one scrape target in the format of Prometheus's HTTP service discovery."""
    return {"targets": [address], "labels": {"run": run, "process": process, "host": host}}
