"""The process that writes one part of a checkpoint: it reads a snapshot from standard input and stores it.

    python -P -m crossfade.kvstore.checkpoint.writer FOLDER PART PARTS PARENT_PID

A separate process keeps a slow disk and the network's threads out of the server. Its input is a sequence of frames: a
line of JSON, ``{"path": "customer/weights.00003-of-00008.npy", "bytes": 4096, "file_bytes": 1234567}``, followed by
that many ``bytes`` of the file, which has ``file_bytes`` in total. The line ``{"end": true}`` comes last; input without
it is incomplete and makes no part. The answer is one line of JSON on standard output: ``{"name", "bytes", "crc32"}`` of
the part's list of files with ``"total_bytes"`` written, or ``{"error"}``.
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import IO, Any

from crossfade.base.errors import CheckpointError, CrossfadeError
from crossfade.base.io.folder import Folder, OutputFile
from crossfade.base.processes import die_with_parent
from crossfade.kvstore.checkpoint.file_names import FORMAT_VERSION, PART_FORMAT, part_name

_CHUNK_BYTES = 1 << 20
_TRUNCATED = "the snapshot is truncated"


class _OpenFile:
    """A file of ``size`` bytes, written in pieces that alternate with pieces of other files."""

    def __init__(self, folder: Folder, path: str, size: int) -> None:
        self.path, self.size, self.crc32 = path, size, 0
        self.remaining = size
        self._context: AbstractContextManager[OutputFile] | None = folder.open_output(path)
        self._file = self._context.__enter__()

    def copy_from(self, frames: IO[bytes], size: int, buffer: memoryview) -> None:
        """Append the next ``size`` bytes of ``frames``, and close the file once it is complete."""
        for start in range(0, size, len(buffer)):
            chunk = buffer[: min(len(buffer), size - start)]
            if frames.readinto(chunk) != len(chunk):  # type: ignore[attr-defined]
                raise CheckpointError(_TRUNCATED)
            self.crc32 = zlib.crc32(chunk, self.crc32)
            self._file.write(chunk)
        self.remaining -= size
        if self.remaining == 0:
            self.close(None, None, None)

    def close(self, *error: Any) -> None:
        """Commit the file or, given the exception triple ``error``, discard it."""
        if self._context is not None:
            context, self._context = self._context, None
            context.__exit__(*error)


def write_part(folder: Folder, part: int, parts: int, frames: IO[bytes]) -> dict[str, Any]:
    """Write every file of ``frames`` into ``folder``, then the list of them.

    Returns:
        The list's name, bytes and CRC-32, and ``total_bytes``, the bytes of all that was written.

    Raises:
        CheckpointError: ``frames`` is truncated.
        OSError: it cannot be written. On a file system, the files of this part are deleted, so as not to fill the disk.
    """
    files: dict[str, _OpenFile] = {}
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    try:
        with ExitStack() as opened:
            while "end" not in (frame := _next_frame(frames)):
                path = frame["path"]
                if path not in files:
                    files[path] = _OpenFile(folder, path, frame["file_bytes"])
                    opened.push(files[path].close)
                files[path].copy_from(frames, frame["bytes"], buffer)
            if any(file.remaining for file in files.values()):
                raise CheckpointError(_TRUNCATED)
        listing = _list_files(files.values())
        folder.write(part_name(part, parts), listing)
    except BaseException:
        if not folder.on_s3:
            for path in files:
                with suppress(OSError):
                    folder.remove(path)
        raise
    total_bytes = len(listing) + sum(file.size for file in files.values())
    digest = {"name": part_name(part, parts), "bytes": len(listing), "crc32": zlib.crc32(listing)}
    return {**digest, "total_bytes": total_bytes}


def _list_files(files: Iterable[_OpenFile]) -> bytes:
    listed = [{"path": file.path, "bytes": file.size, "crc32": file.crc32} for file in files]
    return json.dumps({"format": PART_FORMAT, "version": FORMAT_VERSION, "files": listed}, indent=1).encode() + b"\n"


def _next_frame(frames: IO[bytes]) -> dict[str, Any]:
    line = frames.readline()
    if not line.endswith(b"\n"):
        raise CheckpointError(_TRUNCATED)
    frame: dict[str, Any] = json.loads(line)
    return frame


def main() -> None:
    """Write the part that the command line names, then exit."""
    folder, part, parts, parent = sys.argv[1:]
    die_with_parent(int(parent))
    try:
        with open(0, "rb", buffering=_CHUNK_BYTES, closefd=False) as frames:
            answer = write_part(Folder(folder), int(part), int(parts), frames)
    except (OSError, CrossfadeError) as error:
        answer = {"error": str(error)}
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
    # A normal exit would run destructors, which retry failed uploads.
    os._exit("error" in answer)


if __name__ == "__main__":
    main()
