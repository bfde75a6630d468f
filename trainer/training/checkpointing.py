"""Checkpoints during training, and stopping with one.

About once a second the workers synchronize: one all-reduce decides for all whether a checkpoint is due and
whether to stop, and sums their counters. Rank 0 then starts a checkpoint and trains on: the store takes a snapshot of
its tables while training continues. Once all parts of the tables are written, a thread commits the checkpoint by its
manifest and deletes old ones.

Of the run itself a checkpoint holds only the train state, a position (epoch, step) and counters: the job, the data and
the seed determine the content of every step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from crossfade.base.errors import CheckpointError, DivergedError
from crossfade.base.io.folder import Folder
from crossfade.kvstore.checkpoint.format import CheckpointManifest
from crossfade.kvstore.checkpoint.lifecycle import clear_later, commit, delete_failed, prune, step_folder
from crossfade.kvstore.optimizer_spec import OptimizerSpec
from crossfade.kvstore.store import RowStore, SaveResult, TableSpec, Traffic
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.config.sections import CheckpointConfig
from crossfade.trainer.data.manifest import data_fingerprint
from crossfade.trainer.runs.events import (
    CheckpointFailed,
    CheckpointPruneFailed,
    CheckpointSaved,
    EventSink,
    PhaseEvent,
    TotalsEvent,
)
from crossfade.trainer.runs.ownership import check_still_owned
from crossfade.trainer.training.hooks import TrainingHooks
from crossfade.trainer.training.periodic import PeriodicAction
from crossfade.trainer.training.state import CheckpointStats, TrainState

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
        extra_files: Callable[[], dict[str, bytes]] = dict,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Write checkpoints of ``store`` to ``folder``; ``extra_files`` returns further files of each, by name."""
        self._store, self._config, self._hooks, self._clock = store, config, hooks, clock
        self._writer = CheckpointWriter(store, folder, config.keep_latest, metadata, hooks.on_event, extra_files, clock)
        self._is_first = store.rank == 0
        # The workers agree after which steps they synchronize; rank 0 does the other work when they do.
        self._synchronize = PeriodicAction(self._sync, every_steps=1, clock=clock)
        self._save = PeriodicAction(
            self._start_checkpoint,
            every_steps=config.interval_steps,
            every_seconds=config.interval_seconds,
            clock=clock,
        )
        self._report = PeriodicAction(self._emit_totals, every_seconds=_SYNC_SECONDS, clock=clock, due_at_once=True)

    def __enter__(self) -> CheckpointManager:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._writer.close(abandon=kind is not None)

    def begin(self, state: TrainState) -> None:
        """Prepare for a run that starts at ``state``: delete later checkpoints that were not finished."""
        self._synchronize.every_steps = 1
        for action in (self._synchronize, self._save):
            action.restart(state.step)
        if self._is_first:
            self._writer.begin(state)

    def after_step(self, state: TrainState) -> bool:
        """Write a checkpoint if one is due; return whether all workers stop here. Every worker calls this."""
        return bool(self._synchronize.after_step(state.step, state))

    def _sync(self, state: TrainState) -> bool:
        steps, seconds = state.step - self._synchronize.last_step, self._clock() - self._synchronize.last_at
        step_seconds = seconds / max(1, steps) if self._is_first else 0.0
        due = self._is_first and self._save.is_due(state.step)
        counters = state.counters()
        local = [self._hooks.stop_requested(), due, step_seconds, *counters.values()]
        stop, due, step_seconds, *sums = self._store.all_reduce(np.array(local, dtype=np.float64))
        totals = dict(zip(counters, sums, strict=True))
        self._synchronize.every_steps = self._steps_to_sync(state.step, step_seconds)
        if self._is_first:
            self._report.after_step(state.step, state.step, totals)  # workers may synchronize after each step
            self._writer.poll()
            if stop or (due and not self._writer.busy):
                self._save.run(state.step, state, totals)
            if stop:
                self._writer.wait()
        return bool(stop)

    def _steps_to_sync(self, step: int, step_seconds: float) -> int:
        """Return the steps to the next synchronization: those of a second, but none past a checkpoint that is due."""
        steps = min(max(1, round(_SYNC_SECONDS / max(step_seconds, 1e-6))), _MAX_SYNC_STEPS)
        interval = self._config.interval_steps
        return steps if interval is None else min(steps, interval - step % interval)

    def _start_checkpoint(self, state: TrainState, totals: dict[str, float]) -> None:
        self._writer.wait()
        self._writer.start(state, totals)

    def _emit_totals(self, step: int, totals: dict[str, float]) -> None:
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
            self._save.run(state.step, state, totals)

    def has_saved(self, step: int) -> bool:
        """Return whether there is a complete checkpoint of ``step``. Only rank 0 can answer."""
        return self._writer.checkpoint_of(step) is not None

    def stop_result(self, state: TrainState) -> StopResult:
        """Describe a run that stops at ``state``. Only rank 0 can answer."""
        return StopResult(state.step, self._writer.checkpoint_of(state.step))


