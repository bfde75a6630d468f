"""TODO-DOC split from kvstore/checkpoint/reader.py."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping
from types import MappingProxyType

from kvstore.checkpoint.format import CheckpointManifest
from kvstore.checkpoint.reader import _STEP_NAME, MANIFEST_NAME, Checkpoint, _open
from kvstore.errors import CheckpointError
from kvstore.io.folder import Folder
from kvstore.store import FileDigest


def step_folder(checkpoints: str, step: int) -> str:
    """The folder of the checkpoint of ``step``."""
    return Folder(checkpoints).child(f"step-{step:09d}").uri


def commit(checkpoints: str, manifest: CheckpointManifest, files: Mapping[str, bytes] = MappingProxyType({})) -> None:
    """Make the checkpoint of ``manifest.step``, all parts of which are written, whole, with ``files`` beside them.

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
    """The newest whole checkpoint whose URI is not in ``refused``, and why newer ones were passed over.

    Raises:
        CheckpointError: the storage cannot be reached, which is no reason to fall back to an older one.
    """
    reasons = []
    folder = Folder(checkpoints)
    for name in sorted(_steps(folder), key=_by_number, reverse=True):
        step = folder.child(name)
        if step.uri in rejected:
            reasons.append(f"{step.uri}: was found damaged before")
            continue
        try:
            return _open(step), reasons
        except CheckpointError as error:
            if error.checkpoint is None:
                raise
            reasons.append(str(error))
    return None, reasons


def _by_number(name: str) -> int:
    return int(name.removeprefix("step-"))


def _steps(folder: Folder) -> list[str]:
    try:
        names = folder.names()
    except OSError as error:
        raise CheckpointError(f"{folder.uri}: cannot be read: {error}") from error
    return [name for name in names if _STEP_NAME.fullmatch(name)]


def delete_after(checkpoints: str, step: int) -> None:
    """Delete checkpoints of steps after ``step``, whole or not: whoever goes on from there will write them anew.

    Raises:
        CheckpointError: something cannot be deleted.
    """
    folder = Folder(checkpoints)
    try:
        for name in _steps(folder):
            if _by_number(name) > step:
                folder.child(name).remove(MANIFEST_NAME)
                folder.child(name).delete()
    except OSError as error:
        raise CheckpointError(f"{checkpoints}: cannot be cleared: {error}") from error


def delete_failed(checkpoints: str, step: int) -> None:
    """Delete what was written of the checkpoint of ``step`` before that failed, so that it does not fill the disk.

    Not on S3, which may be what failed: there it is deleted with old checkpoints, once there is a newer whole one.

    Raises:
        CheckpointError: something cannot be deleted.
    """
    folder = Folder(step_folder(checkpoints, step))
    if folder.on_s3:
        return
    try:
        folder.delete()
    except OSError as error:
        raise CheckpointError(f"{folder.uri}: what was written of it cannot be deleted: {error}") from error


def prune(checkpoints: str, keep: int) -> None:
    """Keep the newest ``keep`` whole checkpoints; delete older ones, and partial ones older than the newest whole.

    Raises:
        CheckpointError: something cannot be deleted.
    """
    folder = Folder(checkpoints)
    whole = 0
    try:
        for name in sorted(_steps(folder), key=_by_number, reverse=True):
            step = folder.child(name)
            has_manifest = step.exists(MANIFEST_NAME)
            if has_manifest and whole < keep:
                whole += 1
            elif whole:
                # What is half deleted must look partial, not damaged.
                step.remove(MANIFEST_NAME)
                step.delete()
    except OSError as error:
        raise CheckpointError(f"{checkpoints}: an old checkpoint cannot be deleted: {error}") from error
