"""A file that is read anywhere in it, by several threads at a time.

``read_at`` is what it is about; the rest makes it a file that pyarrow takes.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from abc import abstractmethod
from typing import Any


class RandomFile(io.RawIOBase):
    """A file of known size. ``version`` is another one whenever the content has been replaced."""

    version: str

    def __init__(self, size: int, version: str) -> None:
        """A file of ``size`` bytes."""
        self._size = size
        self._position = 0
        self.version = version

    @abstractmethod
    def read_at(self, offset: int, length: int) -> bytes:
        """All ``length`` bytes from ``offset`` on.

        Raises:
            OSError: they cannot be read; it does not name the file.
        """

    def size(self) -> int:
        """Its bytes."""
        return self._size

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Where the next ``read`` begins."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Have the next ``read`` begin elsewhere."""
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def read(self, size: int = -1) -> bytes:
        """The next ``size`` bytes, or those that are left."""
        left = max(0, self._size - self._position)
        length = left if size < 0 else min(size, left)
        data = self.read_at(self._position, length) if length else b""
        self._position += length
        return data

    def readinto(self, buffer: Any, /) -> int:
        """Fill ``buffer`` with the next bytes; says with how many."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class LocalRandomFile(RandomFile):
    """A file of a file system. Whoever replaces it does not disturb who has it open."""

    def __init__(self, path: str) -> None:
        """Open the file at ``path``."""
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        facts = os.fstat(self._descriptor)
        if stat.S_ISDIR(facts.st_mode):
            os.close(self._descriptor)
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        super().__init__(facts.st_size, f"{facts.st_dev}-{facts.st_ino}-{facts.st_mtime_ns}-{facts.st_size}")

    def read_at(self, offset: int, length: int) -> bytes:
        """All ``length`` bytes from ``offset`` on."""
        pieces: list[bytes] = []
        end = offset + length
        while offset < end:
            piece = os.pread(self._descriptor, end - offset, offset)
            if not piece:
                raise OSError(f"ends at byte {offset}, but had {self._size} when it was opened")
            pieces.append(piece)
            offset += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        """Let go of it."""
        if not self.closed:
            os.close(self._descriptor)
        super().close()
