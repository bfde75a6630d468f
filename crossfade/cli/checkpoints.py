"""``crossfade checkpoints list | clean``: show the checkpoints of a run, and delete what dead processes have left."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from crossfade.base.errors import InputError
from crossfade.base.formatting import duration, size
from crossfade.base.options import Number, Options, option
from crossfade.cli.command import Command, as_command
from crossfade.terminal import TableOptions, print_line, print_result

if TYPE_CHECKING:
    from crossfade.kvstore.checkpoint.lifecycle import CheckpointEntry, Leftover

_LIST_NOTES = """\
complete       its manifest and the sizes of its files are right; with --verify, also the content of all files
incomplete     it has no manifest: it is being written, or its process died; training does not use it
corrupt        a file is missing, changed or truncated, or has values that are not finite; training does not use it
other format   another version of Crossfade wrote it; training stops rather than overlook it
"""
_CLEAN_NOTES = """\
Deleted are unfinished checkpoints (without a manifest), files in the folder of a complete checkpoint that it does not
list, and temporary files. Complete checkpoints and those that cannot be read stay. What was written within --older-than
stays too, since a run may still be writing it; of a run folder nothing is deleted while a run is in progress in it.
Unfinished uploads to S3, which no listing shows, end by a rule of the bucket: AbortIncompleteMultipartUpload.
"""


class CheckpointsSource(Options):
    """Whose checkpoints."""

    source: str = option(
        ...,
        "use the checkpoints of this run folder or in this folder, which may be on S3",
        group="checkpoints",
        value="FROM",
        positional=True,
    )


class ListCommand(TableOptions, CheckpointsSource):
    """Which checkpoints are listed, and how."""

    verify: bool = option(False, "read all files and compare their checksums", group="output")


class CleanCommand(CheckpointsSource):
    """What is deleted of the folder of checkpoints, and of their run."""

    older_than: Number = option(24.0, "keep what was written within this time", group="deletion", value="HOURS", ge=0)
    dry_run: bool = option(False, "print what would be deleted, and delete nothing", group="deletion")


@as_command(
    "list",
    "Show step, size, age and state of checkpoints, the oldest first.",
    (
        ("crossfade checkpoints list runs/lastfm", "List the checkpoints of a run."),
        ("crossfade checkpoints list s3://music/checkpoints --verify --json", "Read all files; print JSON."),
    ),
    _LIST_NOTES,
)
def _list(options: ListCommand) -> int:
    """Print the checkpoints."""
    from crossfade.kvstore.checkpoint.lifecycle import list_checkpoints

    entries = list_checkpoints(_locate(options.source), verify=options.verify)
    print_result(options, [vars(entry) for entry in entries], lambda: _print(entries), lambda: map(vars, entries))
    return 0


def _print(entries: Sequence[CheckpointEntry]) -> None:
    print_line(f"{'step':>11}  {'size':>9}  {'age':>13}  state" if entries else "no checkpoints")
    for entry in entries:
        age = duration(None if entry.modified is None else time.time() - entry.modified)
        detail = f": {entry.detail}" if entry.detail else ""
        print_line(f"{entry.step:>11,}  {size(entry.bytes):>9}  {age:>13}  {entry.state}{detail}")


@as_command(
    "clean",
    "Delete unfinished checkpoints and temporary files, which processes that died have left.",
    (
        ("crossfade checkpoints clean runs/lastfm --dry-run", "Show what would be deleted."),
        ("crossfade checkpoints clean s3://music/checkpoints --older-than 2", "Delete what is two hours old."),
    ),
    _CLEAN_NOTES,
)
def _clean(options: CleanCommand) -> int:
    """Delete what dead processes have left, and print it."""
    with _leftovers_of(options.source, time.time() - 3600 * options.older_than) as found:
        for leftover in found:
            if not options.dry_run:
                leftover.remove()
            age = duration(time.time() - leftover.modified)
            action = "would delete" if options.dry_run else "deleted"
            print_line(f"{action} {leftover.uri}: {leftover.kind}, {size(leftover.bytes)}, {age} old")
    total = size(sum(leftover.bytes for leftover in found))
    print_line(f"{len(found)} {'to delete' if options.dry_run else 'deleted'}, {total}")
    return 0


def _locate(text: str) -> str:
    """Return the folder of the checkpoints that ``text``, a path or URI, names.

    Raises:
        InputError: it names none.
    """
    from crossfade.base.io.folder import Folder
    from crossfade.base.io.storage_errors import translate_storage_errors
    from crossfade.kvstore.checkpoint.format import MANIFEST_NAME
    from crossfade.trainer.runs.run_folder import JOB_FILE, RunFolder

    folder = Folder(text)
    expected = "expected a run folder, or a folder of checkpoints such as runs/NAME/checkpoints"
    with translate_storage_errors(text, action="read", unreachable=InputError):
        names = folder.names()
    if not names:
        raise InputError(f"{text}: no such folder, or an empty one; {expected}")
    if MANIFEST_NAME in names:
        raise InputError(f"{text}: is not a folder of checkpoints; {expected}")
    if JOB_FILE not in names:
        return folder.uri
    if folder.path is None:
        return folder.child("checkpoints").uri
    run = RunFolder(folder.path)
    return run.checkpoints(run.job())


@contextmanager
def _leftovers_of(source: str, written_before: float) -> Iterator[list[Leftover]]:
    """Yield what can be deleted of a run or a folder of checkpoints; no run starts in a run folder meanwhile.

    Raises:
        InputError: there are no checkpoints, or a run is in progress.
    """
    from crossfade.kvstore.checkpoint.lifecycle import Leftover, find_leftovers
    from crossfade.trainer.runs.run_folder import JOB_FILE, RunFolder

    checkpoints = _locate(source)
    found: list[Leftover] = []
    with ExitStack() as locked:
        if "://" not in source and (Path(source) / JOB_FILE).exists():
            run = RunFolder(Path(source))
            locked.enter_context(run.lock.kept_free())
            found += [
                Leftover(str(path), "temporary file", path.stat().st_size, path.stat().st_mtime, path.unlink)
                for path in run.unfinished_files()
                if path.stat().st_mtime <= written_before
            ]
        yield [*found, *find_leftovers(checkpoints, written_before)]


run: Command[Options] = Command(
    "checkpoints",
    "List checkpoints, and delete what dead processes have left.",
    (
        ("crossfade checkpoints list runs/lastfm", "Show step, size, age and state of the checkpoints of a run."),
        ("crossfade checkpoints clean s3://music/checkpoints --dry-run", "Show what could be deleted."),
    ),
    actions=(
        (_list, "show step, size, age and state of checkpoints"),
        (_clean, "delete unfinished checkpoints and temporary files"),
    ),
)
