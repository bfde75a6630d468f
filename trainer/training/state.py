"""The train state: position, duration and traffic of a run. Reports show it and checkpoints keep it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from crossfade.kvstore.store import SaveResult, TableSpec, Traffic
from crossfade.trainer.evaluation.paired_gain import Evaluation, exceeds_error
from crossfade.trainer.evaluation.ranking import EvalMetrics
from crossfade.trainer.model.batches import Batch, BatchTimers
from crossfade.trainer.training.phases import PHASES, STEP_PHASES


@dataclass
class CheckpointStats:
    """Number and size of a run's checkpoints, and the seconds for which training paused for them."""

    written: int = 0
    failed: int = 0
    bytes: int = 0
    pause_seconds: float = 0.0
    longest_pause_seconds: float = 0.0

    def add(self, saved: SaveResult) -> None:
        """Count a complete checkpoint."""
        self.written += 1
        self.bytes += saved.bytes
        self.pause_seconds += saved.pause_seconds
        self.longest_pause_seconds = max(self.longest_pause_seconds, saved.pause_seconds)


@dataclass
class TrainState:
    """Progress of a run at one worker. The job and the data determine everything else, so resuming needs no more.

    Attributes:
        epoch: epochs that are complete.
        epoch_step: steps taken of the next epoch.
        step: steps taken in all.
        last_epoch_end_step: step after which an epoch, or the run, was last summed up and evaluated.
        examples: examples of this worker in this epoch.
        examples_total: examples of all workers so far.
        loss_sum: sum of this worker's losses in this epoch.
        at_start: metrics before the first step, if they were asked for.
        best: metrics of the best evaluation, after epoch ``best_epoch``.
        evals_since_best: evaluations since the last gain beyond its standard error.
        gained_from: sums of the metric by group of queries (``trainer/evaluation/paired_gain.py``) in the evaluation
            with that gain.
        stopped_early: whether the run ended because of ``train.patience``.
        train_seconds: seconds of training, without evaluations.
        seconds_by_phase: seconds of this worker by phase; ``data`` and ``sample`` are those that training waited.
        traffic: rows and bytes that this worker moved.
        checkpoints: checkpoints of the run.
    """

    epoch: int = 0
    epoch_step: int = 0
    step: int = 0
    last_epoch_end_step: int = 0
    examples: int = 0
    examples_total: int = 0
    loss_sum: float = 0.0
    at_start: EvalMetrics | None = None
    best: EvalMetrics | None = None
    best_epoch: int | None = None
    evals_since_best: int = 0
    gained_from: list[float] | None = None
    stopped_early: bool = False
    train_seconds: float = 0.0
    seconds_by_phase: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    traffic: Traffic = field(default_factory=Traffic)
    checkpoints: CheckpointStats = field(default_factory=CheckpointStats)

    @property
    def epochs(self) -> int:
        """Return how many epochs have started."""
        return self.epoch + (self.epoch_step > 0)

    def count_step(self, batch: Batch, loss: float, active: Mapping[TableSpec, int]) -> None:
        """Count a step on ``batch``: this worker's part of the mean ``loss``, and the ``active`` rows by table."""
        for table, rows in active.items():
            self.traffic.count_pull(rows, table.dim)
            self.traffic.count_push(rows, table)
        self.step += 1
        self.epoch_step += 1
        self.examples += len(batch)
        self.examples_total += batch.global_size
        self.loss_sum += loss * batch.global_size

    def record_evaluation(self, evaluation: Evaluation, best_metric: str) -> bool:
        """Record an evaluation; return whether its metrics are the best so far by ``best_metric``.

        The best are those of the highest mean, however small the gain. ``train.patience`` counts the evaluations since
        the last gain beyond its standard error, over the evaluation that had one before, so that small gains add up.
        Without a query, all metrics are 0 and none are the best.
        """
        metrics, sums_G = evaluation
        if not metrics["queries"]:
            return False
        is_best = self.best is None or metrics[best_metric] > self.best[best_metric]
        if is_best:
            self.best, self.best_epoch = metrics, self.epochs
        if sums_G is None or self.gained_from is None:
            has_gained = is_best
        else:
            has_gained = exceeds_error(sums_G, np.array(self.gained_from))
        if has_gained:
            self.gained_from, self.evals_since_best = None if sums_G is None else sums_G.tolist(), 0
        else:
            self.evals_since_best += 1
        return is_best

    def reset_best(self) -> None:
        """Begin to look for the best again: its embeddings are lost."""
        self.best, self.best_epoch, self.gained_from, self.evals_since_best = None, None, None, 0

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count the seconds of the context under ``phase``."""
        begin = time.perf_counter()
        yield
        self.seconds_by_phase[phase] += time.perf_counter() - begin

    @contextmanager
    def timed_batch_wait(self, timers: BatchTimers) -> Iterator[None]:
        """Count the seconds of the context, which waits for a batch, under ``data`` or ``sample``.

        The part in which the background thread waited for data counts as ``data``, the rest as ``sample``.
        """
        begin, data_before = time.perf_counter(), timers.data.seconds
        yield
        waited = time.perf_counter() - begin
        data = min(waited, timers.data.seconds - data_before)
        self.seconds_by_phase["data"] += data
        self.seconds_by_phase["sample"] += waited - data

    def step_seconds(self) -> dict[str, float]:
        """Return the seconds of all steps so far, by phase."""
        return {phase: self.seconds_by_phase[phase] for phase in STEP_PHASES}

    @contextmanager
    def training(self) -> Iterator[None]:
        """Count the seconds of the context as training."""
        begin = time.perf_counter()
        yield
        self.train_seconds += time.perf_counter() - begin

    def counters(self) -> dict[str, float]:
        """Return what each worker counts for itself; only the sums over all workers describe the run."""
        return {"loss_sum": self.loss_sum, "examples": self.examples, **asdict(self.traffic)}

    def to_record(self, totals: Mapping[str, float]) -> dict[str, Any]:
        """Convert the state to JSON values, with ``totals`` in place of this worker's counters."""
        traffic = {name: int(totals[name]) for name in asdict(self.traffic)}
        counters = {"loss_sum": float(totals["loss_sum"]), "examples": int(totals["examples"]), "traffic": traffic}
        return {**asdict(self), **counters}

    @staticmethod
    def from_record(record: Mapping[str, Any], *, keep_counters: bool) -> TrainState:
        """Restore the state of ``record``. One worker keeps its counters, so that sums count them once.

        Raises:
            ValidationError: ``record`` is not such a state.
        """
        state = TypeAdapter(TrainState).validate_python(record)
        return state if keep_counters else replace(state, loss_sum=0.0, examples=0, traffic=Traffic())
