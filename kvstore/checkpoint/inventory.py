"""List the checkpoints of a folder, and what processes that died have left there.

    for entry in list_checkpoints("runs/plays/checkpoints"):
        entry.step, entry.state, entry.bytes
    for leftover in find_leftovers("s3://music/checkpoints", written_before=time.time() - 86_400):
        leftover.remove()

A leftover is never part of a checkpoint that is complete or that cannot be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from crossfade.base.errors import CheckpointError, InputError
from crossfade.base.io.durable_file import is_partial
from crossfade.base.io.folder import Folder
from crossfade.base.io.found_file import FoundFile
from crossfade.kvstore.checkpoint.files import MANIFEST_NAME, STEP_NAME
from crossfade.kvstore.checkpoint.reader import Checkpoint, open_checkpoint_folder

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


@dataclass(frozen=True)
class Leftover:
    """Something that no checkpoint needs: ``modified`` is the Unix time of its newest part, ``remove`` deletes it."""

    uri: str
    kind: str
    bytes: int
    modified: float
    remove: Callable[[], None]


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
    try:
        if not folder.on_s3:  # where a folder may be empty
            by_step = {name: {} for name in folder.names() if STEP_NAME.fullmatch(name)}
        for path, file in folder.files().items():
            name, _, rest = path.partition("/")
            if rest and STEP_NAME.fullmatch(name):
                by_step.setdefault(name, {})[rest] = file
    except OSError as error:
        raise CheckpointError(f"{folder.uri}: cannot be read: {error}") from error
    yield from sorted(by_step.items(), key=lambda item: int(item[0].removeprefix("step-")))


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
    number = int(step.name.removeprefix("step-"))
    return CheckpointEntry(number, step.uri, state, size, modified, run, detail)


def find_leftovers(checkpoints: str, written_before: float) -> list[Leftover]:
    """Return what no process has written to since ``written_before``, Unix time, and no checkpoint needs.

    That is unfinished checkpoints, files of a complete checkpoint's folder that it does not list, and temporary files.

    Raises:
        CheckpointError: storage is unreachable.
    """
    folder = Folder(checkpoints)
    found = [leftover for name, files in _steps(folder) for leftover in _leftovers_of(folder.child(name), files)]
    for name, file in _top_level(folder).items():
        if is_partial(name):
            found.append(Leftover(f"{folder.uri}/{name}", "temporary file", *file, partial(folder.remove, name)))
    return [leftover for leftover in found if leftover.modified <= written_before]


def _top_level(folder: Folder) -> Files:
    try:
        return {path: file for path, file in folder.files().items() if "/" not in path}
    except OSError as error:
        raise CheckpointError(f"{folder.uri}: cannot be read: {error}") from error


def _leftovers_of(step: Folder, files: Files) -> Iterator[Leftover]:
    newest = max((file.modified for file in files.values()), default=0.0)
    if MANIFEST_NAME not in files:
        size = sum(file.bytes for file in files.values())
        yield Leftover(step.uri, "unfinished checkpoint", size, newest, partial(_remove_unfinished, step))
        return
    try:
        listed = open_checkpoint_folder(step).files()
    except (InputError, CheckpointError):
        return  # What it needs is not known.
    for path in sorted(files.keys() - listed):
        yield Leftover(
            f"{step.uri}/{path}", "file of no checkpoint", *files[path], partial(_remove_unlisted, step, path)
        )


def _remove_unfinished(step: Folder) -> None:
    """Delete ``step``, unless it has been completed since it was listed."""
    if not step.exists(MANIFEST_NAME):
        step.delete()


def _remove_unlisted(step: Folder, path: str) -> None:
    """Delete a file of ``step``, unless its checkpoint lists it by now."""
    checkpoint: Checkpoint = open_checkpoint_folder(step)
    if path not in checkpoint.files():
        step.remove(path)
