"""Files for random access by several threads at a time, on a file system or (``s3.py``) on S3.

``read_at`` is the interface; the other methods let pyarrow use it as a Python file.
"""

from __future__ import annotations

import io
import os
from abc import abstractmethod
from typing import Any


class RandomFile(io.RawIOBase):
    """A file of known size. ``version`` differs whenever the content has been replaced."""

    version: str

    def __init__(self, size: int, version: str) -> None:
        self._size = size
        self._position = 0
        self.version = version

    @abstractmethod
    def read_at(self, offset: int, length: int) -> bytes:
        """Read exactly ``length`` bytes from ``offset`` on.

        Raises:
            OSError: they cannot be read; the message does not name the file.
        """

    def size(self) -> int:
        """Return the size in bytes."""
        return self._size

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position of the next ``read``."""
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Read the next ``size`` bytes, or the rest."""
        remaining = max(0, self._size - self._position)
        length = remaining if size < 0 else min(size, remaining)
        data = self.read_at(self._position, length) if length else b""
        self._position += length
        return data

    def readinto(self, buffer: Any, /) -> int:
        """Fill ``buffer`` with the next bytes; return how many."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class LocalRandomFile(RandomFile):
    """A file on a file system. Replacing the file does not affect one that is open."""

    def __init__(self, descriptor: int) -> None:
        """Read the open file ``descriptor``, and close it at the end."""
        self._descriptor = descriptor
        status = os.fstat(self._descriptor)
        super().__init__(status.st_size, f"{status.st_dev}-{status.st_ino}-{status.st_mtime_ns}-{status.st_size}")

    def read_at(self, offset: int, length: int) -> bytes:
        """Read exactly ``length`` bytes from ``offset`` on."""
        pieces: list[bytes] = []
        end = offset + length
        while offset < end:
            piece = os.pread(self._descriptor, end - offset, offset)
            if not piece:
                raise OSError(f"is truncated at byte {offset}; it had {self._size} bytes when it was opened")
            pieces.append(piece)
            offset += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def readinto(self, buffer: Any, /) -> int:
        """Fill ``buffer`` with the next bytes, without a copy; return how many."""
        count = os.preadv(self._descriptor, [buffer], self._position)
        self._position += count
        return count

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            os.close(self._descriptor)
        super().close()
