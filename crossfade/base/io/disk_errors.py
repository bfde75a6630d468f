"""State why writing failed: of a full disk, also which one.

except OSError as error:
    raise CrossfadeError(f"{out}: could not be written: {write_failure(error, out)}") from error
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crossfade.base.errors import CrossfadeError, InputError, Text

TEMPORARY_ADVICE = "name another disk for temporary files with TMPDIR"
_FULL = {errno.ENOSPC, errno.EDQUOT}
_FULL_TEXT = re.compile(
    "|".join([*(re.escape(os.strerror(number)) for number in _FULL), "database or disk is full"])
    + r"|\d+ requested and \d+ written"
)
"""Messages of Arrow, DuckDB, FAISS, and SQLite, whose errors have no number, and of numpy, which counts elements."""


def is_full_disk(error: BaseException) -> bool:
    """Return whether ``error`` is about a full disk."""
    return getattr(error, "errno", None) in _FULL or _FULL_TEXT.search(str(error)) is not None


def write_failure(error: OSError, path: Path) -> str:
    """Return the cause of ``error``, which writing to ``path`` or beside it raised."""
    if is_full_disk(error):
        return f"no space is left on the disk of {disk_of(path)}"
    return error.strerror or " ".join(str(error).split())


def write_error(subject: Text, error: OSError, path: Path) -> CrossfadeError:
    """Return the error that ``subject``, an option or file, cannot be written, since writing to ``path`` has failed.

    It is an ``InputError``, since the path may be wrong, unless the disk is full.
    """
    if is_full_disk(error):
        return CrossfadeError(subject, f": could not be written: {write_failure(error, path)}")
    return InputError(subject, f": cannot be written: {write_failure(error, path)}")


def describe_disk_error(error: OSError) -> str:
    """Return a message on ``error``, which nothing has put into words; of a full disk, it names the disk."""
    if is_full_disk(error) and isinstance(error.filename, str):
        return f"{error.filename}: could not be written: {write_failure(error, Path(error.filename))}"
    return str(error)


def full_disk_error(path: Path, advice: Text) -> CrossfadeError:
    """Return the error that the disk of ``path`` is full; ``advice`` is how to use another one."""
    disk = disk_of(path)
    usage = shutil.disk_usage(disk)
    return CrossfadeError(
        f"the disk at {disk} is full: {usage.free / 1e6:,.1f} of {usage.total / 1e6:,.1f} MB are free; make room, or ",
        advice,
        "; nothing was written",
    )


@contextmanager
def full_disk_errors(path: Path, advice: Text) -> Iterator[None]:
    """Raise an ``OSError`` of a full disk as one that names the disk: of its file, or else of ``path``.

    Raises:
        CrossfadeError: a disk is full.
    """
    try:
        yield
    except OSError as error:
        if not is_full_disk(error):
            raise
        raise full_disk_error(Path(error.filename or path), advice) from error


def disk_of(path: Path) -> Path:
    """Return where the disk of ``path`` is mounted."""
    place = path.absolute()
    while not place.is_mount() and place != place.parent:
        place = place.parent
    return place
