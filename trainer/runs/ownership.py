"""Ownership of checkpoint folders: one run each, which the file ``owner.json`` in the folder names.

Two runs in one folder would delete and corrupt each other's checkpoints. A new run rejects the folder of another run,
and one that holds checkpoints without an owner. A run that resumes on another machine takes its folder over; the
process that had it before detects that before it commits its next checkpoint, and ends. So does a command whose run
another command has resumed while it was frozen. ``owner.json`` lists the runs that the owner has taken over from: their
checkpoints are its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from crossfade.base.errors import CheckpointError, InputError, Option
from crossfade.base.io.folder import Folder
from crossfade.base.json_text import parse_json
from crossfade.kvstore.checkpoint.format import STEP_NAME

OWNER_FILE = "owner.json"
_PROBE_FILE = "can-be-written"


def check_claimable(checkpoints: str, run: str | None, name: str, *, take_over: bool) -> None:
    """Check that ``claim`` would accept the folder, before anything else is changed.

    Args:
        checkpoints: path or URI of the folder.
        run: ID of the run; None if it has none yet.
        name: name of its job.
        take_over: whether a folder of another run of the same name is accepted.

    Raises:
        InputError: it belongs to another run, or cannot be written.
    """
    folder = Folder(checkpoints)
    with _input_errors(checkpoints):
        _check_owner(folder, run, name, take_over=take_over)
        folder.write(_PROBE_FILE, b"")
        with suppress(OSError):  # permission to write does not imply permission to delete
            folder.remove(_PROBE_FILE)


def claim(checkpoints: str, run: str, name: str, command: str | None = None, *, take_over: bool) -> None:
    """Make the run ``run`` of the job ``name``, as run by ``command``, the owner of the folder.

    With ``take_over`` it replaces another run of the same name, as on a host that replaces another.

    Raises:
        InputError: it belongs to another run, or cannot be written.
    """
    folder = Folder(checkpoints)
    with _input_errors(checkpoints):
        owner = _check_owner(folder, run, name, take_over=take_over) or {}
        earlier = [*_earlier_runs(owner), *([owner["run"]] if owner.get("run") not in (None, run) else [])]
        values = {"run": run, "name": name, "command": command, "earlier_runs": earlier}
        folder.write(OWNER_FILE, json.dumps(values).encode())


def check_still_owned(checkpoints: str, run: str, command: str | None = None) -> set[str]:
    """Check that the folder, which ``command`` has claimed for ``run``, has no other owner; None: any command.

    Returns the runs whose checkpoints it may delete: itself, and those that it has taken the folder over from.

    Raises:
        InputError: another run or command has taken it over.
        CheckpointError: the owner cannot be read.
    """
    try:
        owner = _read_owner(Folder(checkpoints))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{checkpoints}/{OWNER_FILE}: cannot be read: {error}") from error
    if owner is not None and owner.get("run") != run:
        raise InputError(
            f"{checkpoints}: another run, of job '{owner.get('name')}', was started in it with ",
            Option("resume"),
            " and has taken it over; this run ends, since two runs would overwrite each other's checkpoints",
        )
    if owner is not None and command is not None and owner.get("command") not in {None, command}:
        raise InputError(
            f"{checkpoints}: another command, with ",
            Option("resume"),
            " or ",
            Option("standby"),
            ", has taken the run over; this one ends, since two commands would overwrite each other's checkpoints",
        )
    return {run, *_earlier_runs(owner or {})}


def _earlier_runs(owner: dict[str, Any]) -> list[str]:
    earlier = owner.get("earlier_runs", [])
    return earlier if isinstance(earlier, list) else []


def _read_owner(folder: Folder) -> dict[str, Any] | None:
    try:
        owner = parse_json(folder.read(OWNER_FILE))
    except FileNotFoundError:
        return None
    if not isinstance(owner, dict):
        raise ValueError(f"expected an object, but found {type(owner).__name__}")
    return owner


def _check_owner(folder: Folder, run: str | None, name: str, *, take_over: bool) -> dict[str, Any] | None:
    owner = _read_owner(folder)
    if owner is None:
        # Files, since some servers of S3 list a folder for a while after its last file was deleted.
        steps = {path.partition("/")[0] for path in folder.sizes()} if not take_over else set()
        if steps := set(filter(STEP_NAME.fullmatch, steps)):
            raise InputError(
                f"{folder.uri}: holds checkpoints of an earlier run ({max(steps)}), but no {OWNER_FILE} that names it; "
                "set checkpoint.path to another folder, or continue that run with ",
                Option("resume"),
            )
        return None
    if (run is not None and owner.get("run") == run) or (take_over and owner.get("name") == name):
        return owner
    raise InputError(
        f"{folder.uri}: holds checkpoints of another run, of job '{owner.get('name')}'; set checkpoint.path to another "
        "folder, or continue that run with ",
        Option("resume"),
    )


@contextmanager
def _input_errors(checkpoints: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise InputError(f"{checkpoints}/{OWNER_FILE}: cannot be parsed: {error}") from error
    except OSError as error:
        raise InputError(f"checkpoint.path: {checkpoints} cannot be written: {error}") from error
