"""``crossfade checkpoints list | clean``: show the checkpoints of a run, and delete what dead processes have left."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from crossfade.base.formatting import duration, size
from crossfade.base.options import Number, Options, option
from crossfade.cli.command import Command, as_command
from crossfade.terminal import TableOptions, print_line, print_result

if TYPE_CHECKING:
    from crossfade.kvstore.checkpoint.lifecycle import CheckpointEntry

_LIST_NOTES = """\
complete       its manifest and the sizes of its files are right; with --verify, also the content of all files
incomplete     it has no manifest: it is being written, or its process died; training does not use it
corrupt        a file is missing, changed or truncated, or has values that are not finite; training does not use it
other format   another version of Crossfade wrote it; training stops rather than overlook it
"""
_CLEAN_NOTES = """\
Deleted are unfinished checkpoints (without a manifest), files in the folder of a complete checkpoint that it does not
list, temporary files and, on S3, unfinished uploads (which need the package boto3: pip install 'crossfade[aws]').
Complete checkpoints and those that cannot be read stay. What was written within --older-than stays too, since a run may
still be writing it; of a run folder nothing is deleted while a run is in progress in it.
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
    from crossfade.deploy.checkpoint_cleaning import locate_checkpoints
    from crossfade.kvstore.checkpoint.lifecycle import list_checkpoints

    entries = list_checkpoints(locate_checkpoints(options.source), verify=options.verify)
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
    "Delete unfinished checkpoints, uploads and temporary files, which processes that died have left.",
    (
        ("crossfade checkpoints clean runs/lastfm --dry-run", "Show what would be deleted."),
        ("crossfade checkpoints clean s3://music/checkpoints --older-than 2", "Delete what is two hours old."),
    ),
    _CLEAN_NOTES,
)
def _clean(options: CleanCommand) -> int:
    """Delete what dead processes have left, and print it."""
    from crossfade.deploy.checkpoint_cleaning import leftovers_of

    with leftovers_of(options.source, time.time() - 3600 * options.older_than) as found:
        for leftover in found:
            if not options.dry_run:
                leftover.remove()
            age = duration(time.time() - leftover.modified)
            action = "would delete" if options.dry_run else "deleted"
            print_line(f"{action} {leftover.uri}: {leftover.kind}, {size(leftover.bytes)}, {age} old")
    total = size(sum(leftover.bytes for leftover in found))
    print_line(f"{len(found)} {'to delete' if options.dry_run else 'deleted'}, {total}")
    return 0


run: Command[Options] = Command(
    "checkpoints",
    "List checkpoints, and delete what dead processes have left.",
    (
        ("crossfade checkpoints list runs/lastfm", "Show step, size, age and state of the checkpoints of a run."),
        ("crossfade checkpoints clean s3://music/checkpoints --dry-run", "Show what could be deleted."),
    ),
    actions=(
        (_list, "show step, size, age and state of checkpoints"),
        (_clean, "delete unfinished checkpoints, uploads and temporary files"),
    ),
)
