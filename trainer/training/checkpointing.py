"""Saving a run while it trains, and taking it up again.

All workers decide together, about once a second, at which step to save and whether to stop: one sum over workers, which
carries their counters too. Rank 0 then asks the store for a snapshot and trains on; when the servers have written it,
a thread writes the manifest, which makes the checkpoint whole, and deletes old ones.

What is saved of the run itself is its cursor, (epoch, step), and its counters: with the job and the data that is all
there is, since the content of every step follows from the seed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError

from kvstore.checkpoint.format import CheckpointManifest
from kvstore.checkpoint.lifecycle import commit, delete_after, delete_failed, latest_checkpoint, prune, step_folder
from kvstore.checkpoint.reader import Checkpoint, open_checkpoint
from kvstore.errors import CheckpointError, InputError
from kvstore.io.folder import Folder
from kvstore.optimizers import OptimizerSpec
from kvstore.store import RowStore, SaveResult, TableSpec, Traffic
from kvstore.validation_errors import format_validation_error
from trainer.config.loading import check_job
from trainer.config.run_sections import CheckpointConfig as Settings
from trainer.config.schema import JobConfig
from trainer.data.manifest import data_fingerprint
from trainer.runs.events import (
    CheckpointFailed,
    CheckpointPruneFailed,
    CheckpointSaved,
    EventSink,
    PhaseEvent,
    TotalsEvent,
)
from trainer.runs.ownership import check_still_owned
from trainer.training.state import TrainState

_AGREE_SECONDS = 1.0


_MAX_INTERVAL = 1024


_WAIT_SECONDS = 0.05


_SHOW_SECONDS = 5.0


@dataclass(frozen=True)
class CheckpointMetadata:
    """What a checkpoint says of the run that it is of, beside its progress."""

    run: str
    job: JobConfig
    tables: Sequence[TableSpec]
    optimizer: OptimizerSpec
    data: int

    @staticmethod
    def of(job: JobConfig, run: str, tables: Sequence[TableSpec]) -> CheckpointMetadata:
        """That of run ``run`` of ``job``."""
        return CheckpointMetadata(run, job, tables, job.optimizer_spec, data_fingerprint(Folder(job.data.path)))

    def manifest(self, saved: SaveResult, step: int, progress: dict[str, Any]) -> CheckpointManifest:
        """The manifest of a checkpoint whose tables are ``saved``."""
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
                "progress": progress,
            },
        )


class _Training(BaseModel):
    """What a checkpoint says of its run: ``data`` is what its data are known by."""

    run: str
    job: dict[str, Any]
    data: int
    progress: dict[str, Any]


def restore_train_state(identity: CheckpointMetadata, uri: str, rank: int) -> TrainState:
    """Where the run stood at the checkpoint ``uri``; what workers count is rank 0's from now on.

    Raises:
        CheckpointError: the checkpoint is not whole.
        InputError: it is of other data, or of a job that this one cannot take up.
    """
    try:
        training = _Training.model_validate(open_checkpoint(uri).manifest.training)
        progress = TrainState.from_record(training.progress, counting=rank == 0)
    except ValidationError as error:
        raise InputError(
            f"{uri}: does not say how far which run was; expected a checkpoint that 'crossfade train' wrote "
            f"({format_validation_error(error)})"
        ) from error
    if differences := identity.job.resume_conflicts(check_job(training.job, uri)):
        raise InputError(f"{uri}: cannot resume: {', '.join(differences)}")
    if training.data != identity.data:
        raise InputError(
            f"{uri}: was trained on other data than {identity.job.data.path} holds now; to go on from its tables, "
            f"train another run without --resume: --run-dir NEW --set checkpoint.warm_start_from={uri} (rows that the data "
            "have forgotten start afresh)"
        )
    return progress


@dataclass(frozen=True)
class StopResult:
    """That a run has stopped after ``step``, as asked: with a checkpoint of it, unless that could not be written."""

    step: int
    checkpoint: str | None

    def explain(self) -> str:
        """In words, after 'stopped'."""
        which = "which a checkpoint holds" if self.checkpoint else "whose checkpoint could not be written"
        return f"after step {self.step:,}, {which}"


class CheckpointManager:
    """Saves a run at agreed steps. Every worker has one; those of rank 0 write."""

    def __init__(
        self,
        store: RowStore,
        settings: Settings,
        checkpoints: str,
        identity: CheckpointMetadata,
        emit: EventSink,
        stop_requested: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
        *,
        checkpoints_requested: Callable[[], int] = lambda: 0,
        extra_files: Callable[[], dict[str, bytes]] = dict,
    ) -> None:
        """Save what ``store`` holds under ``checkpoints``, and the files that ``beside`` gives, by name.

        ``stop_requested`` is asked at each agreement.

        So is ``checkpoints_requested`` of rank 0, how often a checkpoint has been asked for: when that has grown, one is due.
        """
        self._store = store
        self._settings = settings
        self._checkpoints = checkpoints
        self._identity = identity
        self._emit = emit
        self._stop_requested = stop_requested
        self._checkpoints_requested = checkpoints_requested
        self._requests_met = 0
        self._beside = extra_files
        self._clock = clock
        self._background = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._progress: TrainState | None = None
        self._next_step = 0
        self._agreed = (0, clock())
        self._told_at = -np.inf
        self._saved_at = clock()
        self._last_step: int | None = None
        self._whole: tuple[int, str] | None = None
        self._writing: dict[str, Any] | None = None
        self._committing: Future[tuple[SaveResult, str | None]] | None = None

    def begin(self, progress: TrainState) -> None:
        """Get ready to save a run that stands at ``progress``: what is in the way of its next checkpoints goes."""
        self._progress = progress
        self._next_step = progress.step + 1
        self._agreed = (progress.step, self._clock())
        self._saved_at = self._clock()
        self._last_step = progress.step or None
        if progress.step:
            self._whole = progress.step, step_folder(self._checkpoints, progress.step)
        if self._store.rank == 0:
            check_still_owned(self._checkpoints, self._identity.run)
            delete_after(self._checkpoints, progress.step)

    def after_step(self, progress: TrainState) -> bool:
        """Called by every worker after each step: whether all stop here, with a checkpoint written."""
        if progress.step < self._next_step:
            return False
        return self._agree(progress)

    def _agree(self, progress: TrainState) -> bool:
        step, since = self._agreed
        now = self._clock()
        first = self._store.rank == 0
        pace = (now - since) / max(1, progress.step - step) if first else 0.0
        due = first and self._is_due(progress.step, now)
        counters = progress.counters()
        stop, due, pace, *totals = self._store.all_reduce(
            np.array([self._stop_requested(), due, pace, *counters.values()], dtype=np.float64)
        )
        self._agreed = (progress.step, self._clock())
        self._next_step = progress.step + self._interval(progress.step, pace)
        if first:
            if now - self._told_at >= _AGREE_SECONDS:  # they may agree at each step
                self._tell_totals(progress.step, dict(zip(counters, totals, strict=True)))
            self._look()
            if stop or (due and not self._busy):
                self._wait()
                self._snapshot(progress, dict(zip(counters, totals, strict=True)))
            if stop:
                self._wait()
        return bool(stop)

    def _tell_totals(self, step: int, totals: dict[str, float]) -> None:
        """Tell what all workers together have moved."""
        self._told_at = self._clock()
        self._emit(TotalsEvent(step=step, **{field.name: int(totals[field.name]) for field in fields(Traffic)}))

    def _is_due(self, step: int, now: float) -> bool:
        seconds, steps = self._settings.interval_seconds, self._settings.interval_steps
        since_steps = step - (self._last_step or 0)
        if self._checkpoints_requested() > self._requests_met:
            return True
        return (seconds is not None and now - self._saved_at >= seconds) or (steps is not None and since_steps >= steps)

    def _interval(self, step: int, pace: float) -> int:
        """Steps to the next agreement: about a second's, the same for all workers."""
        interval = min(max(1, round(_AGREE_SECONDS / max(pace, 1e-6))), _MAX_INTERVAL)
        every = self._settings.interval_steps
        return interval if every is None else min(interval, every - step % every)

    def save_last(self, progress: TrainState) -> None:
        """Begin a checkpoint of the finished training, unless there is one of this step. Called by every worker."""
        counters = progress.counters()
        totals = self._store.all_reduce(np.array(list(counters.values()), dtype=np.float64))
        if self._store.rank == 0:
            self._tell_totals(progress.step, dict(zip(counters, totals, strict=True)))
        under_way = self._busy and self._last_step == progress.step
        if self._store.rank == 0 and not under_way and not self.has_saved(progress.step):
            self._wait()
            self._snapshot(progress, dict(zip(counters, totals, strict=True)))

    def has_saved(self, step: int) -> bool:
        """Whether there is a whole checkpoint of ``step``; for rank 0 to ask."""
        return self._whole is not None and self._whole[0] == step

    def stop(self, progress: TrainState) -> StopResult:
        """How the run that stops at ``progress`` can be taken up again; for rank 0 to tell."""
        return StopResult(progress.step, self._whole[1] if self._whole and self.has_saved(progress.step) else None)

    def __enter__(self) -> CheckpointManager:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait until what was begun is written, unless an error ends the run."""
        if kind is None and self._store.rank == 0:
            self._wait()
        self._background.shutdown(wait=kind is None)

    @property
    def _busy(self) -> bool:
        return self._writing is not None or self._committing is not None

    def _snapshot(self, progress: TrainState, totals: dict[str, float]) -> None:
        self._requests_met = self._checkpoints_requested()
        self._last_step = progress.step
        self._writing = {
            "step": progress.step,
            "progress": progress.to_record(totals),
            "files": self._beside(),
        }
        self._store.save(step_folder(self._checkpoints, progress.step))
        self._saved_at = self._clock()

    def _look(self) -> None:
        """See how far the checkpoint is that is being written."""
        if self._committing is not None:
            if self._committing.done():
                future, self._committing = self._committing, None
                self._finish(future)
        elif self._writing is not None:
            try:
                saved = self._store.poll_save()
            except CheckpointError as error:
                self._fail(error)
            else:
                if saved is not None:
                    self._committing = self._background.submit(self._commit, saved, **self._writing)

    def _commit(
        self, saved: SaveResult, step: int, progress: dict[str, Any], files: dict[str, bytes]
    ) -> tuple[SaveResult, str | None]:
        """Make the checkpoint whole, and delete old ones; with why the latter failed, which does it no harm."""
        check_still_owned(self._checkpoints, self._identity.run)
        commit(self._checkpoints, self._identity.manifest(saved, step, progress), files)
        saved = replace(saved, bytes=saved.bytes + sum(map(len, files.values())))
        try:
            prune(self._checkpoints, self._settings.keep_latest)
        except CheckpointError as error:
            return saved, str(error)
        return saved, None

    def _finish(self, future: Future[tuple[SaveResult, str | None]]) -> None:
        try:
            saved, not_deleted = future.result()
        except CheckpointError as error:
            self._fail(error)
            return
        if not_deleted is not None:
            self._emit(CheckpointPruneFailed(message=not_deleted))
        assert self._writing is not None
        assert self._progress is not None
        step, self._writing = self._writing["step"], None
        self._whole = step, step_folder(self._checkpoints, step)
        self._progress.saves.add(saved)
        self._emit(
            CheckpointSaved(
                step=step,
                checkpoint=self._whole[1],
                pause_seconds=saved.pause_seconds,
                seconds=saved.seconds,
                bytes=saved.bytes,
            )
        )

    def _fail(self, error: Exception) -> None:
        """A checkpoint that cannot be written does not end the run: the next one may fare better."""
        assert self._writing is not None
        assert self._progress is not None
        step, self._writing = self._writing["step"], None
        self._progress.saves.failed += 1
        self._emit(CheckpointFailed(step=step, message=str(error)))
        with suppress(CheckpointError):
            check_still_owned(self._checkpoints, self._identity.run)
            delete_failed(self._checkpoints, step)

    def _wait(self) -> None:
        """Return when nothing is being written; until then, show now and then that the run has not stalled."""
        shown = self._clock()
        while self._busy:
            self._look()
            time.sleep(_WAIT_SECONDS)
            if self._clock() - shown > _SHOW_SECONDS:
                shown = self._clock()
                self._emit(PhaseEvent(name="checkpoint"))


def latest_usable(checkpoints: str, refused: set[str], say: Callable[[str], None]) -> Checkpoint | None:
    """The newest whole checkpoint that is not ``refused``; ``say`` gets why newer ones were passed over."""
    checkpoint, reasons = latest_checkpoint(checkpoints, refused)
    for reason in reasons:
        say(f"skipped a checkpoint: {reason}")
    return checkpoint
