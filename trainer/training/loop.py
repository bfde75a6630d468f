"""The training loop: take steps; evaluate and keep the best at the ends of epochs.

    loop = TrainLoop(job, model, store, step, batches, embeddings, checkpoints, hooks)
    finished = loop.run(TrainState())       # False: stopped on request

The parts are protocols or small classes, so that tests/trainer/training/test_loop.py runs the loop with fakes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from crossfade.base.arrays import IntArray
from crossfade.base.errors import DivergedError
from crossfade.kvstore.store import RowStore
from crossfade.trainer.config.lr_schedule import lr_factor
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.config.sections import resolved
from crossfade.trainer.evaluation.paired_gain import Evaluation
from crossfade.trainer.evaluation.ranking import EvalMetrics
from crossfade.trainer.model.batches import Batch, BatchTimers
from crossfade.trainer.model.spec import ModelSpec
from crossfade.trainer.runs.events import EpochEvent, PhaseEvent, StepEvent
from crossfade.trainer.training.hooks import TrainingHooks
from crossfade.trainer.training.prefetcher import Prefetcher
from crossfade.trainer.training.state import TrainState
from crossfade.trainer.training.steps import Step


class Batches(Protocol):
    """Makes this worker's batches; see ``BatchSource``."""

    @property
    def steps_per_epoch(self) -> int:
        """Return the steps of an epoch."""

    def remaining(self, state: TrainState, total_steps: int, timers: BatchTimers) -> Iterator[Batch]:
        """Yield a batch for every step after ``state``."""

    def interrupt(self) -> None:
        """Make a thread that waits for data raise an error soon."""


class Embeddings(Protocol):
    """Evaluates the vectors that are being trained and writes the best; see ``BestEmbeddings``."""

    def evaluate(self) -> Evaluation | None:
        """Compute the metrics on the valid split; None without one."""

    def save(self, epoch: int) -> None:
        """Write the vectors after ``epoch``."""


class Checkpoints(Protocol):
    """Writes checkpoints; see ``CheckpointManager``."""

    def after_step(self, state: TrainState) -> bool:
        """Write a checkpoint if one is due; return whether all workers stop here."""


@dataclass(frozen=True)
class TrainLoop:
    """Trains one worker's part of a run. Every worker takes the same number of steps."""

    job: JobConfig
    model: ModelSpec
    store: RowStore
    step: Step
    batches: Batches
    embeddings: Embeddings
    checkpoints: Checkpoints
    hooks: TrainingHooks

    @property
    def total_steps(self) -> int:
        """Return the steps that the run takes unless it stops early."""
        steps = resolved(self.job.train.epochs) * self.batches.steps_per_epoch
        return min(steps, self.job.train.max_steps or steps)

    def run(self, state: TrainState) -> bool:
        """Continue from ``state``, which is updated, and return True once the run is finished, False if it was stopped.

        It is finished after its epochs or steps, or when the valid split has shown no gain beyond its standard error
        for ``train.patience`` evaluations.
        """
        if self.job.evaluate.at_start and state.step == 0:
            evaluation = self._evaluated(state)
            state.at_start = evaluation and evaluation.metrics
        timers = BatchTimers()
        source = self.batches.remaining(state, self.total_steps, timers)
        with Prefetcher(source, interrupt=self.batches.interrupt) as prefetcher:
            batches = iter(prefetcher)
            while not self._is_finished(state):
                if self._run_epoch(state, batches, timers):
                    return False
                self._end_epoch(state)
        state.stopped_early = state.step < self.total_steps
        if state.best is None:
            self._save_embeddings(state)
        return True

    def _is_finished(self, state: TrainState) -> bool:
        patience = self.job.train.patience
        # A run may resume after its last step, but before the end of its last epoch.
        all_steps = state.step >= self.total_steps and state.last_epoch_end_step == state.step
        return all_steps or (patience is not None and state.evals_since_best >= patience)

    def _run_epoch(self, state: TrainState, batches: Iterator[Batch], timers: BatchTimers) -> bool:
        """Take the remaining steps of the epoch; return whether all workers stop."""
        for _ in range(min(self.batches.steps_per_epoch - state.epoch_step, self.total_steps - state.step)):
            with state.training():
                with state.timed_batch_wait(timers):
                    batch = next(batches)
                self._step(batch, state)
                with state.timed("sync"):
                    if self.checkpoints.after_step(state):
                        return True
        return False

    def _step(self, batch: Batch, state: TrainState) -> None:
        factor = lr_factor(self.job.optimizer, state.step, self.total_steps)
        try:
            loss, active = self.step.take(batch, factor, state)
        except DivergedError as error:
            raise DivergedError(f"step {state.step + 1}: ", error.args, row=error.row) from error
        rows = {table: len(active[table.name]) for table in self.model.tables}
        state.count_step(batch, loss, rows)
        self.hooks.on_event(self._step_event(batch, state, loss, factor, active))

    def _step_event(
        self, batch: Batch, state: TrainState, loss: float, factor: float, active: Mapping[str, IntArray]
    ) -> StepEvent:
        return StepEvent(
            epoch=state.epochs,
            step=state.step,
            steps=self.total_steps,
            examples=state.examples_total,
            loss=loss * batch.global_size / max(len(batch), 1),
            learning_rate=resolved(self.job.optimizer.learning_rate) * factor,
            local_examples=len(batch),
            rows={name: len(rows_A) for name, rows_A in active.items()},
            seconds=state.step_seconds(),
        )

    def _end_epoch(self, state: TrainState) -> None:
        """Evaluate, if that is due, and begin the next epoch."""
        loss_sum, examples = self.store.all_reduce(np.array([state.loss_sum, state.examples]))
        state.loss_sum, state.examples = 0.0, 0
        is_due = state.epochs % self.job.train.eval_every_epochs == 0 or state.step >= self.total_steps
        metrics = self._evaluate(state) if is_due else None
        state.last_epoch_end_step = state.step
        loss = float(loss_sum / max(examples, 1.0))
        self.hooks.on_event(EpochEvent(epoch=state.epochs, step=state.step, loss=loss, valid=metrics))
        if state.epoch_step == self.batches.steps_per_epoch:
            state.epoch, state.epoch_step = state.epoch + 1, 0

    def _evaluated(self, state: TrainState) -> Evaluation | None:
        self.hooks.on_event(PhaseEvent(name="evaluate", epoch=state.epochs, step=state.step))
        with state.timed("evaluate"):
            return self.embeddings.evaluate()

    def _evaluate(self, state: TrainState) -> EvalMetrics | None:
        evaluation = self._evaluated(state)
        if evaluation is None:
            return None
        if state.record_evaluation(evaluation, self.job.evaluate.best_metric):
            self._save_embeddings(state)
        return evaluation.metrics

    def _save_embeddings(self, state: TrainState) -> None:
        self.hooks.on_event(PhaseEvent(name="embeddings", epoch=state.epochs, step=state.step))
        with state.timed("save"):
            self.embeddings.save(state.epochs)
