"""What one worker's training measures: by the events that it tells anyway, and by its progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric as Family

from kvstore.store import ROW_ID_BYTES, VALUE_BYTES, TableSpec
from trainer import metric_names as names
from trainer.data.read_ahead import ReadAhead
from trainer.job import Job
from trainer.progress import PHASES, STEP_PHASES, Progress

SAVED, FAILED = "saved", "failed"
"""What may have come of a checkpoint."""


class TrainingMetrics:
    """What one worker's training measures."""

    def __init__(self, job: Job, tables: Sequence[TableSpec], rank: int, sign: Callable[[], None] = lambda: None):
        """Nothing measured yet. ``sign`` is called with each sign of progress."""
        self._job, self._sign = job, sign
        self._registry = registry = CollectorRegistry()
        self._progress = Progress()
        self._seconds: dict[str, float] = {}
        self._ahead: ReadAhead[Any] | None = None
        self._gpu_memory: Callable[[], tuple[int, int] | None] = lambda: None
        self.state = "preparing"
        self._examples, self._steps = names.EXAMPLES.counter(registry), names.STEPS.counter(registry)
        self._step, self._planned = names.STEP.gauge(registry), names.PLANNED_STEPS.gauge(registry)
        self._epoch, self._ratio = names.EPOCH.gauge(registry), names.PROGRESS.gauge(registry)
        self._loss, self._epoch_loss = names.LOSS.gauge(registry), names.EPOCH_LOSS.gauge(registry)
        self._quality = names.QUALITY.gauge(registry)
        self._last_step, self._last_progress = names.LAST_STEP.gauge(registry), names.LAST_PROGRESS.gauge(registry)
        names.LEARNING_RATE.gauge(registry).set(job.optimizer.learning_rate)
        phases = names.PHASE_SECONDS.histogram(registry)
        self._phases = {phase: phases.labels(phase) for phase in PHASES}
        self._traffic = _TrafficMetrics(tables, registry)
        self._saves = _SaveMetrics(job, registry) if rank == 0 else None

    def follow(self, progress: Progress) -> None:
        """Measure the training that goes on from ``progress``, which is kept up to date."""
        self._progress, self._seconds = progress, dict(progress.seconds)
        self._step.set(progress.step)
        if self._saves is not None:
            self._saves.begin()

    def watch_ahead(self, ahead: ReadAhead[Any]) -> None:
        """Show how many batches wait in ``ahead``."""
        self._ahead = ahead

    def watch_gpu(self, memory: Callable[[], tuple[int, int] | None]) -> None:
        """Show what ``memory`` says: the used and all bytes of the GPU, if there is one."""
        self._gpu_memory = memory

    def first(self, emit: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
        """What measures by an event, and passes it on to ``emit``."""

        def take_and_emit(event: dict[str, Any]) -> None:
            self.take(event)
            emit(event)

        return take_and_emit

    def take(self, event: dict[str, Any]) -> None:
        """Measure by an event of the training."""
        kind = event["event"]
        if kind == "step":
            self._take_step(event)
        elif kind == "epoch":
            self._epoch_loss.set(event["loss"])
            self.judged("valid", event.get("valid") or {})
        elif kind == "phase":
            self.state = event["name"]
        elif kind in {"saved", "save_failed"} and self._saves is not None:
            self._saves.take(event)
        self._measure_phases(STEP_PHASES if kind == "step" else ())
        self._last_progress.set_to_current_time()
        self._sign()

    def _take_step(self, event: dict[str, Any]) -> None:
        self._examples.inc(event["own_examples"])
        self._steps.inc()
        self._step.set(event["step"])
        self._planned.set(event["steps"])
        self._epoch.set(event["epoch"])
        self._ratio.set(event["step"] / event["steps"])
        if event["own_examples"]:
            self._loss.set(event["loss"])
        self._last_step.set_to_current_time()
        self._traffic.take(event["rows"])

    def _measure_phases(self, always: Sequence[str] = ()) -> None:
        """Count what has come to each phase since the last time; those of ``always`` even if that is nothing."""
        for phase, seconds in self._progress.seconds.items():
            spent = seconds - self._seconds.get(phase, 0.0)
            if spent > 0 or phase in always:
                self._phases[phase].observe(spent)
                self._seconds[phase] = seconds

    def judged(self, split: str, metrics: dict[str, float]) -> None:
        """Show how good the embeddings are on ``split``."""
        for name, value in metrics.items():
            if name != "queries":
                self._quality.labels(split, name).set(value)

    def diverged(self) -> None:
        """Show that the loss is no longer a number."""
        self._loss.set(float("nan"))

    def done(self) -> None:
        """Show that nothing is left to do."""
        self._measure_phases()
        self._ratio.set(1.0)
        self.state = "done"

    def collect(self) -> Iterator[Family]:
        """All there is."""
        yield from self._registry.collect()
        yield names.READY_BATCHES.family(((), self._ahead.ready() if self._ahead else 0))
        if memory := self._gpu_memory():
            used, limit = memory
            yield names.GPU_USED.family(((), used))
            yield names.GPU_LIMIT.family(((), limit))


class _TrafficMetrics:
    """Rows and bytes that steps move, by table."""

    def __init__(self, tables: Sequence[TableSpec], registry: CollectorRegistry) -> None:
        totals = (names.ACTIVE_ROWS, names.PULLED_BYTES, names.PUSHED_BYTES, names.DENSE_BYTES)
        counters = [total.counter(registry) for total in totals]
        self._counters = {table.name: [counter.labels(table.name) for counter in counters] for table in tables}
        self._tables = {table.name: table for table in tables}

    def take(self, rows: Mapping[str, int]) -> None:
        """Count a step that touched so many rows of each table, as ``kvstore.store.Traffic`` does."""
        for name, count in rows.items():
            table, (touched, pulled, pushed, dense) = self._tables[name], self._counters[name]
            moved = count * (ROW_ID_BYTES + table.dim * VALUE_BYTES)
            touched.inc(count)
            pulled.inc(moved)
            pushed.inc(moved)
            dense.inc(table.bytes)


class _SaveMetrics:
    """Checkpoints, which rank 0 knows of."""

    def __init__(self, job: Job, registry: CollectorRegistry) -> None:
        results = names.CHECKPOINTS.counter(registry)
        self._saved, self._failed = results.labels(SAVED), results.labels(FAILED)
        self._seconds, self._pause = (
            names.CHECKPOINT_SECONDS.counter(registry),
            names.CHECKPOINT_PAUSE.counter(registry),
        )
        self._bytes = names.CHECKPOINT_BYTES.counter(registry)
        self._last_bytes = names.LAST_CHECKPOINT_BYTES.gauge(registry)
        self._last = names.LAST_CHECKPOINT.gauge(registry)
        if job.checkpoint.every_seconds is not None:
            names.CHECKPOINT_INTERVAL.gauge(registry).set(job.checkpoint.every_seconds)

    def begin(self) -> None:
        """The age of the last checkpoint counts from now on."""
        self._last.set_to_current_time()

    def take(self, event: dict[str, Any]) -> None:
        """Count a checkpoint that became whole, or did not."""
        if event["event"] == "save_failed":
            self._failed.inc()
            return
        self._saved.inc()
        self._seconds.inc(event["seconds"])
        self._pause.inc(event["pause_seconds"])
        self._bytes.inc(event["bytes"])
        self._last_bytes.set(event["bytes"])
        self._last.set_to_current_time()
