"""Commit, find, list, and delete checkpoints of a run, each in a folder ``step-000000123`` of its checkpoint folder.

    commit(checkpoints, manifest)                              # all parts are written: the checkpoint is now complete
    checkpoint, skipped = latest_checkpoint(checkpoints)       # skipped: why newer ones are not used
    prune(checkpoints, newest_step, 3, is_own)                 # keeps three
    for entry in list_checkpoints(checkpoints):
        entry.step, entry.state, entry.bytes

Only checkpoints for which ``is_own`` holds are deleted. So one that cannot be read, of another run, or of another
version of the format stays, whatever the reason.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from pydantic import ValidationError

from crossfade.base.errors import CheckpointError, InputError
from crossfade.base.io.folder import Folder
from crossfade.base.io.regular_files import FoundFile
from crossfade.kvstore.checkpoint.checkpoint import Checkpoint, open_checkpoint_folder
from crossfade.kvstore.checkpoint.format import (
    MANIFEST_NAME,
    STEP_NAME,
    CheckpointManifest,
    CorruptFileError,
    FormatVersionError,
    step_name,
)
from crossfade.kvstore.store import FileDigest

IsOwn = Callable[[CheckpointManifest], bool]
"""Returns whether the checkpoint of a manifest is the run's own, so that it may delete it."""


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
    with _naming_errors(f"{folder.uri}: could not be written"):
        for name, data in files.items():
            folder.write(name, data)
        folder.write(MANIFEST_NAME, manifest.model_copy(update={"files": listed}).to_bytes())


def latest_checkpoint(checkpoints: str, rejected: Collection[str] = ()) -> tuple[Checkpoint | None, list[str]]:
    """Open the newest complete checkpoint whose URI is not in ``rejected``; also return why newer ones were skipped.

    Raises:
        CheckpointError: storage is unreachable, which does not justify falling back to an older checkpoint.
        InputError: a newer one is of another version of the format, which does not either.
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
    with _naming_errors(f"{folder.uri}: cannot be read"):
        return [name for name in folder.names() if STEP_NAME.fullmatch(name)]


def has_complete(checkpoints: str) -> bool:
    """Return whether there is a checkpoint with a manifest, whether or not it can be read.

    Raises:
        CheckpointError: the folder cannot be read.
    """
    folder = Folder(checkpoints)
    names = _step_names(folder)
    with _naming_errors(f"{checkpoints}: cannot be read"):
        return any(folder.child(name).exists(MANIFEST_NAME) for name in names)


def clear_later(checkpoints: str, step: int, is_own: IsOwn) -> set[int]:
    """Delete what saves of steps after ``step`` left unfinished: a run that resumes at ``step`` writes them again.

    Returns the later steps whose checkpoints it must not overwrite, since they are not its own.

    Raises:
        CheckpointError: something cannot be read or deleted.
    """
    folder = Folder(checkpoints)
    protected = set()
    with _naming_errors(f"{checkpoints}: unfinished checkpoints after step {step} cannot be deleted"):
        for name in _step_names(folder):
            if _step_of(name) > step:
                match _owner(folder.child(name), is_own):
                    case "nobody":
                        _delete(folder.child(name))
                    case "other":
                        protected.add(_step_of(name))
    return protected


def delete_failed(checkpoints: str, step: int) -> None:
    """Delete the incomplete checkpoint of ``step``, whose save failed, so that it does not fill the disk.

    On S3 nothing is deleted, since S3 may be what failed: ``prune`` deletes it once there is a newer complete one.

    Raises:
        CheckpointError: something cannot be deleted.
    """
    folder = Folder(step_folder(checkpoints, step))
    if not folder.on_s3:
        with _naming_errors(f"{folder.uri}: the incomplete checkpoint cannot be deleted"):
            folder.delete()


def prune(checkpoints: str, newest_step: int, keep_latest: int, is_own: IsOwn) -> None:
    """Keep the newest ``keep_latest`` complete checkpoints of this run; delete its older ones, and unfinished ones.

    Those after ``newest_step``, the last that the run has written, do not count: it did not continue from them.

    Raises:
        CheckpointError: something cannot be read or deleted.
    """
    folder = Folder(checkpoints)
    kept = 0
    with _naming_errors(f"{checkpoints}: an old checkpoint cannot be deleted"):
        for name in sorted(_step_names(folder), key=_step_of, reverse=True):
            if _step_of(name) > newest_step:
                continue
            owner = _owner(folder.child(name), is_own)
            if owner == "self" and kept < keep_latest:
                kept += 1
            elif kept and owner in ("self", "nobody"):
                _delete(folder.child(name))


def _owner(step: Folder, is_own: IsOwn) -> Literal["self", "nobody", "other"]:
    """Return who wrote the checkpoint ``step``: nobody finished one without a manifest, and others what is unreadable.

    A manifest that is corrupt may be of any run.
    """
    try:
        manifest = CheckpointManifest.from_bytes(step.read(MANIFEST_NAME))
    except FileNotFoundError:
        return "nobody"
    except (CorruptFileError, FormatVersionError, ValidationError):
        return "other"
    return "self" if is_own(manifest) else "other"


@contextmanager
def _naming_errors(action: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{action}: {error}") from error


def _delete(step: Folder) -> None:
    # The manifest goes first: a half-deleted checkpoint must look incomplete, not corrupt.
    step.remove(MANIFEST_NAME)
    step.delete()


State = Literal["complete", "incomplete", "corrupt", "other format"]
Files = Mapping[str, FoundFile]


@dataclass(frozen=True)
class CheckpointEntry:
    """A checkpoint of a list: ``detail`` is why it is not complete, ``modified`` the Unix time of its newest file."""

    step: int
    uri: str
    state: State
    bytes: int
    modified: float | None
    run: str | None = None
    detail: str = ""


def list_checkpoints(checkpoints: str, *, verify: bool = False) -> list[CheckpointEntry]:
    """Return the checkpoints in a folder, the oldest first; with ``verify``, read all their files.

    Raises:
        CheckpointError: storage is unreachable.
    """
    folder = Folder(checkpoints)
    return [_describe(folder.child(name), files, verify=verify) for name, files in _steps(folder)]


def _steps(folder: Folder) -> Iterator[tuple[str, Files]]:
    """Yield the name and the files of each step's folder, by step."""
    by_step: dict[str, dict[str, FoundFile]] = {}
    with _naming_errors(f"{folder.uri}: cannot be read"):
        if not folder.on_s3:  # where a folder may be empty
            by_step = {name: {} for name in folder.names() if STEP_NAME.fullmatch(name)}
        for path, file in folder.files().items():
            name, _, rest = path.partition("/")
            if rest and STEP_NAME.fullmatch(name):
                by_step.setdefault(name, {})[rest] = file
    yield from sorted(by_step.items(), key=lambda item: _step_of(item[0]))


def _describe(step: Folder, files: Files, *, verify: bool) -> CheckpointEntry:
    state: State = "complete"
    run, detail = None, ""
    if MANIFEST_NAME not in files:
        state, detail = "incomplete", "it has no manifest"
    else:
        try:
            checkpoint = open_checkpoint_folder(step)
            run = checkpoint.manifest.training.get("run")
            if verify:
                checkpoint.verify()
        except InputError as error:
            state, detail = "other format", str(error)
        except CheckpointError as error:
            if error.checkpoint is None:
                raise
            state, detail = "corrupt", str(error)
    size = sum(file.bytes for file in files.values())
    modified = max((file.modified for file in files.values()), default=None)
    return CheckpointEntry(_step_of(step.name), step.uri, state, size, modified, run, detail)
