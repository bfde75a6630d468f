"""A temporary folder for copies of models, which another thread may delete.

folder = CopiesFolder()
write_version(model, folder.new_path(), VersionOptions(), reporter)
folder.delete()
"""

from __future__ import annotations

import itertools
import shutil
from contextlib import ExitStack
from pathlib import Path

from crossfade.base.errors import CrossfadeError, Option
from crossfade.base.io.disk_errors import disk_of
from crossfade.base.io.temporary_folder import temporary_folder

_MAX_DELETIONS = 10


class CopiesFolder:
    """A folder in another one, by default ``TMPDIR``, that belongs to this process."""

    def __init__(self, parent: Path | None = None) -> None:
        """Create it in ``parent``.

        Raises:
            OSError: it cannot be written.
        """
        self._opened = ExitStack()
        self.path = self._opened.enter_context(temporary_folder("model", parent))
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
        self._opened.close()


def full_work_disk_error(work: Path) -> CrossfadeError:
    """Return the error that the disk of the working folder ``work`` is full."""
    return CrossfadeError(
        f"{work}: could not be written: no space is left on the disk of {disk_of(work)}; name a folder on a "
        "larger disk with ",
        Option("work_dir"),
    )