_POLL_SECONDS = 0.02
_SIGN_OF_LIFE_SECONDS = 5.0


@dataclass(frozen=True)
class _Pending:
    """A checkpoint that is being written."""

    step: int
    train_state: dict[str, Any]
    files: Mapping[str, bytes]


class CheckpointWriter:
    """Writes checkpoints of ``store`` to ``folder``, for rank 0 only.

    It makes progress when ``poll`` is called. ``poll`` returns at once; ``start``, ``wait`` and ``close`` may wait.
    """

    def __init__(
        self,
        store: RowStore,
        folder: str,
        keep_latest: int,
        metadata: CheckpointMetadata,
        on_event: EventSink,
        extra_files: Callable[[], dict[str, bytes]] = dict,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Keep the ``keep_latest`` newest checkpoints; ``extra_files`` returns further files of each, by name."""
        self._store, self._folder, self._keep_latest = store, folder, keep_latest
        self._metadata, self._on_event, self._extra_files, self._clock = metadata, on_event, extra_files, clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._stats = CheckpointStats()
        self._complete_step: int | None = None
        self._pending: _Pending | None = None
        self._commit_result: Future[tuple[SaveResult, str | None]] | None = None
        self._own_runs = {metadata.run}
        self._protected_steps: set[int] = set()
        self.last_step: int | None = None
        """Step of the newest checkpoint, complete or not."""

    def begin(self, state: TrainState) -> None:
        """Prepare for a run that starts at ``state``: delete unfinished later checkpoints, which it will write again.

        Raises:
            InputError: another run has taken over the folder.
            CheckpointError: the folder cannot be written.
        """
        self._stats = state.checkpoints
        self.last_step = self._complete_step = state.step or None
        self._own_runs = check_still_owned(self._folder, self._metadata.run, self._metadata.command)
        self._protected_steps = clear_later(self._folder, state.step, self._is_own)

    def _is_own(self, manifest: CheckpointManifest) -> bool:
        return manifest.training.get("run") in self._own_runs

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._pending is not None

    def checkpoint_of(self, step: int) -> str | None:
        """Return the complete checkpoint of ``step``, if it is the newest complete one."""
        return step_folder(self._folder, step) if step == self._complete_step else None

    def start(self, state: TrainState, totals: Mapping[str, float]) -> None:
        """Start a checkpoint of ``state`` with the ``totals`` of all workers' counters, after the one being written."""
        self.wait()
        self.last_step = state.step
        folder = step_folder(self._folder, state.step)
        if state.step in self._protected_steps:
            self._count_failure(state.step, f"{folder}: holds a checkpoint that is not this run's; move it")
            return
        self._pending = _Pending(state.step, state.to_record(totals), self._extra_files())
        self._store.save(folder)

    def poll(self) -> None:
        """Take the next action that the checkpoint being written is ready for."""
        if self._commit_result is not None:
            if self._commit_result.done():
                result, self._commit_result = self._commit_result, None
                self._finish(result)
        elif self._pending is not None:
            try:
                saved = self._store.poll_save()
            except CheckpointError as error:
                self._fail(error)
            except DivergedError as error:
                raise DivergedError(f"step {self._pending.step}: ", error.args, row=error.row) from error
            else:
                if saved is not None:
                    self._commit_result = self._thread.submit(self._commit, saved, self._pending)

    def wait(self) -> None:
        """Return once nothing is being written. Emit signs of life while waiting, so that no stall is detected."""
        phase = PhaseEvent(name="checkpoint")
        sign_of_life = PeriodicAction(self._on_event, every_seconds=_SIGN_OF_LIFE_SECONDS, clock=self._clock)
        self.poll()
        while self.busy:
            if self._commit_result is None:
                time.sleep(_POLL_SECONDS)
            else:
                wait([self._commit_result], _POLL_SECONDS)
            self.poll()
            sign_of_life.after_step(0, phase)

    def close(self, *, abandon: bool) -> None:
        """End the thread; with ``abandon`` do not wait for a checkpoint that is being written."""
        if not abandon:
            self.wait()
        self._thread.shutdown(wait=not abandon)

    def _commit(self, saved: SaveResult, pending: _Pending) -> tuple[SaveResult, str | None]:
        """Commit the checkpoint and prune old ones; return also why pruning failed, which does not harm it."""
        check_still_owned(self._folder, self._metadata.run, self._metadata.command)
        commit(self._folder, self._metadata.manifest(saved, pending.step, pending.train_state), pending.files)
        saved = replace(saved, bytes=saved.bytes + sum(map(len, pending.files.values())))
        try:
            prune(self._folder, pending.step, self._keep_latest, self._is_own)
        except CheckpointError as error:
            return saved, str(error)
        return saved, None

    def _finish(self, result: Future[tuple[SaveResult, str | None]]) -> None:
        try:
            saved, prune_error = result.result()
        except CheckpointError as error:
            self._fail(error)
            return
        if prune_error is not None:
            self._on_event(CheckpointPruneFailed(message=prune_error))
        step = self._end_pending()
        self._complete_step = step
        self._stats.add(saved)
        self._on_event(
            CheckpointSaved(
                step=step,
                checkpoint=step_folder(self._folder, step),
                pause_seconds=saved.pause_seconds,
                seconds=saved.seconds,
                bytes=saved.bytes,
            )
        )

    def _fail(self, error: Exception) -> None:
        """Report a checkpoint that could not be written. The run continues, since the next one may succeed."""
        step = self._end_pending()
        self._count_failure(step, str(error))
        with suppress(CheckpointError):
            check_still_owned(self._folder, self._metadata.run, self._metadata.command)
            delete_failed(self._folder, step)

    def _count_failure(self, step: int, message: str) -> None:
        self._stats.failed += 1
        self._on_event(CheckpointFailed(step=step, message=message))

    def _end_pending(self) -> int:
        assert self._pending is not None
        step, self._pending = self._pending.step, None
        return step


@dataclass(frozen=True)
class CheckpointMetadata:
    """The run, its job and its data, which a run that resumes must match.

    Attributes:
        run: ID of the run.
        data: fingerprint of its dataset.
        command: ID of the command that runs it; None: none does.
    """

    run: str
    job: JobConfig
    tables: Sequence[TableSpec]
    optimizer: OptimizerSpec
    data: int
    command: str | None = None

    @staticmethod
    def of(job: JobConfig, run: str, tables: Sequence[TableSpec], command: str | None = None) -> CheckpointMetadata:
        """Describe the run ``run`` of ``job``, whose model has ``tables``, as run by ``command``.

        Raises:
            InputError: the dataset cannot be read.
        """
        return CheckpointMetadata(
            run, job, tables, job.optimizer_spec, data_fingerprint(Folder(job.data.path)), command
        )

    def manifest(self, saved: SaveResult, step: int, train_state: dict[str, Any]) -> CheckpointManifest:
        """Make the manifest of the checkpoint of ``step`` whose tables are ``saved``."""
        return CheckpointManifest(
            step=step,
            tables=[asdict(table) for table in self.tables],
            optimizer=asdict(self.optimizer),
            seed=self.job.train.seed,
            parts=[asdict(part) for part in saved.parts],
            training={
                "run": self.run,
                "job": self.job.with_absolute_paths().model_dump(mode="json"),
                "data": self.data,
                "train_state": train_state,
            },
        )
