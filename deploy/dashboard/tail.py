"""Read a file of JSON objects, one per line, while it grows.

tail = Tail(path)
if tail.is_replaced(): ...        # discard what was read before
for record in tail.read(): ...
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crossfade.base.io.regular_files import open_regular

_CHUNK_BYTES = 4 << 20
_MAX_LINE_BYTES = 4 << 20
_parse = json.JSONDecoder().decode


class Tail:
    """Reads the objects of one file. Invalid lines are counted and skipped; an unfinished last line is read later."""

    def __init__(self, path: Path) -> None:
        """Read from the beginning of ``path``, which need not exist yet."""
        self.path = path
        self.bad_lines = 0
        self.first_bad_line = 0
        """The number of the first invalid line, from 1; 0 if there is none."""
        self.error = ""
        """The reason why the file cannot be read; empty if it can."""
        self._offset = self._lines = 0
        self._inode: int | None = None

    def is_replaced(self) -> bool:
        """Return whether the file was replaced or truncated; if so, ``read`` begins at its start again."""
        try:
            found = self.path.stat()
        except OSError:
            replaced = self._inode is not None
            self._restart(None)
            return replaced
        replaced = self._inode is not None and (found.st_ino != self._inode or found.st_size < self._offset)
        if replaced or self._inode is None:
            self._restart(found.st_ino)
        return replaced

    def _restart(self, inode: int | None) -> None:
        self._inode, self._offset, self._lines, self.bad_lines, self.first_bad_line = inode, 0, 0, 0, 0

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the objects on complete lines since the last call."""
        self.error = ""
        if self._inode is None:
            return
        try:
            with os.fdopen(open_regular(self.path), "rb") as file:
                if os.fstat(file.fileno()).st_ino == self._inode:
                    file.seek(self._offset)
                    while chunk := self._complete_lines(file.read(_CHUNK_BYTES)):
                        self._offset += len(chunk)
                        yield from self._objects(chunk)
                        file.seek(self._offset)
        except FileNotFoundError:
            return
        except OSError as error:
            self.error = f"{self.path.name} cannot be read: {error.strerror}"

    @staticmethod
    def _complete_lines(data: bytes) -> bytes:
        lines = data[: data.rfind(b"\n") + 1]
        # A longer line cannot be a record: skip it in pieces, so that it does not block the reader.
        return lines or (data if len(data) >= _MAX_LINE_BYTES else b"")

    def _objects(self, data: bytes) -> Iterator[dict[str, Any]]:
        # Bytes that are not UTF-8 become replacement characters, which at worst make one line invalid.
        for line in data.decode("utf-8", errors="replace").removesuffix("\n").split("\n"):
            self._lines += 1
            try:
                found = _parse(line)
            except (ValueError, RecursionError):
                found = None
            if isinstance(found, dict) and isinstance(found.get("event"), str) and "time" in found:
                yield found
            elif line.strip():
                self.bad_lines += 1
                self.first_bad_line = self.first_bad_line or self._lines

    def problem(self) -> str | None:
        """Return a description of what is wrong with the file; None if nothing is."""
        if self.error:
            return self.error
        if not self.bad_lines:
            return None
        count = "a line" if self.bad_lines == 1 else f"{self.bad_lines:,} lines"
        return f"{self.path.name}: {count} cannot be read, skipped (first: line {self.first_bad_line:,})"
