"""Temporary folders that do not outlive their processes for long.

with temporary_folder("vectors") as work: ...

A process locks a file in its folder. What a killed process has left is deleted by the next one that creates such a
folder in the same place.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "crossfade-"
_LOCK_FILE = ".crossfade.lock"


@contextmanager
def temporary_folder(purpose: str, parent: Path | None = None) -> Iterator[Path]:
    """Create the folder ``crossfade-PURPOSE-…`` in ``parent``, by default ``TMPDIR``; delete it when the context ends.

    Raises:
        OSError: it cannot be written.
    """
    for path in (parent or Path(tempfile.gettempdir())).glob(f"{_PREFIX}*/{_LOCK_FILE}"):
        # An error means that its process lives, that it has just been deleted, or that it is another user's.
        # Others can write there: a link is not followed, and a FIFO does not block.
        with suppress(OSError), os.fdopen(os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path.parent)
    # What cannot be deleted at the end is left to the next process.
    with (
        tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{purpose}-", dir=parent, ignore_cleanup_errors=True) as name,
        Path(name, f"{_LOCK_FILE}.partial").open("w", encoding="ascii") as lock,
    ):
        with suppress(OSError):  # The file system has no locks: no other process can lock the file, either.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # It gets its name when it is locked, so that no other process sees it unlocked.
        Path(lock.name).rename(Path(name, _LOCK_FILE))
        yield Path(name)
