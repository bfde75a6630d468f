"""Locks of files that several processes open, on Linux, macOS, and Windows: held until the file is closed.

file = path.open("r+")
try_lock(file)                    # BlockingIOError: another process holds it
with folder_lock(folder): ...     # waits
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

if sys.platform == "win32":  # not tried: there was no such machine
    import msvcrt

    # Far behind what a file holds, since Windows does not let others read what is locked: the record of the owner. (The
    # package filelock locks the first byte.)
    _POSITION = 1 << 30
    _POLL_SECONDS = 0.05

    def try_lock(file: IO[Any] | int) -> None:
        """Lock ``file``, a file or its descriptor.

        Raises:
            BlockingIOError: another process holds the lock.
            OSError: the file system has no locks.
        """
        descriptor = file if isinstance(file, int) else file.fileno()
        position = os.lseek(descriptor, 0, os.SEEK_CUR)
        os.lseek(descriptor, _POSITION, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(*error.args) from error
        finally:
            os.lseek(descriptor, position, os.SEEK_SET)

    def share_lock(file: IO[Any]) -> None:
        """Do nothing: what is open cannot be deleted."""

    def _open_folder(folder: Path) -> int:
        return os.open(folder / ".crossfade.lock", os.O_RDWR | os.O_CREAT)

    def _wait_for_lock(descriptor: int) -> None:
        while True:
            try:
                return try_lock(descriptor)
            except BlockingIOError:
                time.sleep(_POLL_SECONDS)

else:
    import fcntl

    def try_lock(file: IO[Any] | int) -> None:
        """Lock ``file``, a file or its descriptor.

        Raises:
            BlockingIOError: another process holds the lock.
            OSError: the file system has no locks.
        """
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def share_lock(file: IO[Any]) -> None:
        """Lock ``file`` against ``try_lock``, together with others that share its lock.

        Raises:
            BlockingIOError: another process holds the lock alone.
            OSError: the file system has no locks.
        """
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def _open_folder(folder: Path) -> int:
        return os.open(folder, os.O_RDONLY)

    def _wait_for_lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Lock ``folder``, as soon as no other process holds its lock, while the context lasts."""
    descriptor = _open_folder(folder)
    try:
        _wait_for_lock(descriptor)
        yield
    finally:
        os.close(descriptor)
