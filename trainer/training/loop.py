"""The algorithm, on one screen: read, sample, pull active rows, compute, push; evaluate and keep the best."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from kvstore.store import RowGradient, RowStore
from trainer.config.model_sections import OptimizerConfig
from trainer.config.schema import TrainConfig
from trainer.data.prefetch import Prefetcher
from trainer.data.schedule import BatchSchedule
from trainer.evaluation.ranking import EvalMetrics
from trainer.model.batches import Batch, batches
from trainer.model.engines.base import Engine
from trainer.model.negatives import NegativeSampler
from trainer.model.spec import ModelSpec
from trainer.model.towers import Towers
from trainer.model.weighting import FrequencyWeighting
from trainer.runs.events import EpochEvent, EventSink, PhaseEvent, StepEvent
from trainer.training.lr_schedule import lr_factor
from trainer.training.state import BatchTimers, TrainState

Evaluator = Callable[[], EvalMetrics | None]
Keep = Callable[[int], None]
AfterStep = Callable[[TrainState], bool]
WatchAhead = Callable[[Prefetcher[Batch]], None]


@dataclass(frozen=True)
class TrainLoop:
    """The parts of a training run, and the run itself."""

    train: TrainConfig
    optimizer: OptimizerConfig
    select: str
    model: ModelSpec
    store: RowStore
    engine: Engine
    schedule: BatchSchedule
    sampler: NegativeSampler
    weighting: FrequencyWeighting
    towers: Towers
    evaluator: Evaluator
    save_embeddings: Keep
    after_step: AfterStep
    emit: EventSink
    on_prefetcher: WatchAhead = lambda _: None

    @property
    def total_steps(self) -> int:
        """Steps that the run takes unless it stops early."""
        steps = self.train.epochs * self.schedule.steps
        return min(steps, self.train.max_steps or steps)

    def run(self, progress: TrainState) -> bool:
        """Train on from ``progress``, which is kept up to date, until the run is done; False if asked to stop before.

        It is done with its epochs or steps, or when the valid split has shown no new best for long enough.
        """
        timers = BatchTimers()
        with Prefetcher(self._batches(progress, timers), interrupt=self.schedule.interrupt) as ahead:
            self.on_prefetcher(ahead)
            waiting = iter(ahead)
            while not self._is_done(progress):
                if self._run_epoch(progress, waiting, timers):
                    return False
                last = progress.step >= self.total_steps
                self._end_epoch(progress, evaluate=last or progress.epochs % self.train.eval_every_epochs == 0)
                if progress.epoch_step == self.schedule.steps:
                    progress.epoch, progress.epoch_step = progress.epoch + 1, 0
        progress.stopped_early = progress.step < self.total_steps
        if progress.best is None:
            self._keep(progress)
        return True

    def _is_done(self, progress: TrainState) -> bool:
        """Whether nothing is left to do. A run may be taken up with all its steps behind it, but not their end."""
        stale = self.train.patience is not None and progress.evals_since_best >= self.train.patience
        return stale or (progress.step >= self.total_steps and progress.last_epoch_end_step == progress.step)

    def _batches(self, progress: TrainState, timers: BatchTimers) -> Iterator[Batch]:
        """This worker's part of every step that is left, unless the run stops early."""
        left = progress.epoch_step + self.total_steps - progress.step
        return batches(
            self.schedule,
            self.sampler,
            epoch=progress.epoch,
            first_step=progress.epoch_step,
            rank=self.store.rank,
            workers=self.store.workers,
            epochs=max(0, -(-left // self.schedule.steps)),
            wait_timer=timers.data,
            sample_timer=timers.sample,
            transform=lambda batch: self.towers.add_tower_inputs(self.weighting.apply(batch)),
        )

    def _run_epoch(self, progress: TrainState, waiting: Iterator[Batch], timers: BatchTimers) -> bool:
        """Take the rest of the epoch's steps; True if asked to stop."""
        for _ in range(min(self.schedule.steps - progress.epoch_step, self.total_steps - progress.step)):
            with progress.training():
                with progress.timed_batch_wait(timers):
                    batch = next(waiting)
                self._step(batch, progress)
                with progress.timed("sync"):
                    if self.after_step(progress):
                        return True
        return False

    def _step(self, batch: Batch, progress: TrainState) -> None:
        factor = lr_factor(self.optimizer, progress.step, self.total_steps)
        active = self.towers.active(batch)
        with progress.timed("pull"):
            block = self.store.pull(active)
        with progress.timed("gradients"):
            vectors, tape = self.towers.forward(batch, block)
            loss, by_vectors = self.engine.gradients(batch, vectors)
            gradients = self.towers.backward(batch, tape, by_vectors)
        with progress.timed("push"):
            self.store.set_lr_factor(factor)
            self.store.push({name: RowGradient(rows_A, gradients.tables[name]) for name, rows_A in active.items()})
            self.towers.update(gradients.dense, factor)
        for table in self.model.tables:
            progress.traffic.count_pull(len(active[table.name]), table.dim)
            progress.traffic.count_push(len(active[table.name]), table)
        progress.step += 1
        progress.epoch_step += 1
        progress.examples += len(batch)
        progress.examples_total += batch.global_size
        progress.loss_sum += loss * batch.global_size
        own_loss = loss * batch.global_size / max(len(batch), 1)
        self.emit(
            StepEvent(
                epoch=progress.epochs,
                step=progress.step,
                steps=self.total_steps,
                examples=progress.examples_total,
                loss=own_loss,
                learning_rate=self.optimizer.learning_rate * factor,
                local_examples=len(batch),
                rows={name: len(rows_A) for name, rows_A in active.items()},
                seconds=progress.step_seconds(),
            )
        )

    def _end_epoch(self, progress: TrainState, *, evaluate: bool) -> None:
        loss_sum, examples = self.store.all_reduce(np.array([progress.loss_sum, progress.examples]))
        progress.loss_sum, progress.examples = 0.0, 0
        loss = float(loss_sum / max(examples, 1.0))
        metrics = None
        if evaluate:
            self.emit(PhaseEvent(name="evaluate", epoch=progress.epochs, step=progress.step))
            with progress.timed("evaluate"):
                metrics = self.evaluator()
            if metrics is not None:
                self._keep_if_best(metrics, progress)
        progress.last_epoch_end_step = progress.step
        self.emit(EpochEvent(epoch=progress.epochs, step=progress.step, loss=loss, valid=metrics))

    def _keep_if_best(self, metrics: EvalMetrics, progress: TrainState) -> None:
        if progress.best is None or metrics[self.select] > progress.best[self.select]:
            progress.best, progress.best_epoch, progress.evals_since_best = metrics, progress.epochs, 0
            self._keep(progress)
        else:
            progress.evals_since_best += 1

    def _keep(self, progress: TrainState) -> None:
        self.emit(PhaseEvent(name="embeddings", epoch=progress.epochs, step=progress.step))
        with progress.timed("save"):
            self.save_embeddings(progress.epochs)
