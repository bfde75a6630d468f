"""The process that writes one part of a checkpoint: it reads a snapshot from its standard input and stores it.

    python -P -m kvstore.checkpoint.writer FOLDER PART PARTS PARENT_PID

A process of its own, so that neither a slow disk nor the network's threads are in a server's way. It gets frames: a
line of JSON, ``{"path": "customer/weights.00003-of-00008.npy", "bytes": 4096, "of": 1234567}``, then so many bytes
more of that file, which has ``of`` in all. The line ``{"end": true}`` comes last, and input that ends without it is no
snapshot. The answer is one line of JSON on standard output: ``{"name", "bytes", "crc32", "written"}`` of the part's
list of files, or ``{"error"}``.
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import IO, Any

from kvstore.errors import CheckpointError, CrossfadeError
from kvstore.io.folder import Folder, OutputFile
from kvstore.processes import die_with_parent

PART_FORMAT = "crossfade-checkpoint-part"
VERSION = 1
_CHUNK_BYTES = 1 << 20
_TRUNCATED = "the snapshot ended before its end"


def part_name(part: int, parts: int) -> str:
    """The file that lists what part ``part`` of ``parts`` wrote."""
    return f"part-{part:05d}-of-{parts:05d}.json"


class _OpenFile:
    """A file of ``size`` bytes that comes in pieces, between those of others."""

    def __init__(self, folder: Folder, path: str, size: int) -> None:
        self.path, self.size, self.crc32 = path, size, 0
        self.left = size
        self._context: AbstractContextManager[OutputFile] | None = folder.open_output(path)
        self._file = self._context.__enter__()

    def take(self, frames: IO[bytes], size: int, buffer: memoryview) -> None:
        """Write the next ``size`` bytes of ``frames``; the last of them finish the file."""
        for start in range(0, size, len(buffer)):
            chunk = buffer[: min(len(buffer), size - start)]
            if frames.readinto(chunk) != len(chunk):  # type: ignore[attr-defined]
                raise CheckpointError(_TRUNCATED)
            self.crc32 = zlib.crc32(chunk, self.crc32)
            self._file.write(chunk)
        self.left -= size
        if self.left == 0:
            self.leave(None, None, None)

    def leave(self, *error: Any) -> None:
        """Close it: as a whole file or, because of ``error``, as none."""
        if self._context is not None:
            context, self._context = self._context, None
            context.__exit__(*error)


def write_part(folder: Folder, part: int, parts: int, frames: IO[bytes]) -> dict[str, Any]:
    """Write every file of ``frames`` into ``folder``, then the list of them.

    Returns:
        The list's name, bytes and CRC-32, and ``written``, the bytes of all that was written.

    Raises:
        CheckpointError: ``frames`` has no end.
        OSError: it cannot be written. What there was of it on a file system is gone then, so that it fills no disk.
    """
    files: dict[str, _OpenFile] = {}
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    try:
        with ExitStack() as opened:
            while "end" not in (frame := _next_frame(frames)):
                path = frame["path"]
                if path not in files:
                    files[path] = _OpenFile(folder, path, frame["of"])
                    opened.push(files[path].leave)
                files[path].take(frames, frame["bytes"], buffer)
            if any(file.left for file in files.values()):
                raise CheckpointError(_TRUNCATED)
        listed = _list_of(files.values())
        folder.write(part_name(part, parts), listed)
    except BaseException:
        if not folder.on_s3:
            for path in files:
                with suppress(OSError):
                    folder.remove(path)
        raise
    written = len(listed) + sum(file.size for file in files.values())
    return {"name": part_name(part, parts), "bytes": len(listed), "crc32": zlib.crc32(listed), "written": written}


def _list_of(files: Iterable[_OpenFile]) -> bytes:
    listed = [{"path": file.path, "bytes": file.size, "crc32": file.crc32} for file in files]
    return json.dumps({"format": PART_FORMAT, "version": VERSION, "files": listed}, indent=1).encode() + b"\n"


def _next_frame(frames: IO[bytes]) -> dict[str, Any]:
    line = frames.readline()
    if not line.endswith(b"\n"):
        raise CheckpointError(_TRUNCATED)
    frame: dict[str, Any] = json.loads(line)
    return frame


def main() -> None:
    """Write the part that the command line names. Ends the process."""
    to, part, parts, parent = sys.argv[1:]
    die_with_parent(int(parent))
    try:
        with open(0, "rb", buffering=_CHUNK_BYTES, closefd=False) as frames:
            answer = write_part(Folder(to), int(part), int(parts), frames)
    except (OSError, CrossfadeError) as error:
        answer = {"error": str(error)}
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
    # Not by the usual way: uploads that failed would be tried once more on the way out.
    os._exit("error" in answer)


if __name__ == "__main__":
    main()
