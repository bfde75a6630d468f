"""What one worker's training measures: by the events that it tells anyway, and by its progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client.core import Metric as Family

from kvstore.store import ROW_ID_BYTES, VALUE_BYTES, TableSpec
from trainer.config.schema import JobConfig
from trainer.data.prefetch import Prefetcher
from trainer.monitoring import names
from trainer.monitoring.names import Histogram
from trainer.runs.events import (
    CheckpointFailed,
    CheckpointSaved,
    EpochEvent,
    Event,
    EventSink,
    PhaseEvent,
    StepEvent,
)
from trainer.training.state import PHASES, STEP_PHASES, TrainState

SAVED, FAILED = "saved", "failed"
"""What may have come of a checkpoint."""


class TrainingMetrics:
    """A collector. The training's thread writes, any other reads: each figure is one that was true a moment ago."""

    def __init__(self, job: JobConfig, tables: Sequence[TableSpec], rank: int, sign: Callable[[], None] = lambda: None):
        """Nothing measured yet. ``sign`` is called with each sign of progress."""
        self.state = "preparing"
        self._job, self._sign = job, sign
        self._progress, self._seconds = TrainState(), dict.fromkeys(PHASES, 0.0)
        self._phases = {phase: Histogram() for phase in PHASES}
        self._tables = {table.name: table for table in tables}
        self._rows = dict.fromkeys(self._tables, 0)
        self._steps = self._examples = 0
        self._last: StepEvent | None = None
        self._last_step: float | None = None
        self._last_progress: float | None = None
        self._rate = job.optimizer.learning_rate
        self._loss: float | None = None
        self._epoch_loss: float | None = None
        self._quality: dict[tuple[str, ...], float] = {}
        self._done = False
        self._ahead: Prefetcher[Any] | None = None
        self._gpu_memory: Callable[[], tuple[int, int] | None] = lambda: None
        self._saves = _SaveMetrics(job) if rank == 0 else None

    def attach(self, progress: TrainState) -> None:
        """Measure the training that goes on from ``progress``, which is kept up to date."""
        self._progress, self._seconds = progress, dict(progress.seconds)
        if self._saves is not None:
            self._saves.last_at = time.time()

    def watch_ahead(self, ahead: Prefetcher[Any]) -> None:
        """Show how many batches wait in ``ahead``."""
        self._ahead = ahead

    def watch_gpu(self, memory: Callable[[], tuple[int, int] | None]) -> None:
        """Show what ``memory`` says: the used and all bytes of the GPU, if there is one."""
        self._gpu_memory = memory

    def wrap(self, emit: EventSink) -> EventSink:
        """What measures by an event, and passes it on to ``emit``."""

        def take_and_emit(event: Event) -> None:
            self.observe(event)
            emit(event)

        return take_and_emit

    def observe(self, event: Event) -> None:
        """Measure by an event of the training."""
        self._last_progress = time.time()
        match event:
            case StepEvent():
                self._take_step(event)
            case EpochEvent():
                self._epoch_loss = event.loss
                self.record_evaluation("valid", event.valid or {})
            case PhaseEvent():
                self.state = event.name
            case CheckpointSaved() | CheckpointFailed() if self._saves is not None:
                self._saves.observe(event)
        self._measure_phases(STEP_PHASES if isinstance(event, StepEvent) else ())
        self._sign()

    def _take_step(self, event: StepEvent) -> None:
        self._last, self._last_step = event, self._last_progress
        self.state = "training"
        self._steps += 1
        self._examples += event.local_examples
        self._rate = event.learning_rate
        if event.local_examples:
            self._loss = event.loss
        for table, rows in event.rows.items():
            self._rows[table] += rows

    def _measure_phases(self, always: Sequence[str] = ()) -> None:
        """Count what has come to each phase since the last time; those of ``always`` even if that is nothing."""
        for phase, seconds in self._progress.seconds.items():
            spent = seconds - self._seconds[phase]
            if spent > 0 or phase in always:
                self._phases[phase].observe(spent)
                self._seconds[phase] = seconds

    def record_evaluation(self, split: str, metrics: Mapping[str, float]) -> None:
        """Show how good the embeddings are on ``split``."""
        # A new dict, since somebody may be reading the one there is.
        self._quality = dict(self._quality)
        self._quality.update({(split, name): value for name, value in metrics.items() if "@" in name})

    def diverged(self) -> None:
        """Show that the loss is no longer a number."""
        self._loss = float("nan")

    def done(self) -> None:
        """Show that nothing is left to do."""
        self._measure_phases()
        self._done, self.state = True, "done"

    def collect(self) -> Iterator[Family]:
        """All there is."""
        yield names.EXAMPLES.single(self._examples)
        yield names.STEPS.single(self._steps)
        yield from self._position()
        yield names.LOSS.single(self._loss)
        yield names.EPOCH_LOSS.single(self._epoch_loss)
        yield names.LEARNING_RATE.single(self._rate)
        yield names.EVAL_METRIC.family(*self._quality.items())
        yield names.PHASE_DURATION.histogram(*(((phase,), taken) for phase, taken in self._phases.items()))
        yield from self._traffic()
        yield names.PREFETCHED_BATCHES.single(self._ahead.queued() if self._ahead else 0)
        yield names.LAST_STEP.single(self._last_step)
        yield names.LAST_PROGRESS.single(self._last_progress)
        if memory := self._gpu_memory():
            used, limit = memory
            yield names.GPU_USED.single(used)
            yield names.GPU_LIMIT.single(limit)
        if self._saves is not None:
            yield from self._saves.collect()

    def snapshot(self) -> dict[str, Any]:
        """What this worker has trained on, and its seconds by phase."""
        seconds = {phase: taken.sum for phase, taken in self._phases.items()}
        return {"steps": self._steps, "examples": self._examples, "phase_seconds": seconds}

    def _position(self) -> Iterator[Family]:
        """Where the run stands."""
        last = self._last
        yield names.STEP.single(last.step if last else self._progress.step)
        yield names.PLANNED_STEPS.single(last.steps if last else None)
        yield names.EPOCH.single(last.epoch if last else self._progress.epochs)
        ratio = last.step / last.steps if last else 0.0
        yield names.PROGRESS.single(1.0 if self._done else ratio)

    def _traffic(self) -> Iterator[Family]:
        """Rows and bytes that steps moved, by table, as ``kvstore.store.Traffic`` counts them."""
        rows = {(name,): count for name, count in self._rows.items()}
        row_bytes = {(name,): ROW_ID_BYTES + table.dim * VALUE_BYTES for name, table in self._tables.items()}
        moved = [(name, count * row_bytes[name]) for name, count in rows.items()]
        yield names.ACTIVE_ROWS.family(*rows.items())
        yield names.PULLED_BYTES.family(*moved)
        yield names.PUSHED_BYTES.family(*moved)
        yield names.DENSE_EQUIVALENT_BYTES.family(
            *(((name,), self._steps * table.bytes) for name, table in self._tables.items())
        )


