"""How far a run is, what its steps took and what they moved: what a report is made of and a checkpoint keeps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pydantic import TypeAdapter

from kvstore.store import SaveResult, Traffic
from trainer.data.stopwatch import Stopwatch
from trainer.evaluation.ranking import EvalMetrics

STEP_PHASES = ("data", "sample", "pull", "gradients", "push")
PHASES = (*STEP_PHASES, "sync", "evaluate", "save")
BACKGROUND = ("data", "sample")


@dataclass
class CheckpointStats:
    """The checkpoints of a run: how many, their bytes, and how long training stood still for them."""

    written: int = 0
    failed: int = 0
    bytes: int = 0
    pause_seconds: float = 0.0
    longest_pause_seconds: float = 0.0

    def add(self, saved: SaveResult) -> None:
        """Count a checkpoint that is whole."""
        self.written += 1
        self.bytes += saved.bytes
        self.pause_seconds += saved.pause_seconds
        self.longest_pause_seconds = max(self.longest_pause_seconds, saved.pause_seconds)


@dataclass
class BatchTimers:
    """What making batches in the background takes: waiting for windows of interactions, and sampling."""

    data: Stopwatch = field(default_factory=Stopwatch)
    sample: Stopwatch = field(default_factory=Stopwatch)
    counted: tuple[float, float] = (0.0, 0.0)


@dataclass
class TrainState:
    """How far a run is. ``epoch`` epochs are behind it, with ``epoch_step`` steps of the next and ``step`` in all.

    ``ended_step`` is the step after which an epoch, or the run, was last summed up and judged.
    ``seconds`` are those of training by phase: ``data`` and ``sample`` are what it waited for windows of interactions,
    and for negatives and active rows. Both are made in the background, where they took ``background`` seconds.
    ``loss_sum``, ``examples`` (both of this epoch) and ``traffic`` are this worker's own share; the rest is the run's.
    """

    epoch: int = 0
    epoch_step: int = 0
    step: int = 0
    last_epoch_end_step: int = 0
    examples: int = 0
    examples_total: int = 0
    loss_sum: float = 0.0
    best: EvalMetrics | None = None
    best_epoch: int | None = None
    evals_since_best: int = 0
    stopped_early: bool = False
    train_seconds: float = 0.0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    background: dict[str, float] = field(default_factory=lambda: dict.fromkeys(BACKGROUND, 0.0))
    traffic: Traffic = field(default_factory=Traffic)
    saves: CheckpointStats = field(default_factory=CheckpointStats)

    @property
    def epochs(self) -> int:
        """Epochs that were begun."""
        return self.epoch + (self.epoch_step > 0)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count the seconds of a block under ``phase``."""
        begin = time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - begin

    @contextmanager
    def timed_batch_wait(self, made: BatchTimers) -> Iterator[None]:
        """Count the seconds of a block that waits for a batch: for its data or its sampling, whichever was going on."""
        begin, fetched = time.perf_counter(), made.data.seconds
        yield
        waited = time.perf_counter() - begin
        data = min(waited, made.data.seconds - fetched)
        self.seconds["data"] += data
        self.seconds["sample"] += waited - data
        self.background["data"] += made.data.seconds - made.counted[0]
        self.background["sample"] += made.sample.seconds - made.counted[1]
        made.counted = made.data.seconds, made.sample.seconds

    def step_seconds(self) -> dict[str, float]:
        """The seconds of steps so far, by phase."""
        return {phase: self.seconds[phase] for phase in STEP_PHASES}

    @contextmanager
    def training(self) -> Iterator[None]:
        """Count the seconds of a block as training."""
        begin = time.perf_counter()
        yield
        self.train_seconds += time.perf_counter() - begin

    def counters(self) -> dict[str, float]:
        """What each worker counts for itself, and only the sum over all of them says something of the run."""
        return {"loss_sum": self.loss_sum, "examples": self.examples, **asdict(self.traffic)}

    def to_record(self, totals: dict[str, float]) -> dict[str, Any]:
        """The run's progress as JSON values, with the ``totals`` of the workers' counters."""
        traffic = {name: int(totals[name]) for name in asdict(self.traffic)}
        counted = {"loss_sum": float(totals["loss_sum"]), "examples": int(totals["examples"]), "traffic": traffic}
        return {**asdict(self), **counted}

    @staticmethod
    def from_record(record: dict[str, Any], *, counting: bool) -> TrainState:
        """The progress of ``record``; one worker of all goes on ``counting`` from its totals, the others from 0.

        Raises:
            ValidationError: it is no such record.
        """
        progress = TypeAdapter(TrainState).validate_python(record)
        return progress if counting else replace(progress, loss_sum=0.0, examples=0, traffic=Traffic())
