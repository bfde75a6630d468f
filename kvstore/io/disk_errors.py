"""State why writing failed: of a full disk, also which one.

except OSError as error:
    raise CrossfadeError(f"{out}: could not be written: {write_failure(error, out)}") from error
"""

from __future__ import annotations

import errno
from pathlib import Path

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_FULL_TEXTS = ("No space left on device", "database or disk is full", " requested and ")
"""How libraries tell it that pass no error number: Arrow and FAISS, SQLite, and numpy, which counts elements."""


def write_failure(error: OSError, path: Path) -> str:
    """Return the cause of ``error``, which writing to ``path`` or beside it raised."""
    text = " ".join(str(error).split())
    if error.errno in _FULL or any(full in text for full in _FULL_TEXTS):
        return f"no space is left on the disk of {_mount(path)}"
    return error.strerror or text


def describe_disk_error(error: OSError) -> str:
    """Return a message on ``error``, which nothing has put into words; of a full disk, it names the disk."""
    if error.errno in _FULL and isinstance(error.filename, str):
        return f"{error.filename}: could not be written: {write_failure(error, Path(error.filename))}"
    return str(error)


def _mount(path: Path) -> Path:
    """Return where the disk of ``path`` is mounted."""
    place = path.absolute()
    while not place.is_mount() and place != place.parent:
        place = place.parent
    return place