class _SaveMetrics:
    """Checkpoints, which rank 0 knows of."""

    def __init__(self, job: JobConfig) -> None:
        self.last_at: float | None = None
        self._interval = job.checkpoint.interval_seconds
        self._saved = self._failed = self._bytes = 0
        self._seconds = self._pause = 0.0
        self._last_bytes: int | None = None

    def observe(self, event: CheckpointSaved | CheckpointFailed) -> None:
        """Count a checkpoint that is complete, or could not be written."""
        if isinstance(event, CheckpointFailed):
            self._failed += 1
            return
        self._saved += 1
        self._seconds += event.seconds
        self._pause += event.pause_seconds
        self._bytes += event.bytes
        self._last_bytes, self.last_at = event.bytes, time.time()

    def collect(self) -> Iterator[Family]:
        """All there is."""
        yield names.CHECKPOINTS.family(((SAVED,), self._saved), ((FAILED,), self._failed))
        yield names.CHECKPOINT_WRITE_SECONDS.single(self._seconds)
        yield names.CHECKPOINT_PAUSE.single(self._pause)
        yield names.CHECKPOINT_BYTES.single(self._bytes)
        yield names.LAST_CHECKPOINT_BYTES.single(self._last_bytes)
        yield names.LAST_CHECKPOINT.single(self.last_at)
        yield names.CHECKPOINT_INTERVAL.single(self._interval)
