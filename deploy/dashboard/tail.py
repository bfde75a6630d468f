"""A file of JSON objects, one a line, read as it grows: the first time all of it, then what has come since."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_CHUNK_BYTES = 4 << 20
_MAX_LINE_BYTES = 4 << 20
_parse = json.JSONDecoder().decode


class Tail:
    """Reads the objects of one file. A line that is none is counted and passed over, and one that is unfinished waits.

    tail = Tail(path)
    if tail.is_another(): ...        # the file was replaced or cut since: what was read before is of no use
    for event in tail.read(): ...
    """

    def __init__(self, path: Path) -> None:
        """Read from the beginning of ``path``, which need not be there yet."""
        self.path = path
        self.bad_lines = 0
        self.first_bad_line = 0
        """The number of the first of them, from 1; 0: there is none."""
        self.trouble = ""
        """Why the file cannot be read, if it cannot."""
        self._offset = self._lines = 0
        self._inode: int | None = None

    def is_another(self) -> bool:
        """Whether the file is not the one that was read before; then it is read from its beginning."""
        try:
            found = self.path.stat()
        except OSError:
            another = self._inode is not None
            self._begin(None)
            return another
        another = self._inode is not None and (found.st_ino != self._inode or found.st_size < self._offset)
        if another or self._inode is None:
            self._begin(found.st_ino)
        return another

    def _begin(self, inode: int | None) -> None:
        self._inode, self._offset, self._lines, self.bad_lines, self.first_bad_line = inode, 0, 0, 0, 0

    def read(self) -> Iterator[dict[str, Any]]:
        """The objects on whole lines since the last call."""
        self.trouble = ""
        if self._inode is None:
            return
        try:
            with self.path.open("rb") as file:
                if os.fstat(file.fileno()).st_ino == self._inode:
                    file.seek(self._offset)
                    while chunk := self._whole_lines(file.read(_CHUNK_BYTES)):
                        self._offset += len(chunk)
                        yield from self._objects(chunk)
                        file.seek(self._offset)
        except FileNotFoundError:
            return
        except OSError as error:
            self.trouble = f"{self.path.name} cannot be read: {error.strerror}"

    @staticmethod
    def _whole_lines(data: bytes) -> bytes:
        whole = data[: data.rfind(b"\n") + 1]
        # What never ends is no line of ours: it is passed over as it is.
        return whole or (data if len(data) >= _MAX_LINE_BYTES else b"")

    def _objects(self, data: bytes) -> Iterator[dict[str, Any]]:
        # What is no UTF-8 makes a line that cannot be read, or a word with a mark in it.
        for line in data.decode("utf-8", errors="replace").removesuffix("\n").split("\n"):
            self._lines += 1
            try:
                found = _parse(line)
            except ValueError:
                found = None
            if isinstance(found, dict) and isinstance(found.get("event"), str) and "time" in found:
                yield found
            elif line.strip():
                self.bad_lines += 1
                self.first_bad_line = self.first_bad_line or self._lines

    def problem(self) -> str | None:
        """What is wrong with the file, in words."""
        if self.trouble:
            return self.trouble
        if not self.bad_lines:
            return None
        how_many = "a line" if self.bad_lines == 1 else f"{self.bad_lines:,} lines"
        return f"{self.path.name}: {how_many} cannot be read and left out (the first is line {self.first_bad_line:,})"
