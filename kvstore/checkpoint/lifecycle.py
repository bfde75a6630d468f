"""Commit, find, and delete the checkpoints of a run, each in a folder ``step-000000123`` of its checkpoint folder.

commit(checkpoints, manifest)                              # all parts are written: the checkpoint is now complete
checkpoint, skipped = latest_checkpoint(checkpoints)       # skipped: why newer ones are not used
prune(checkpoints, keep_latest=3)
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping
from types import MappingProxyType

from crossfade.kvstore.checkpoint.files import MANIFEST_NAME, STEP_NAME, step_name
from crossfade.kvstore.checkpoint.format import CheckpointManifest
from crossfade.kvstore.checkpoint.reader import Checkpoint, open_checkpoint_folder
from crossfade.kvstore.errors import CheckpointError
from crossfade.kvstore.io.folder import Folder
from crossfade.kvstore.store import FileDigest


def step_folder(checkpoints: str, step: int) -> str:
    """Return the URI of the checkpoint of ``step`` in the folder ``checkpoints``."""
    return Folder(checkpoints).child(step_name(step)).uri


def commit(checkpoints: str, manifest: CheckpointManifest, files: Mapping[str, bytes] = MappingProxyType({})) -> None:
    """Complete the checkpoint of ``manifest.step``, all parts of which are written: add ``files``, then the manifest.

    Raises:
        CheckpointError: its manifest or a file cannot be written.
    """
    folder = Folder(step_folder(checkpoints, manifest.step))
    listed = [FileDigest(name, len(data), zlib.crc32(data)) for name, data in files.items()]
    try:
        for name, data in files.items():
            folder.write(name, data)
        folder.write(MANIFEST_NAME, manifest.model_copy(update={"files": listed}).to_bytes())
    except OSError as error:
        raise CheckpointError(f"{folder.uri}: could not be written: {error}") from error


def latest_checkpoint(checkpoints: str, rejected: Collection[str] = ()) -> tuple[Checkpoint | None, list[str]]:
    """Open the newest complete checkpoint whose URI is not in ``rejected``; also return why newer ones were skipped.

    Raises:
        CheckpointError: storage is unreachable, which does not justify falling back to an older checkpoint.
    """
    reasons = []
    folder = Folder(checkpoints)
    for name in sorted(_step_names(folder), key=_step_of, reverse=True):
        step = folder.child(name)
        if step.uri in rejected:
            reasons.append(f"{step.uri}: was found corrupt before")
            continue
        try:
            return open_checkpoint_folder(step), reasons
        except CheckpointError as error:
            if error.checkpoint is None:
                raise
            reasons.append(str(error))
    return None, reasons


def _step_of(name: str) -> int:
    return int(name.removeprefix("step-"))


def _step_names(folder: Folder) -> list[str]:
    try:
        names = folder.names()
    except OSError as error:
        raise CheckpointError(f"{folder.uri}: cannot be read: {error}") from error
    return [name for name in names if STEP_NAME.fullmatch(name)]


def delete_after(checkpoints: str, step: int) -> None:
    """Delete checkpoints of steps after ``step``, complete or not: a run that resumes at ``step`` writes them again.

    Raises:
        CheckpointError: something cannot be deleted.
    """
    folder = Folder(checkpoints)
    try:
        for name in _step_names(folder):
            if _step_of(name) > step:
                _delete(folder.child(name))
    except OSError as error:
        raise CheckpointError(f"{checkpoints}: checkpoints after step {step} cannot be deleted: {error}") from error


def delete_failed(checkpoints: str, step: int) -> None:
    """Delete the incomplete checkpoint of ``step``, whose save failed, so that it does not fill the disk.

    On S3 nothing is deleted, since S3 may be what failed: ``prune`` deletes it once there is a newer complete one.

    Raises:
        CheckpointError: something cannot be deleted.
    """
    folder = Folder(step_folder(checkpoints, step))
    if folder.on_s3:
        return
    try:
        folder.delete()
    except OSError as error:
        raise CheckpointError(f"{folder.uri}: the incomplete checkpoint cannot be deleted: {error}") from error


def prune(checkpoints: str, keep_latest: int) -> None:
    """Keep the newest ``keep_latest`` complete checkpoints; delete older ones, and incomplete ones that are older.

    Raises:
        CheckpointError: something cannot be deleted.
    """
    folder = Folder(checkpoints)
    complete = 0
    try:
        for name in sorted(_step_names(folder), key=_step_of, reverse=True):
            step = folder.child(name)
            has_manifest = step.exists(MANIFEST_NAME)
            if has_manifest and complete < keep_latest:
                complete += 1
            elif complete:
                _delete(step)
    except OSError as error:
        raise CheckpointError(f"{checkpoints}: an old checkpoint cannot be deleted: {error}") from error


def _delete(step: Folder) -> None:
    # The manifest goes first: a half-deleted checkpoint must look incomplete, not corrupt.
    step.remove(MANIFEST_NAME)
    step.delete()
