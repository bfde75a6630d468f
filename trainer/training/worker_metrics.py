"""Metrics of one worker's training, measured by its events and its train state."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from prometheus_client.core import Metric as Family

from crossfade.base.errors import DivergedError
from crossfade.kvstore.store import ROW_ID_BYTES, VALUE_BYTES, TableSpec
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.model.spec import ModelSpec
from crossfade.trainer.monitoring import names
from crossfade.trainer.monitoring.names import Histogram
from crossfade.trainer.monitoring.registry import ProcessMetrics
from crossfade.trainer.runs.events import (
    CheckpointFailed,
    CheckpointSaved,
    EpochEvent,
    Event,
    EventSink,
    PhaseEvent,
    StepEvent,
)
from crossfade.trainer.runs.shown_metrics import is_metric
from crossfade.trainer.training.phases import PHASES, STEP_PHASES
from crossfade.trainer.training.state import TrainState

SAVED, FAILED = "saved", "failed"
"""Results of a checkpoint."""


@contextmanager
def measure_training(
    job: JobConfig, model: ModelSpec, rank: int, process_metrics: ProcessMetrics
) -> Iterator[TrainingMetrics]:
    """Add the metrics of worker ``rank`` to ``process_metrics``. If it diverges, they show a loss that is no number."""
    metrics = TrainingMetrics(job, model.tables, rank, process_metrics.mark_alive)
    process_metrics.register("training", metrics)
    process_metrics.state = lambda: metrics.state
    process_metrics.set_identity(rank)
    try:
        yield metrics
    except DivergedError:
        metrics.mark_diverged()
        raise


class TrainingMetrics:
    """A Prometheus collector of a training. One thread trains and writes; any thread may collect at the same time."""

    def __init__(
        self, job: JobConfig, tables: Sequence[TableSpec], rank: int, mark_alive: Callable[[], None] = lambda: None
    ) -> None:
        """Measure the worker ``rank``, which trains ``tables``; ``mark_alive`` is called with each event."""
        self.state = "preparing"
        """Phase of the run, or ``training`` or ``done``."""
        self._mark_alive = mark_alive
        self._train_state, self._seconds = TrainState(), dict.fromkeys(PHASES, 0.0)
        self._phases = {phase: Histogram() for phase in PHASES}
        self._tables = {table.name: table for table in tables}
        self._rows = dict.fromkeys(self._tables, 0)
        self._steps = self._examples = 0
        self._last: StepEvent | None = None
        self._last_step_at: float | None = None
        self._last_event_at: float | None = None
        self._learning_rate = job.optimizer_spec.learning_rate
        self._loss: float | None = None
        self._epoch_loss: float | None = None
        self._evaluation: dict[tuple[str, ...], float] = {}
        self._done = False
        self._gpu_memory: Callable[[], tuple[int, int] | None] = lambda: None
        self._checkpoints = _CheckpointMetrics(job) if rank == 0 else None

    def attach(self, state: TrainState) -> None:
        """Measure the training that starts at ``state``, which it updates."""
        self._train_state, self._seconds = state, dict(state.seconds_by_phase)
        if self._checkpoints is not None:
            self._checkpoints.last_at = time.time()

    def watch_gpu(self, memory: Callable[[], tuple[int, int] | None]) -> None:
        """Measure the GPU of which ``memory`` returns the used and total bytes; None: there is none."""
        self._gpu_memory = memory

    def observing(self, sink: EventSink) -> EventSink:
        """Wrap ``sink``: the events that it receives are measured first."""

        def observe(event: Event) -> None:
            self.observe(event)
            sink(event)

        return observe

    def observe(self, event: Event) -> None:
        """Measure an event."""
        self._last_event_at = time.time()
        match event:
            case StepEvent():
                self._observe_step(event)
            case EpochEvent():
                self._epoch_loss = event.loss
                self.record_evaluation("valid", event.valid or {})
            case PhaseEvent():
                self.state = event.name
            case CheckpointSaved() | CheckpointFailed() if self._checkpoints is not None:
                self._checkpoints.observe(event)
        self._measure_phases(STEP_PHASES if isinstance(event, StepEvent) else ())
        self._mark_alive()

    def _observe_step(self, event: StepEvent) -> None:
        self._last, self._last_step_at = event, self._last_event_at
        self.state = "training"
        self._steps += 1
        self._examples += event.local_examples
        self._learning_rate = event.learning_rate
        if event.local_examples:
            self._loss = event.loss
        for table, rows in event.rows.items():
            self._rows[table] += rows

    def _measure_phases(self, always: Sequence[str] = ()) -> None:
        """Count the seconds of each phase since the last call; those of ``always`` even if there are none."""
        for phase, seconds in self._train_state.seconds_by_phase.items():
            spent = seconds - self._seconds[phase]
            if spent > 0 or phase in always:
                self._phases[phase].observe(spent)
                self._seconds[phase] = seconds

    def record_evaluation(self, split: str, metrics: Mapping[str, float]) -> None:
        """Record the metrics of the embeddings on ``split``."""
        # A new dict, since another thread may be reading the old one.
        values: dict[tuple[str, ...], float] = {(split, name): metrics[name] for name in metrics if is_metric(name)}
        self._evaluation = {**self._evaluation, **values}

    def mark_diverged(self) -> None:
        """Show a loss that is not a number."""
        self._loss = float("nan")

    def mark_done(self) -> None:
        """Show that the run is finished."""
        self._measure_phases()
        self._done, self.state = True, "done"

    def collect(self) -> Iterator[Family]:
        """Yield the current metrics."""
        yield names.EXAMPLES.single(self._examples)
        yield names.STEPS.single(self._steps)
        yield from self._position()
        yield names.LOSS.single(self._loss)
        yield names.EPOCH_LOSS.single(self._epoch_loss)
        yield names.LEARNING_RATE.single(self._learning_rate)
        yield names.EVAL_METRIC.family(*self._evaluation.items())
        yield names.PHASE_DURATION.histogram(*(((phase,), seconds) for phase, seconds in self._phases.items()))
        yield from self._traffic()
        yield names.LAST_STEP.single(self._last_step_at)
        yield names.LAST_PROGRESS.single(self._last_event_at)
        if memory := self._gpu_memory():
            used, limit = memory
            yield names.GPU_USED.single(used)
            yield names.GPU_LIMIT.single(limit)
        if self._checkpoints is not None:
            yield from self._checkpoints.collect()

    def snapshot(self) -> dict[str, Any]:
        """Return this worker's part of a load event: its steps, examples and seconds by phase."""
        seconds = {phase: histogram.sum for phase, histogram in self._phases.items()}
        return {"steps": self._steps, "examples": self._examples, "phase_seconds": seconds}

    def _position(self) -> Iterator[Family]:
        last = self._last
        yield names.STEP.single(last.step if last else self._train_state.step)
        yield names.PLANNED_STEPS.single(last.steps if last else None)
        yield names.EPOCH.single(last.epoch if last else self._train_state.epochs)
        ratio = last.step / last.steps if last else 0.0
        yield names.PROGRESS.single(1.0 if self._done else ratio)

    def _traffic(self) -> Iterator[Family]:
        """Yield the rows and bytes that steps moved, by table, counted as ``crossfade.kvstore.store.Traffic`` does."""
        rows = {(name,): count for name, count in self._rows.items()}
        row_bytes = {(name,): ROW_ID_BYTES + table.dim * VALUE_BYTES for name, table in self._tables.items()}
        yield names.ACTIVE_ROWS.family(*rows.items())
        yield names.PUSHED_BYTES.family(*((name, count * row_bytes[name]) for name, count in rows.items()))
        yield names.DENSE_EQUIVALENT_BYTES.family(
            *(((name,), self._steps * table.bytes) for name, table in self._tables.items())
        )


class _CheckpointMetrics:
    """Metrics of checkpoints, which only rank 0 has."""

    def __init__(self, job: JobConfig) -> None:
        self.last_at: float | None = None
        self._interval = job.checkpoint.interval_seconds
        self._saved = self._failed = 0
        self._pause = 0.0
        self._last_bytes: int | None = None

    def observe(self, event: CheckpointSaved | CheckpointFailed) -> None:
        if isinstance(event, CheckpointFailed):
            self._failed += 1
            return
        self._saved += 1
        self._pause += event.pause_seconds
        self._last_bytes, self.last_at = event.bytes, time.time()

    def collect(self) -> Iterator[Family]:
        yield names.CHECKPOINTS.family(((SAVED,), self._saved), ((FAILED,), self._failed))
        yield names.CHECKPOINT_PAUSE.single(self._pause)
        yield names.LAST_CHECKPOINT_BYTES.single(self._last_bytes)
        yield names.LAST_CHECKPOINT.single(self.last_at)
        yield names.CHECKPOINT_INTERVAL.single(self._interval)
