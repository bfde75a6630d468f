"""``crossfade checkpoints list``: show the checkpoints of a run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from crossfade.base.errors import InputError
from crossfade.base.formatting import duration, size
from crossfade.base.options import Options, option
from crossfade.cli.command import Command, as_command
from crossfade.terminal import PrintOptions, print_line, print_result

if TYPE_CHECKING:
    from crossfade.kvstore.checkpoint.lifecycle import CheckpointEntry

_LIST_NOTES = """\
complete       its manifest and the sizes of its files are right; with --verify, also the content of all files
incomplete     it has no manifest: it is being written, or its process died; training does not use it
corrupt        a file is missing, changed or truncated, or has values that are not finite; training does not use it
other format   another version of Crossfade wrote it; training stops rather than overlook it
"""


class ListCommand(PrintOptions):
    """Which checkpoints are listed, and how."""

    source: str = option(
        ...,
        "use the checkpoints of this run folder or in this folder, which may be on S3",
        group="checkpoints",
        value="FROM",
        positional=True,
    )
    verify: bool = option(False, "read all files and compare their checksums", group="output")


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
    print_result(options, [vars(entry) for entry in entries], lambda: _print(entries))
    return 0


def _print(entries: Sequence[CheckpointEntry]) -> None:
    print_line(f"{'step':>11}  {'size':>9}  {'age':>13}  state" if entries else "no checkpoints")
    for entry in entries:
        age = duration(None if entry.modified is None else time.time() - entry.modified)
        detail = f": {entry.detail}" if entry.detail else ""
        print_line(f"{entry.step:>11,}  {size(entry.bytes):>9}  {age:>13}  {entry.state}{detail}")


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


run: Command[Options] = Command(
    "checkpoints",
    "Show the checkpoints of a run.",
    (
        ("crossfade checkpoints list runs/lastfm", "Show step, size, age and state of the checkpoints of a run."),
        ("crossfade checkpoints list s3://music/checkpoints --verify", "Read all files."),
    ),
    actions=((_list, "show step, size, age and state of checkpoints"),),
)
