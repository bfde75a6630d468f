"""Checkpoints during training, and stopping with one.

About once a second the workers synchronize: one all-reduce decides for all whether a checkpoint is due and
whether to stop, and sums their counters. Rank 0 then starts a checkpoint (``checkpoint_writer``) and trains on.

Of the run itself a checkpoint holds only the train state, a position (epoch, step) and counters: the job, the data and
the seed determine the content of every step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np

from crossfade.kvstore.store import RowStore, Traffic
from crossfade.trainer.config.run_sections import CheckpointConfig
from crossfade.trainer.runs.events import TotalsEvent
from crossfade.trainer.training.checkpoint_metadata import CheckpointMetadata
from crossfade.trainer.training.checkpoint_writer import CheckpointWriter
from crossfade.trainer.training.hooks import TrainingHooks
from crossfade.trainer.training.state import TrainState

_SYNC_SECONDS = 1.0
_MAX_SYNC_STEPS = 1024


@dataclass(frozen=True)
class StopResult:
    """A run has stopped on request after ``step``: with a checkpoint of it, unless that could not be written."""

    step: int
    checkpoint: str | None

    def explain(self) -> str:
        """Describe it as the end of a sentence that begins with 'stopped'."""
        return f"after step {self.step:,}, " + (
            "of which there is a checkpoint" if self.checkpoint else "whose checkpoint could not be written"
        )


class CheckpointManager:
    """Synchronizes the workers, and has rank 0 write checkpoints when they are due. Every worker has one.

    Use it as a context manager: leaving it waits for a checkpoint that is being written, unless an error ends the run.
    """

    def __init__(
        self,
        store: RowStore,
        config: CheckpointConfig,
        folder: str,
        metadata: CheckpointMetadata,
        hooks: TrainingHooks,
        *,
        extra_files: Callable[[], dict[str, bytes]] = dict,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Write checkpoints of ``store`` to ``folder``; ``extra_files`` returns further files of each, by name."""
        self._store, self._config, self._hooks, self._clock = store, config, hooks, clock
        self._writer = CheckpointWriter(store, folder, config.keep_latest, metadata, hooks.on_event, extra_files, clock)
        self._is_first = store.rank == 0
        self._requests_met = 0
        self._next_sync_step = 0
        self._last_sync = (0, clock())
        self._totals_at = -np.inf
        self._saved_at = clock()

    def __enter__(self) -> CheckpointManager:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._writer.close(abandon=kind is not None)

    def begin(self, state: TrainState) -> None:
        """Prepare for a run that starts at ``state``: delete later checkpoints that were not finished."""
        self._next_sync_step = state.step + 1
        self._last_sync = (state.step, self._clock())
        self._saved_at = self._clock()
        if self._is_first:
            self._writer.begin(state)

    def after_step(self, state: TrainState) -> bool:
        """Write a checkpoint if one is due; return whether all workers stop here. Every worker calls this."""
        return state.step >= self._next_sync_step and self._sync(state)

    def _sync(self, state: TrainState) -> bool:
        step, since = self._last_sync
        now = self._clock()
        step_seconds = (now - since) / max(1, state.step - step) if self._is_first else 0.0
        due = self._is_first and self._is_due(state.step, now)
        counters = state.counters()
        local = [self._hooks.stop_requested(), due, step_seconds, *counters.values()]
        stop, due, step_seconds, *sums = self._store.all_reduce(np.array(local, dtype=np.float64))
        totals = dict(zip(counters, sums, strict=True))
        self._last_sync = (state.step, self._clock())
        self._next_sync_step = state.step + self._steps_to_sync(state.step, step_seconds)
        if self._is_first:
            if now - self._totals_at >= _SYNC_SECONDS:  # they may synchronize after each step
                self._emit_totals(state.step, totals)
            self._writer.poll()
            if stop or (due and not self._writer.busy):
                self._start_checkpoint(state, totals)
            if stop:
                self._writer.wait()
        return bool(stop)

    def _is_due(self, step: int, now: float) -> bool:
        if self._hooks.checkpoints_requested() > self._requests_met:
            return True
        seconds, steps = self._config.interval_seconds, self._config.interval_steps
        steps_since = step - (self._writer.last_step or 0)
        return (seconds is not None and now - self._saved_at >= seconds) or (steps is not None and steps_since >= steps)

    def _steps_to_sync(self, step: int, step_seconds: float) -> int:
        """Return the steps to the next synchronization: those of a second, but none past a checkpoint that is due."""
        steps = min(max(1, round(_SYNC_SECONDS / max(step_seconds, 1e-6))), _MAX_SYNC_STEPS)
        interval = self._config.interval_steps
        return steps if interval is None else min(steps, interval - step % interval)

    def _start_checkpoint(self, state: TrainState, totals: dict[str, float]) -> None:
        self._writer.wait()
        self._requests_met = self._hooks.checkpoints_requested()
        self._writer.start(state, totals)
        self._saved_at = self._clock()

    def _emit_totals(self, step: int, totals: dict[str, float]) -> None:
        self._totals_at = self._clock()
        self._hooks.on_event(
            TotalsEvent(step=step, **{field.name: int(totals[field.name]) for field in fields(Traffic)})
        )

    def save_last(self, state: TrainState) -> None:
        """Start a checkpoint of the finished training, unless there is one of this step. Every worker calls this."""
        counters = state.counters()
        sums = self._store.all_reduce(np.array(list(counters.values()), dtype=np.float64))
        if not self._is_first:
            return
        totals = dict(zip(counters, sums, strict=True))
        self._emit_totals(state.step, totals)
        being_written = self._writer.busy and self._writer.last_step == state.step
        if not being_written and not self.has_saved(state.step):
            self._start_checkpoint(state, totals)

    def has_saved(self, step: int) -> bool:
        """Return whether there is a complete checkpoint of ``step``. Only rank 0 can answer."""
        return self._writer.checkpoint_of(step) is not None

    def stop_result(self, state: TrainState) -> StopResult:
        """Describe a run that stops at ``state``. Only rank 0 can answer."""
        return StopResult(state.step, self._writer.checkpoint_of(state.step))
