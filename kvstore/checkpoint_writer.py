"""The process that writes one part of a checkpoint: it reads a snapshot from its standard input and stores it.

    python -P -m kvstore.checkpoint_writer FOLDER PART PARTS PARENT_PID

A process of its own, since a forked one may touch neither threads nor the network. It gets frames: a line of JSON,
``{"path": "customer/weights.00003-of-00008.npy", "bytes": 1234}``, then that many bytes; the line ``{"end": true}``
comes last, and input that ends without it is no snapshot. It answers with one line of JSON on its standard output:
``{"name", "bytes", "crc32", "written"}`` of the part's list of files, or ``{"error", "cut_short"}``.
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from contextlib import suppress
from typing import IO, Any

from kvstore.errors import CheckpointError, CrossfadeError
from kvstore.processes import die_with_parent
from kvstore.storage import Folder

PART_FORMAT = "crossfade-checkpoint-part"
VERSION = 1
_CHUNK_BYTES = 1 << 20


class CutShortError(CheckpointError):
    """The snapshot ended before its end: the process that sent it has died."""


def part_name(part: int, parts: int) -> str:
    """The file that lists what part ``part`` of ``parts`` wrote."""
    return f"part-{part:05d}-of-{parts:05d}.json"


def write_part(folder: Folder, part: int, parts: int, frames: IO[bytes]) -> dict[str, Any]:
    """Write every file of ``frames`` into ``folder``, then the list of them.

    Returns:
        The list's name, bytes and CRC-32, and ``written``, the bytes of all that was written.

    Raises:
        CutShortError: ``frames`` has no end.
        OSError: it cannot be written. What there was of it on a file system is gone then, so that it fills no disk.
    """
    files: list[dict[str, Any]] = []
    try:
        while "end" not in (frame := _next_frame(frames)):
            files.append({**frame, "crc32": _write_file(folder, frame["path"], frame["bytes"], frames)})
        listed = json.dumps({"format": PART_FORMAT, "version": VERSION, "files": files}, indent=1).encode() + b"\n"
        folder.write(part_name(part, parts), listed)
    except BaseException:
        if not folder.on_s3:
            for file in files:
                with suppress(OSError):
                    folder.remove(file["path"])
        raise
    written = len(listed) + sum(file["bytes"] for file in files)
    return {"name": part_name(part, parts), "bytes": len(listed), "crc32": zlib.crc32(listed), "written": written}


def _next_frame(frames: IO[bytes]) -> dict[str, Any]:
    line = frames.readline()
    if not line.endswith(b"\n"):
        raise CutShortError("the snapshot ended before its end")
    frame: dict[str, Any] = json.loads(line)
    return frame


def _write_file(folder: Folder, path: str, size: int, frames: IO[bytes]) -> int:
    """Write the next ``size`` bytes of ``frames``, and say their CRC-32."""
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    crc32 = 0
    with folder.open_output(path) as file:
        for start in range(0, size, _CHUNK_BYTES):
            chunk = buffer[: min(_CHUNK_BYTES, size - start)]
            if frames.readinto(chunk) != len(chunk):  # type: ignore[attr-defined]
                raise CutShortError("the snapshot ended before its end")
            crc32 = zlib.crc32(chunk, crc32)
            file.write(chunk)
    return crc32


def main() -> None:
    """Write the part that the command line names. Ends the process."""
    to, part, parts, parent = sys.argv[1:]
    die_with_parent(int(parent))
    try:
        with open(0, "rb", buffering=_CHUNK_BYTES, closefd=False) as frames:
            answer = write_part(Folder(to), int(part), int(parts), frames)
    except (OSError, CrossfadeError) as error:
        answer = {"error": str(error), "cut_short": isinstance(error, CutShortError)}
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
    # Not by the usual way: uploads that failed would be tried once more on the way out.
    os._exit("error" in answer)


if __name__ == "__main__":
    main()
