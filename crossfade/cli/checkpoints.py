"""``crossfade checkpoints list | clean``: show the checkpoints of a run, and delete what dead processes have left."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from crossfade.cli.options.command import add_command
from crossfade.cli.options.parsing import hours
from crossfade.terminal import print_json, print_line

if TYPE_CHECKING:
    from contextlib import ExitStack

    from crossfade.kvstore.checkpoint.inventory import CheckpointEntry, Leftover

_FROM = "FROM is a run folder or a folder of checkpoints, either of which may be on S3."
_LIST_NOTES = f"""\
{_FROM}

complete       its manifest and the sizes of its files are right; with --verify, also the content of all files
incomplete     it has no manifest: it is being written, or its process died; training does not use it
corrupt        a file is missing, changed or truncated, or has values that are not finite; training does not use it
other format   another version of Crossfade wrote it; training stops rather than overlook it

Training deletes complete checkpoints that are older than the newest checkpoint.keep_latest, and no others.
"""
_CLEAN_NOTES = f"""\
{_FROM}

Deleted are unfinished checkpoints (without a manifest), files in the folder of a complete checkpoint that it does not
list, temporary files and, on S3, unfinished uploads (which need the package boto3: pip install 'crossfade[aws]').
Complete checkpoints and those that cannot be read stay. What was written within --older-than stays too, since a run may
still be writing it; of a run folder nothing is deleted while a run is in progress in it.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser: argparse.ArgumentParser = add_command(
        commands,
        "checkpoints",
        "list checkpoints, and delete what dead processes have left",
        "List checkpoints, and delete what dead processes have left.",
        examples=(
            ("crossfade checkpoints list runs/lastfm", "Show step, size, age and state of the checkpoints of a run."),
            ("crossfade checkpoints clean s3://music/checkpoints --dry-run", "Show what could be deleted."),
        ),
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    _add_list(actions)
    _add_clean(actions)


def _add_list(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(
        actions,
        "list",
        "show step, size, age and state of checkpoints",
        "Show step, size, age and state of checkpoints, the oldest first.",
        examples=(
            ("crossfade checkpoints list runs/lastfm", "List the checkpoints of a run."),
            ("crossfade checkpoints list s3://music/checkpoints --verify --json", "Read all files; print JSON."),
        ),
        notes=_LIST_NOTES,
    )
    _add_from(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--verify", action="store_true", help="read all files and compare their checksums")
    output.add_argument("--json", action="store_true", help="print a list of JSON objects, one for each checkpoint")
    parser.set_defaults(run=_list)


def _add_clean(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(
        actions,
        "clean",
        "delete unfinished checkpoints, uploads and temporary files",
        "Delete unfinished checkpoints, uploads and temporary files, which processes that died have left.",
        examples=(
            ("crossfade checkpoints clean runs/lastfm --dry-run", "Show what would be deleted."),
            ("crossfade checkpoints clean s3://music/checkpoints --older-than 2", "Delete what is two hours old."),
        ),
        notes=_CLEAN_NOTES,
    )
    _add_from(parser)
    deletion = parser.add_argument_group("deletion")
    deletion.add_argument(
        "--older-than",
        type=hours,
        default=24.0,
        metavar="HOURS",
        help="keep what was written within this time (default: 24)",
    )
    deletion.add_argument("--dry-run", action="store_true", help="print what would be deleted, and delete nothing")
    parser.set_defaults(run=_clean)


def _add_from(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("checkpoints")
    group.add_argument("source", metavar="FROM", help="use the checkpoints of this run folder or in this folder")


def _locate(text: str) -> str:
    """Return the folder of the checkpoints that ``text``, a path or URI, names.

    Raises:
        InputError: it names none.
    """
    from crossfade.base.errors import InputError
    from crossfade.base.io.folder import Folder
    from crossfade.base.io.storage_errors import translate_storage_errors
    from crossfade.kvstore.checkpoint.files import MANIFEST_NAME
    from crossfade.trainer.runs.folder import JOB_FILE, RunFolder

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


def _list(arguments: argparse.Namespace) -> int:
    """Print the checkpoints."""
    from crossfade.kvstore.checkpoint.inventory import list_checkpoints

    entries = list_checkpoints(_locate(arguments.source), verify=arguments.verify)
    if arguments.json:
        print_json([vars(entry) for entry in entries])
    elif entries:
        _print_entries(entries)
    else:
        print_line("no checkpoints")
    return 0


def _print_entries(entries: Sequence[CheckpointEntry]) -> None:
    from crossfade.base import formatting as text
    from crossfade.base.errors import escape_unprintable

    now = time.time()
    print_line(f"{'step':>11}  {'size':>9}  {'age':>13}  state")
    for entry in entries:
        age = text.duration(None if entry.modified is None else now - entry.modified)
        detail = f": {escape_unprintable(entry.detail)}" if entry.detail else ""
        print_line(f"{entry.step:>11,}  {text.size(entry.bytes):>9}  {age:>13}  {entry.state}{detail}")


def _clean(arguments: argparse.Namespace) -> int:
    """Delete what dead processes have left, and print it."""
    from contextlib import ExitStack

    from crossfade.base import formatting as text
    from crossfade.base.errors import escape_unprintable

    with ExitStack() as locked:
        found = _find(arguments.source, time.time() - 3600 * arguments.older_than, locked)
        for leftover in found:
            if not arguments.dry_run:
                leftover.remove()
            age = text.duration(time.time() - leftover.modified)
            action = "would delete" if arguments.dry_run else "deleted"
            uri = escape_unprintable(leftover.uri)
            print_line(f"{action} {uri}: {leftover.kind}, {text.size(leftover.bytes)}, {age} old")
    size = text.size(sum(leftover.bytes for leftover in found))
    print_line(f"{len(found)} to delete, {size}" if arguments.dry_run else f"{len(found)} deleted, {size}")
    return 0


def _find(source: str, written_before: float, locked: ExitStack) -> list[Leftover]:
    """Find what can be deleted; keep a run from starting in a run folder until ``locked`` closes."""
    from crossfade.kvstore.checkpoint.inventory import Leftover, find_leftovers
    from crossfade.trainer.runs.folder import JOB_FILE, RunFolder

    checkpoints = _locate(source)
    found: list[Leftover] = []
    if "://" not in source and (Path(source) / JOB_FILE).exists():
        run = RunFolder(Path(source))
        locked.enter_context(run.lock.kept_free())
        found += [
            Leftover(str(path), "temporary file", path.stat().st_size, path.stat().st_mtime, path.unlink)
            for path in run.unfinished_files()
            if path.stat().st_mtime <= written_before
        ]
    found += find_leftovers(checkpoints, written_before)
    if checkpoints.startswith("s3://"):
        found += _find_uploads(checkpoints, written_before)
    return found


def _find_uploads(checkpoints: str, started_before: float) -> list[Leftover]:
    from importlib.util import find_spec

    from crossfade.base.errors import MissingExtraError
    from crossfade.deploy.aws.clients import Aws
    from crossfade.deploy.aws.uploads import find_uploads

    if find_spec("boto3") is None:
        raise MissingExtraError("boto3", "aws", "crossfade checkpoints clean on S3")
    return find_uploads(Aws(), checkpoints, started_before)
