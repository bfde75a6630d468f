"""The algorithm, on one screen: read, sample, pull active rows, compute, push; evaluate and keep the best."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kvstore.store import RowGradient, RowStore, Traffic
from trainer.data.batches import Batch, batches
from trainer.data.read_ahead import ReadAhead
from trainer.data.shards import Schedule
from trainer.engines.base import Engine
from trainer.evaluate import Metrics
from trainer.job import Train
from trainer.model import Model
from trainer.negatives import Sampler

STEP_PHASES = ("data", "pull", "gradients", "push")
PHASES = (*STEP_PHASES, "evaluate", "keep")

Emit = Callable[[dict[str, Any]], None]
Evaluator = Callable[[], Metrics | None]
Keep = Callable[[], None]


@dataclass
class Progress:
    """How far a run is, and what its steps took. ``loss_sum`` and ``examples`` are of this worker and this epoch."""

    epoch: int = 0
    step: int = 0
    examples: int = 0
    examples_total: int = 0
    loss_sum: float = 0.0
    best: Metrics | None = None
    best_epoch: int | None = None
    stale: int = 0
    stopped_early: bool = False
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    traffic: Traffic = field(default_factory=Traffic)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count the seconds of a block under ``phase``."""
        begin = time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - begin


@dataclass(frozen=True)
class Loop:
    """The parts of a training run, and the run itself."""

    train: Train
    select: str
    model: Model
    store: RowStore
    engine: Engine
    schedule: Schedule
    sampler: Sampler
    evaluator: Evaluator
    keep: Keep
    emit: Emit

    @property
    def total_steps(self) -> int:
        """Steps that the run takes unless it stops early."""
        steps = self.train.epochs * self.schedule.steps
        return min(steps, self.train.max_steps or steps)

    def run(self) -> Progress:
        """Train until the epochs or steps are done, or the valid split has shown no new best for long enough."""
        progress = Progress()
        while progress.step < self.total_steps and not self._stale(progress):
            self._run_epoch(progress)
            progress.epoch += 1
            last = progress.step >= self.total_steps
            self._end_epoch(progress, evaluate=last or progress.epoch % self.train.evaluate_every == 0)
        progress.stopped_early = progress.step < self.total_steps
        if progress.best is None:
            self._keep(progress)
        return progress

    def _stale(self, progress: Progress) -> bool:
        return self.train.patience is not None and progress.stale >= self.train.patience

    def _run_epoch(self, progress: Progress) -> None:
        store = self.store
        source = batches(
            self.schedule, self.sampler, epoch=progress.epoch, first_step=0, rank=store.rank, workers=store.workers
        )
        with ReadAhead(source) as ahead:
            waiting = iter(ahead)
            for _ in range(min(self.schedule.steps, self.total_steps - progress.step)):
                with progress.timed("data"):
                    batch = next(waiting)
                self._step(batch, progress)

    def _step(self, batch: Batch, progress: Progress) -> None:
        active = {self.model.query.name: batch.query.rows_A, self.model.item.name: batch.item.rows_A}
        with progress.timed("pull"):
            block = self.store.pull(active)
        with progress.timed("gradients"):
            loss, gradients = self.engine.gradients(batch, block)
        with progress.timed("push"):
            self.store.push({name: RowGradient(rows_A, gradients[name]) for name, rows_A in active.items()})
        for table in self.model.tables:
            progress.traffic.pulled(len(active[table.name]), table.dim)
            progress.traffic.pushed(len(active[table.name]), table)
        progress.step += 1
        progress.examples += len(batch)
        progress.examples_total += batch.global_size
        progress.loss_sum += loss * batch.global_size
        own_loss = loss * batch.global_size / max(len(batch), 1)
        self.emit(
            self._event("step", progress, steps=self.total_steps, examples=progress.examples_total, loss=own_loss)
        )

    @staticmethod
    def _event(kind: str, progress: Progress, **values: Any) -> dict[str, Any]:
        return {"event": kind, "epoch": progress.epoch + (kind == "step"), "step": progress.step, **values}

    def _end_epoch(self, progress: Progress, *, evaluate: bool) -> None:
        loss_sum, examples = self.store.sum(np.array([progress.loss_sum, progress.examples]))
        progress.loss_sum, progress.examples = 0.0, 0
        record = self._event("epoch", progress, loss=loss_sum / max(examples, 1.0))
        if evaluate:
            with progress.timed("evaluate"):
                metrics = self.evaluator()
            if metrics is not None:
                record["valid"] = metrics
                self._keep_if_best(metrics, progress)
        self.emit(record)

    def _keep_if_best(self, metrics: Metrics, progress: Progress) -> None:
        if progress.best is None or metrics[self.select] > progress.best[self.select]:
            progress.best, progress.best_epoch, progress.stale = metrics, progress.epoch, 0
            self._keep(progress)
        else:
            progress.stale += 1

    def _keep(self, progress: Progress) -> None:
        with progress.timed("keep"):
            self.keep()
