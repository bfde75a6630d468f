"""The metrics of one process: its collectors, its labels and its health.

    metrics = ProcessMetrics("plays", "worker")
    with serve_metrics(metrics, 0, None, "127.0.0.1"):            # trainer/monitoring/http.py
        metrics.register("training", TrainingMetrics(...))        # trainer/training/worker_metrics.py
        metrics.set_identity(rank)

Values are read when Prometheus scrapes, or counted from events: a few additions a step. The counters of the client
library take locks, and several times as long.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import psutil
from prometheus_client import ProcessCollector, generate_latest
from prometheus_client.core import Metric as Family

from crossfade.kvstore import __version__
from crossfade.kvstore.stats import UpdateStats
from crossfade.trainer.monitoring import names


class Collector(Protocol):
    """A source of metrics."""

    def collect(self) -> Iterable[Family]:
        """Yield the current values."""


@runtime_checkable
class SupportsSnapshot(Protocol):
    """A collector whose values also go to the run folder from time to time."""

    def snapshot(self) -> dict[str, Any]:
        """Return the values for the run folder, as JSON."""


class ProcessMetrics:
    """All metrics of one process, with the labels that identify it.

    Exposes nothing until ``set_identity``, since labels must not change and a role has no rank before all have joined.
    """

    def __init__(self, run: str, role: str, stall_timeout_seconds: float | None = None) -> None:
        """Expose the metrics of ``role`` of the run ``run``.

        The process is unhealthy after ``stall_timeout_seconds`` without progress; with None it is always healthy.
        """
        assert role in names.ROLES
        self.labels = {"run": run, "role": role}
        self.state: Callable[[], str] = lambda: "starting"
        """The activity of the process, for /healthz."""
        self._identified = False
        self._stall_timeout_seconds, self._progress_at = stall_timeout_seconds, time.monotonic()
        self._parts: dict[str, Collector] = {"process": _ProcessMetrics()}

    def set_identity(self, rank: int | None = None, run: str | None = None) -> None:
        """Begin to expose metrics, with the label ``rank`` if the role has ranks, and ``run`` if it was not known."""
        if rank is not None:
            self.labels["rank"] = str(rank)
        if run is not None:
            self.labels["run"] = run
        self._identified = True

    def register(self, part: str, collector: Collector) -> None:
        """Add ``collector``, in place of an earlier one named ``part``."""
        self._parts = {**self._parts, part: collector}

    def mark_alive(self) -> None:
        """Record progress: the stall timeout restarts."""
        self._progress_at = time.monotonic()

    def collect(self) -> Iterator[Family]:
        """Yield the metrics of all parts, with the labels of this process."""
        if not self._identified:
            return
        for part in self._parts.values():
            for family in part.collect():
                family.samples = [
                    sample._replace(labels={**self.labels, **sample.labels})
                    for sample in family.samples
                    if not sample.name.endswith("_created")
                ]
                yield family

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self)

    def snapshot(self) -> dict[str, Any]:
        """Return the snapshots of all parts together, as JSON values."""
        snapshots = [part.snapshot() for part in self._parts.values() if isinstance(part, SupportsSnapshot)]
        return {name: value for snapshot in snapshots for name, value in snapshot.items()}

    def health(self) -> tuple[bool, dict[str, Any]]:
        """Return whether the process is healthy, and its labels and activity as JSON values."""
        status: dict[str, Any] = {**self.labels, "state": self.state()}
        if self._stall_timeout_seconds is None:
            return True, status
        seconds = time.monotonic() - self._progress_at
        return seconds <= self._stall_timeout_seconds, {**status, "seconds_since_progress": round(seconds, 3)}


class _ProcessMetrics:
    def __init__(self) -> None:
        self._process = ProcessCollector(namespace=names.PREFIX, registry=None)
        self._this_process = psutil.Process()

    def collect(self) -> Iterator[Family]:
        yield names.BUILD_INFO.family(((__version__, platform.python_version()), 1.0))
        yield from self._process.collect()

    def snapshot(self) -> dict[str, Any]:
        cpu_times = self._this_process.cpu_times()
        return {
            "pid": self._this_process.pid,
            "resident_bytes": self._this_process.memory_info().rss,
            "cpu_seconds": cpu_times.user + cpu_times.system,
        }


class TableMetrics:
    """Updates of rows, and the memory of the tables held in this process."""

    def __init__(self, stats: UpdateStats) -> None:
        """Expose ``stats``."""
        self._stats = stats

    def collect(self) -> Iterator[Family]:
        """Yield the current values."""
        stats = self._stats
        yield names.UPDATED_ROWS.family(*(((table,), rows) for table, rows in list(stats.updated_rows.items())))
        yield names.UPDATE_SECONDS.family(
            *(((table,), seconds) for table, seconds in list(stats.update_seconds.items()))
        )
        held = list(stats.held_bytes.items())
        yield names.TABLE_SHARD_BYTES.family(
            *(((table, name), size) for table, arrays in held for name, size in arrays.items())
        )

    def snapshot(self) -> dict[str, Any]:
        """Return, by table, the rows updated, the seconds spent, and the bytes of each array."""
        stats = self._stats
        updates = {
            table: {"updated": rows, "seconds": stats.update_seconds.get(table, 0.0)}
            for table, rows in list(stats.updated_rows.items())
        }
        return {
            "updates": updates,
            "held_bytes": {table: dict(arrays) for table, arrays in list(stats.held_bytes.items())},
        }


class CommandMetrics:
    """Commands that a server has ignored."""

    def __init__(self, rejected: Mapping[str, int]) -> None:
        """Expose ``rejected``, the number of commands by reason, as it grows."""
        self._rejected = rejected

    def collect(self) -> Iterator[Family]:
        """Yield the current values."""
        yield names.REJECTED_COMMANDS.family(*(((reason,), count) for reason, count in self._rejected.items()))
