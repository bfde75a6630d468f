"""Open local files that others may have put there: only regular ones, only inside their folder, and only up to a size.

data = read_below("runs/plays", "report.json", max_bytes=SMALL_FILE_BYTES)
data = read_regular("jobs/plays.yaml")                  # a path that the user named, and which may be a link

A FIFO in place of a file would block its reader forever, a device may never end, a sparse file of any size costs
nothing to make, and a link that others place in a folder could disclose a file that only this process may read.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

SMALL_FILE_BYTES = 64 << 20
"""Largest manifest or other small file that is read: a dataset of a trillion interactions has a manifest of 60 MB."""
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
_FOLDER_FLAGS = os.O_DIRECTORY | os.O_NOFOLLOW | getattr(os, "O_PATH", os.O_RDONLY)


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
    _check_regular(Path(path).stat().st_mode, os.fspath(path))
    return os.open(path, _FLAGS)


def _check_regular(mode: int, path: str) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(mode):
        raise UnsuitableFileError(errno.EINVAL, "not a regular file, but a FIFO, socket or device", path)


def open_below(folder: str | os.PathLike[str], name: str) -> int:
    """Open the file ``name`` of ``folder``, which others may write, for reading; return its descriptor.

    ``folder`` may be a link, and so may what is below it as long as it leads to a place below it.

    Raises:
        UnsuitableFileError: a link leads out of the folder, or it is a FIFO, a socket, or a device.
        IsADirectoryError: it is a folder.
        OSError: it cannot be opened.
    """
    path = os.path.join(folder, name)  # noqa: PTH118 - keeps the text of both
    try:
        root, real = os.path.realpath(folder, strict=True), os.path.realpath(path, strict=True)
        if not real.startswith(os.path.join(root, "")):  # noqa: PTH118
            raise UnsuitableFileError(errno.ELOOP, "a link leads out of the folder; copy the file into it", path)
        *parents, last = Path(real).relative_to(root).parts
        with ExitStack() as opened:
            # Step by step and without links, since a link may have been put in place after the check.
            inside = None
            for part in (root, *parents):
                inside = os.open(part, _FOLDER_FLAGS, dir_fd=inside)
                opened.callback(os.close, inside)
            _check_regular(os.stat(last, dir_fd=inside, follow_symlinks=False).st_mode, path)
            return os.open(last, _FLAGS | os.O_NOFOLLOW, dir_fd=inside)
    except OSError as error:
        error.filename = path
        raise


def read_below(folder: str | os.PathLike[str], name: str, max_bytes: int = SMALL_FILE_BYTES) -> bytes:
    """Read the file ``name`` of ``folder``, which others may write.

    Raises:
        UnsuitableFileError: as ``open_below``, or it has more than ``max_bytes``.
        OSError: it cannot be read.
    """
    return _read(open_below(folder, name), max_bytes, os.path.join(folder, name))  # noqa: PTH118


def read_regular(path: str | os.PathLike[str], max_bytes: int = SMALL_FILE_BYTES) -> bytes:
    """Read the regular file ``path``.

    Raises:
        UnsuitableFileError: it is no regular file, or has more than ``max_bytes``.
        OSError: it cannot be read.
    """
    return _read(open_regular(path), max_bytes, os.fspath(path))


def _read(descriptor: int, max_bytes: int, name: str) -> bytes:
    with open(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        check_size(size, max_bytes, name)
        return file.read(size)


def check_size(size: int, max_bytes: int, name: str | None = None) -> None:
    """Check that a file of ``size`` bytes may be read at once.

    Raises:
        UnsuitableFileError: it is larger than ``max_bytes``; the error is about the file ``name``.
    """
    if size > max_bytes:
        raise UnsuitableFileError(errno.EFBIG, f"it has {size:,} bytes, of {max_bytes:,} at most", name)
