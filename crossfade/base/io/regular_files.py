"""Open local files that others may have put there: only regular ones, and only up to a size.

data = read_regular("runs/plays/report.json", max_bytes=SMALL_FILE_BYTES)

A FIFO in place of a file would block its reader forever, a device may never end, and a sparse file of any size costs
nothing to make.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import NamedTuple

SMALL_FILE_BYTES = 64 << 20
"""Largest manifest or other small file that is read: a dataset of a trillion interactions has a manifest of 60 MB."""
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)


class FoundFile(NamedTuple):
    """A file of a listing: its size, and when it was last written, as Unix time."""

    bytes: int
    modified: float


class UnsuitableFileError(OSError):
    """A file that is never read: it is no regular file, or it is larger than files of its kind can be."""


def open_regular(path: str | os.PathLike[str]) -> int:
    """Open the file ``path`` for reading, without waiting; return its descriptor.

    Raises:
        IsADirectoryError: it is a folder.
        UnsuitableFileError: it is a FIFO, a socket, or a device.
        OSError: it cannot be opened.
    """
    # Before it is opened, since opening some devices has effects.
    mode = Path(path).stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(mode):
        raise UnsuitableFileError(errno.EINVAL, "not a regular file, but a FIFO, socket or device", os.fspath(path))
    return os.open(path, _FLAGS)


def read_regular(path: str | os.PathLike[str], max_bytes: int = SMALL_FILE_BYTES) -> bytes:
    """Read the regular file ``path``.

    Raises:
        UnsuitableFileError: it is no regular file, or has more than ``max_bytes``.
        OSError: it cannot be read.
    """
    with open(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        check_size(size, max_bytes, os.fspath(path))
        return file.read(size)


def check_size(size: int, max_bytes: int, name: str | None = None) -> None:
    """Check that a file of ``size`` bytes may be read at once.

    Raises:
        UnsuitableFileError: it is larger than ``max_bytes``; the error is about the file ``name``.
    """
    if size > max_bytes:
        raise UnsuitableFileError(errno.EFBIG, f"it has {size:,} bytes, of {max_bytes:,} at most", name)
