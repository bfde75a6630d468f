"""Whose a folder of checkpoints is: one run's, as the file ``owner.json`` in it says.

Two runs in one folder would delete and damage each other's checkpoints. A run that begins refuses a folder of another;
one that is taken up elsewhere takes its folder along, and whoever had it before finds that out before it next makes a
checkpoint whole, and ends.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from kvstore.errors import CheckpointError, InputError
from kvstore.io.folder import Folder

OWNER_FILE = "owner.json"
_PROBE_FILE = "can-be-written"


def check_claimable(checkpoints: str, run: str | None, name: str, *, take_over: bool) -> None:
    """See that ``claim`` would not refuse the folder, before anything is touched for it.

    ``run`` is None for one that has no id yet.

    Raises:
        InputError: it is another run's, or cannot be written.
    """
    folder = Folder(checkpoints)
    with _explaining(checkpoints):
        _check_free(folder, run, name, take_over=take_over)
        folder.write(_PROBE_FILE, b"")
        with suppress(OSError):  # whoever may not delete can still save
            folder.remove(_PROBE_FILE)


def claim(checkpoints: str, run: str, name: str, *, take_over: bool) -> None:
    """Make the folder ``checkpoints`` that of run ``run``, or see that it is and can be written.

    With ``take_over`` a folder of another run of the same name becomes this run's, as on a host that replaces another.

    Raises:
        InputError: it is another run's, or cannot be written.
    """
    folder = Folder(checkpoints)
    with _explaining(checkpoints):
        _check_free(folder, run, name, take_over=take_over)
        folder.write(OWNER_FILE, json.dumps({"run": run, "name": name}).encode())


def check_still_owned(checkpoints: str, run: str) -> None:
    """See that the folder, which was claimed, still is that of run ``run``.

    Raises:
        InputError: another run has taken it over.
        CheckpointError: that cannot be found out now.
    """
    try:
        owner = _owner(Folder(checkpoints))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{checkpoints}/{OWNER_FILE}: cannot be read: {error}") from error
    if owner is not None and owner.get("run") != run:
        raise InputError(
            f"{checkpoints}: another run, of job '{owner.get('name')}', was started in it with --resume and has taken "
            "it over; this one must not go on"
        )


def _owner(folder: Folder) -> dict[str, Any] | None:
    try:
        owner = json.loads(folder.read(OWNER_FILE))
    except FileNotFoundError:
        return None
    if not isinstance(owner, dict):
        raise ValueError(f"expected an object, but found {type(owner).__name__}")
    return owner


def _check_free(folder: Folder, run: str | None, name: str, *, take_over: bool) -> None:
    owner = _owner(folder)
    if owner is None or (run is not None and owner.get("run") == run) or (take_over and owner.get("name") == name):
        return
    raise InputError(
        f"{folder.uri}: holds checkpoints of another run, of job '{owner.get('name')}'; name another folder in "
        "checkpoint.path, or take that run up with --resume"
    )


@contextmanager
def _explaining(checkpoints: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise InputError(f"{checkpoints}/{OWNER_FILE}: is not what a run writes: {error}") from error
    except OSError as error:
        raise InputError(f"checkpoint.path: {checkpoints} cannot be written: {error}") from error
