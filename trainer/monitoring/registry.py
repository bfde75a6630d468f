"""What a process of a run measures, ready to be scraped: under which labels, and how it is.

    metrics = RoleMetrics("plays", "worker")
    with listening(metrics, "127.0.0.1", 0):                      # trainer/monitoring/http.py
        metrics.joined(rank)
        metrics.show("training", TrainingMetrics(...))            # trainer/training/metrics.py

Everything is read when somebody asks, or counted by the event that tells it: a few additions a step. The library's own
counters take locks, and several times as long.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import psutil
from prometheus_client import ProcessCollector, generate_latest
from prometheus_client.core import Metric as Family

from kvstore import __version__
from kvstore.stats import UpdateStats
from trainer.monitoring import names


class Collector(Protocol):
    """Whoever has metrics to show."""

    def collect(self) -> Iterable[Family]:
        """Them, as they are now."""


@runtime_checkable
class SupportsSnapshot(Protocol):
    """A collector that can also say what the run folder gets, now and then, of what it shows."""

    def snapshot(self) -> dict[str, Any]:
        """Names and JSON values."""


class ProcessMetrics:
    """All metrics of one process, under the labels that say whose they are.

    A collector itself. It shows nothing as long as its labels may still change: a role has a rank once all have joined.
    """

    def __init__(self, run: str, role: str, stall_seconds: float | None = None) -> None:
        """Those of ``role`` of the run ``run``, which is unhealthy after ``stall_seconds`` without a sign of progress.

        Without ``stall_seconds`` it is healthy as long as it answers.
        """
        assert role in names.ROLES
        self.labels = {"run": run, "role": role}
        self.state: Callable[[], str] = lambda: "starting"
        """What /healthz says that the process is doing."""
        self._complete = False
        self._stall_seconds, self._sign_at = stall_seconds, time.monotonic()
        self._parts: dict[str, Collector] = {"process": _ProcessMetrics()}

    def set_identity(self, rank: int | None = None, run: str | None = None) -> None:
        """From now on show what there is, of ``rank`` if the role has ranks, and of ``run`` if that was not known."""
        if rank is not None:
            self.labels["rank"] = str(rank)
        if run is not None:
            self.labels["run"] = run
        self._complete = True

    def register(self, part: str, collector: Collector) -> None:
        """Show what ``collector`` has too, in place of an earlier one of that part."""
        self._parts = {**self._parts, part: collector}

    def mark_alive(self) -> None:
        """Take it that something goes on."""
        self._sign_at = time.monotonic()

    def collect(self) -> Iterator[Family]:
        """All there is, with the labels of this process."""
        if not self._complete:
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
        """All there is in Prometheus's text format."""
        return generate_latest(self)

    def snapshot(self) -> dict[str, Any]:
        """What this process takes and has done so far, as JSON values: that of its parts together."""
        loads = [part.snapshot() for part in self._parts.values() if isinstance(part, SupportsSnapshot)]
        return {name: value for snapshot in loads for name, value in snapshot.items()}

    def health(self) -> tuple[bool, dict[str, Any]]:
        """Whether the process is well, and what it does, for people."""
        told: dict[str, Any] = {**self.labels, "state": self.state()}
        if self._stall_seconds is None:
            return True, told
        silent = time.monotonic() - self._sign_at
        return silent <= self._stall_seconds, {**told, "seconds_since_progress": round(silent, 3)}


class _ProcessMetrics:
    """What runs here, and what it takes."""

    def __init__(self) -> None:
        self._process = ProcessCollector(namespace=names.PREFIX, registry=None)
        self._own = psutil.Process()

    def collect(self) -> Iterator[Family]:
        """All there is."""
        yield names.BUILD_INFO.family(((__version__, platform.python_version()), 1.0))
        yield from self._process.collect()

    def snapshot(self) -> dict[str, Any]:
        """Its id, and the memory and processor time that it takes."""
        taken = self._own.cpu_times()
        return {
            "pid": self._own.pid,
            "resident_bytes": self._own.memory_info().rss,
            "cpu_seconds": taken.user + taken.system,
        }


class TableMetrics:
    """What updating rows took, and what they take."""

    def __init__(self, work: UpdateStats) -> None:
        """Show ``work``."""
        self._work = work

    def collect(self) -> Iterator[Family]:
        """All there is."""
        work = self._work
        yield names.UPDATED_ROWS.family(*(((table,), rows) for table, rows in list(work.updated_rows.items())))
        yield names.UPDATE_SECONDS.family(*(((table,), spent) for table, spent in list(work.update_seconds.items())))
        held = list(work.held_bytes.items())
        yield names.TABLE_SHARD_BYTES.family(
            *(((table, name), size) for table, all_of in held for name, size in all_of.items())
        )

    def snapshot(self) -> dict[str, Any]:
        """By table: rows updated, the seconds that took, and the bytes of each array held here."""
        work = self._work
        updates = {
            table: {"updated": rows, "seconds": work.update_seconds.get(table, 0.0)}
            for table, rows in list(work.updated_rows.items())
        }
        return {"updates": updates, "held_bytes": {table: dict(held) for table, held in list(work.held_bytes.items())}}
