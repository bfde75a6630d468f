"""Find the checkpoint that a run resumes from, and measure what is lost if it fails now.

    checkpoint, skipped = find_start(folder.checkpoints(job), saved_step=last_saved_step(folder.path))

    work = UnsavedWork(0, time.monotonic())         # for every attempt to train
    work.record(event, time.monotonic())            # for every event of it
    steps, seconds = work.since(work.checkpoint_step)

A run whose checkpoints are gone, or unreadable, has most likely lost them by accident: a disk is not mounted, a bucket
is another, a file is corrupt. Training that silently began at step 0 would hide that.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from crossfade.base.errors import InputError, Option
from crossfade.kvstore.checkpoint.checkpoint import Checkpoint
from crossfade.kvstore.checkpoint.lifecycle import has_complete, latest_checkpoint
from crossfade.trainer.runs.events import CheckpointSaved, Event, PhaseEvent, StepEvent, StoppedEvent, parse_record
from crossfade.trainer.runs.run_folder import EVENTS_FILE

_MAX_REASONS = 3
_FIX = (
    "or start over without ",
    Option("resume"),
    ", which moves the run folder aside; a checkpoint.path outside of it needs another name then",
)


def last_saved_step(run_dir: Path) -> int | None:
    """Return the step of the last checkpoint in the event log of ``run_dir`` since training began; None without any."""
    step = None
    try:
        with (run_dir / EVENTS_FILE).open("rb") as log:
            for line in log:
                if b'"checkpoint_saved"' in line or b'"phase"' in line:
                    step = _saved_step_after(line, step)
    except FileNotFoundError:
        return None
    return step


def _saved_step_after(line: bytes, step: int | None) -> int | None:
    try:
        event = parse_record(json.loads(line)).event
    except ValueError:  # a line that a killed process did not finish
        return step
    match event:
        case CheckpointSaved(step=saved):
            return saved
        case PhaseEvent(name="training", step=0):
            return None
    return step


def find_start(
    checkpoints: str, rejected: Collection[str] = (), *, saved_step: int | None = None
) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest usable checkpoint, or None to start at step 0, and why newer ones were skipped.

    Args:
        checkpoints: path or URI of the folder.
        rejected: checkpoints that were found corrupt while they were loaded.
        saved_step: step of the last checkpoint that the run has saved; None if it has saved none, or that is unknown.

    Raises:
        InputError: the run has saved checkpoints, but none is usable, or one is of another version of the format.
        CheckpointError: storage is unreachable.
    """
    checkpoint, skipped = latest_checkpoint(checkpoints, rejected)
    if checkpoint is not None:
        return checkpoint, skipped
    if skipped and (saved_step is not None or has_complete(checkpoints)):
        more = f" … ({len(skipped)} in all)" if len(skipped) > _MAX_REASONS else ""
        raise InputError(
            f"cannot resume: none of the checkpoints in {checkpoints} is usable: {'; '.join(skipped[:_MAX_REASONS])}"
            f"{more}; restore one, ",
            _FIX,
        )
    if saved_step is not None:
        raise InputError(
            f"cannot resume: {checkpoints} holds no checkpoint, but the run has saved some, the last of step "
            f"{saved_step}; mount or restore the folder, ",
            _FIX,
        )
    return None, skipped


def check_same_data(checkpoint: Checkpoint, path: str, fingerprint: int) -> None:
    """Check that ``checkpoint`` is of the dataset at ``path``, whose fingerprint is given.

    It comes before the check of the job, in which values follow from the size of the dataset.

    Raises:
        InputError: the dataset has changed.
    """
    if checkpoint.manifest.training.get("data", fingerprint) == fingerprint:
        return
    raise InputError(
        f"{checkpoint.uri}: cannot resume: {path} has changed since; to continue from its tables, start another run "
        "without ",
        Option("resume"),
        ": ",
        Option("run_dir", "NEW"),
        " ",
        Option("set", f"checkpoint.warm_start_from={checkpoint.uri}"),
        " (rows without an id are reset)",
    )


class UnsavedWork:
    """The steps of one attempt to train, with their times by any clock."""

    def __init__(self, start_step: int, now: float) -> None:
        """Start at ``start_step``, where the attempt resumes from a checkpoint, or at 0."""
        self.step = self.checkpoint_step = start_step
        """Steps taken so far, and those that the newest checkpoint has."""
        self._step_at = now
        self._begun_at: dict[int, float] = {}
        """When training after a step began, for the step that training started from and those of checkpoints."""

    def record(self, event: Event, now: float) -> None:
        """Record an event of the training that happened at ``now``."""
        match event:
            case StepEvent(step=step):
                self.step, self._step_at = step, now
            case PhaseEvent(name="training", step=step):
                # Each worker reports it, some of them late, when the agent of their host was out of reach.
                self._begun_at.setdefault(step or 0, now)
            case CheckpointSaved(step=step, seconds=seconds):
                self.checkpoint_step = max(self.checkpoint_step, step)
                self._begun_at[step] = now - seconds
            case StoppedEvent(step=step):
                self.step = step

    def since(self, step: int) -> tuple[int, float | None]:
        """Return how many steps were taken after ``step``, and in how many seconds; None if that is not known."""
        begun_at = self._begun_at.get(step)
        seconds = None if begun_at is None else max(0.0, self._step_at - begun_at)
        return max(0, self.step - step), seconds
