"""A temporary folder for copies of models that does not outlive its process for long.

    folder = CopiesFolder()
    write_version(model, folder.new_path(), VersionOptions(), reporter)
    folder.delete()

What a killed process has left behind is deleted by the next one that creates such a folder.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from crossfade.base.errors import CrossfadeError, option_named
from crossfade.base.io.disk_errors import disk_of
from crossfade.base.io.file_lock import try_lock

_PREFIX = "crossfade-model-"
_LOCK_FILE = "lock"
"""Locked as long as the process of its folder lives."""
_MAX_DELETIONS = 10


class CopiesFolder:
    """A folder in another one, by default ``TMPDIR``, that belongs to this process."""

    def __init__(self, parent: Path | None = None) -> None:
        """Create it in ``parent``, and delete those of processes that have ended.

        Raises:
            OSError: it cannot be written.
        """
        delete_abandoned_copies(parent)
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        # It gets its name when it is locked, so that no other process sees it unlocked.
        unlocked = self.path / f"{_LOCK_FILE}.partial"
        self._lock = unlocked.open("w", encoding="ascii")
        try_lock(self._lock)
        unlocked.rename(self.path / _LOCK_FILE)
        self._numbers = itertools.count(1)

    def new_path(self) -> Path:
        """Return the path of a folder that does not exist."""
        return self.path / f"{next(self._numbers):06d}"

    def free_bytes(self) -> int:
        """Return how many bytes its disk has room for."""
        return shutil.disk_usage(self.path).free

    def delete(self) -> None:
        """Delete the folder, also while a thread writes into it."""
        for _ in range(_MAX_DELETIONS):
            shutil.rmtree(self.path, ignore_errors=True)
            if not self.path.exists():
                break
        self._lock.close()


def full_work_disk_error(work: Path) -> CrossfadeError:
    """Return the error that the disk of the working folder ``work`` is full."""
    return CrossfadeError(
        f"{work}: could not be written: no space is left on the disk of {disk_of(work)}; name a folder on a "
        f"larger disk with {option_named('work_dir')}"
    )


def delete_abandoned_copies(parent: Path | None = None) -> None:
    """Delete what processes that were killed have left behind in ``parent``, by default ``TMPDIR``."""
    for path in (parent or Path(tempfile.gettempdir())).glob(f"{_PREFIX}*"):
        # An error means that its process lives, that it has just been deleted, or that it is another user's.
        with suppress(OSError), (path / _LOCK_FILE).open("r+", encoding="ascii") as lock:
            try_lock(lock)
            shutil.rmtree(path)
