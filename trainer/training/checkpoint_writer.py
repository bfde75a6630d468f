"""Write the checkpoints of a run in the background, one at a time.

The store takes a snapshot of its tables while training continues. Once all servers have written theirs, a thread
commits the checkpoint by its manifest and deletes old ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from crossfade.base.errors import CheckpointError, DivergedError
from crossfade.kvstore.checkpoint.format import CheckpointManifest
from crossfade.kvstore.checkpoint.lifecycle import clear_later, commit, delete_failed, prune, step_folder
from crossfade.kvstore.store import RowStore, SaveResult
from crossfade.trainer.runs.events import (
    CheckpointFailed,
    CheckpointPruneFailed,
    CheckpointSaved,
    EventSink,
    PhaseEvent,
)
from crossfade.trainer.runs.ownership import check_still_owned
from crossfade.trainer.training.checkpoint_metadata import CheckpointMetadata
from crossfade.trainer.training.state import CheckpointStats, TrainState

_POLL_SECONDS = 0.05
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
                raise DivergedError(f"step {self._pending.step}: {error}", error.row) from error
            else:
                if saved is not None:
                    self._commit_result = self._thread.submit(self._commit, saved, self._pending)

    def wait(self) -> None:
        """Return once nothing is being written. Emit signs of life while waiting, so that no stall is detected."""
        reported = self._clock()
        while self.busy:
            self.poll()
            time.sleep(_POLL_SECONDS)
            if self._clock() - reported > _SIGN_OF_LIFE_SECONDS:
                reported = self._clock()
                self._on_event(PhaseEvent(name="checkpoint"))

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
