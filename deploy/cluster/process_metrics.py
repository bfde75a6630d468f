"""The metrics of any process, with those of its machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client.core import Metric as Family

from crossfade.deploy.capacity.machine import available_bytes, limit_bytes
from crossfade.trainer.monitoring import names
from crossfade.trainer.monitoring.registry import ProcessMetrics


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
