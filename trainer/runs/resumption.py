"""Find the checkpoint that a run resumes from; refuse to start over where the run has saved some.

    checkpoint, skipped = find_start(folder.checkpoints(job), saved_step=last_saved_step(folder.path))

A run whose checkpoints are gone, or unreadable, has most likely lost them by accident: a disk is not mounted, a bucket
is another, a file is corrupt. Training that silently began at step 0 would hide that.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from crossfade.base.errors import InputError, option_named
from crossfade.kvstore.checkpoint.lifecycle import has_complete, latest_checkpoint
from crossfade.kvstore.checkpoint.reader import Checkpoint
from crossfade.trainer.runs.events import CheckpointSaved, PhaseEvent, parse_record
from crossfade.trainer.runs.folder import EVENTS_FILE

_MAX_REASONS = 3
_FIX = f"or start over at step 0 with {option_named('allow_restart_from_scratch')}, which deletes none of them"


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
    checkpoints: str,
    rejected: Collection[str] = (),
    *,
    saved_step: int | None = None,
    allow_restart: bool = False,
) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest usable checkpoint, or None to start at step 0, and why newer ones were skipped.

    Args:
        checkpoints: path or URI of the folder.
        rejected: checkpoints that were found corrupt while they were loaded.
        saved_step: step of the last checkpoint that the run has saved; None if it has saved none, or that is unknown.
        allow_restart: whether to start at step 0 where none of the run's checkpoints is usable.

    Raises:
        InputError: the run has saved checkpoints, but none is usable, or one is of another version of the format.
        CheckpointError: storage is unreachable.
    """
    checkpoint, skipped = latest_checkpoint(checkpoints, rejected)
    if checkpoint is not None or allow_restart:
        return checkpoint, skipped
    if skipped and (saved_step is not None or has_complete(checkpoints)):
        more = f" … ({len(skipped)} in all)" if len(skipped) > _MAX_REASONS else ""
        raise InputError(
            f"cannot resume: none of the checkpoints in {checkpoints} is usable: {'; '.join(skipped[:_MAX_REASONS])}"
            f"{more}; restore one, {_FIX}"
        )
    if saved_step is not None:
        raise InputError(
            f"cannot resume: {checkpoints} holds no checkpoint, but the run has saved some, the last of step "
            f"{saved_step}; mount or restore the folder, {_FIX}"
        )
    return None, skipped
