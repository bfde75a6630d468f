"""Write records to numbered files of a limited size, each of which is the body of one request.

with BatchFiles(folder, "points-{:06d}.json", 16 << 20, b'{"points":[', b",", b"]}") as files:
    files.add(b'{"id":1}')
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import BinaryIO


class BatchFiles:
    """Files that are written one after another."""

    def __init__(
        self,
        folder: Path,
        name: str,
        max_bytes: int,
        opening: bytes = b"",
        separator: bytes = b"",
        closing: bytes = b"",
    ) -> None:
        """Write to ``folder``; ``name`` is the format of a file's name, with the number of the file."""
        self._folder, self._name, self._max_bytes = folder, name, max_bytes
        self._opening, self._separator, self._closing = opening, separator, closing
        self._file: BinaryIO | None = None
        self._number = self._bytes = 0

    def __enter__(self) -> BatchFiles:
        """Create the folder, and return self."""
        self._folder.mkdir()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        """Complete the last file."""
        if self._file is not None:
            self._close(self._file)

    def add(self, record: bytes) -> None:
        """Append ``record``, to a new file if the current one would exceed the limit."""
        added = len(self._separator) + len(record) + len(self._closing)
        if self._file is not None and self._bytes + added > self._max_bytes:
            self._close(self._file)
        if self._file is None:
            self._file = (self._folder / self._name.format(self._number)).open("wb")
            self._file.write(self._opening + record)
            self._bytes = len(self._opening) + len(record)
        else:
            self._file.write(self._separator + record)
            self._bytes += len(self._separator) + len(record)

    def _close(self, file: BinaryIO) -> None:
        file.write(self._closing)
        file.close()
        self._file = None
        self._number += 1
