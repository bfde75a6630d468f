"""Locks of files that several processes open, on Linux and macOS: held until the file is closed.

file = path.open("r+")
try_lock(file)                    # BlockingIOError: another process holds it
with folder_lock(folder): ...     # waits
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


def try_lock(file: IO[Any] | int) -> None:
    """Lock ``file``, a file or its descriptor.

    Raises:
        BlockingIOError: another process holds the lock.
        OSError: the file system has no locks.
    """
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Lock ``folder``, as soon as no other process holds its lock, while the context lasts."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
