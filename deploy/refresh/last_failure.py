"""Note the last attempt of a service if it failed, which its status shows: when, why, and in which code.

note_failure(folder, error)
read_failure(folder)                # None: the last attempt succeeded
clear_failure(folder)
"""

from __future__ import annotations

import time
import traceback
from pathlib import Path

from crossfade.base.errors import CrossfadeError, as_typed, escape_unprintable
from crossfade.base.io.disk_errors import describe_disk_error
from crossfade.base.io.durable_file import replace_file
from crossfade.deploy.refresh.versions import StoredRecord, read_stored
from crossfade.trainer.runs.events import UnixTime

FAILURE_FILE = "last_failure.json"


class Failure(StoredRecord):
    """An attempt that failed: when, its message and, of an unexpected error, the traceback."""

    at: UnixTime
    message: str
    traceback: str | None = None


def failure_message(error: Exception) -> str:
    """Return a message of one line; of an unexpected error, it has the type."""
    if isinstance(error, CrossfadeError):
        return error.worded(as_typed)
    if isinstance(error, OSError):
        return describe_disk_error(error)
    return escape_unprintable(f"unexpected {type(error).__name__}: {str(error)[:_MAX_TEXT]}")


def note_failure(folder: Path, error: Exception) -> None:
    """Note that an attempt failed with ``error``.

    Raises:
        OSError: the disk is full.
    """
    is_expected = isinstance(error, CrossfadeError | OSError)
    lines = None if is_expected else "".join(traceback.format_exception(error, limit=-_MAX_FRAMES))
    found = Failure(at=time.time(), message=failure_message(error), traceback=lines)
    replace_file(folder / FAILURE_FILE, found.model_dump_json(indent=1).encode(errors="backslashreplace"))


def read_failure(folder: Path) -> Failure | None:
    """Return the failure of the last attempt; None if it succeeded.

    Raises:
        InputError: the note was damaged.
    """
    path = folder / FAILURE_FILE
    return read_stored(Failure, path, "the note of a failure", "delete it") if path.exists() else None


def clear_failure(folder: Path) -> None:
    """Note that the last attempt succeeded."""
    (folder / FAILURE_FILE).unlink(missing_ok=True)


_MAX_TEXT = 500
_MAX_FRAMES = 30
