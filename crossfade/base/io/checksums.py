"""Sizes and CRC-32 of files that are written once: taken when they are complete, verified when they are opened.

    files = checksums_of(folder)                            # {"index.faiss": FileChecksum(bytes=…, crc32=…)}
    verify_files(folder, files, "card.json", "build it again")

A file is read once, at the speed of CRC-32, which is that of fast disks.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from crossfade.base.errors import InputError
from crossfade.base.io.regular_files import open_regular

_CHUNK_BYTES = 4 << 20


class FileChecksum(BaseModel):
    """The size and the CRC-32 of a file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: Annotated[int, Field(ge=0)]
    crc32: Annotated[int, Field(ge=0, lt=2**32)]

    @staticmethod
    def of(path: Path) -> FileChecksum:
        """Read the file at ``path``.

        Raises:
            OSError: it cannot be read.
        """
        size, crc = 0, 0
        buffer = memoryview(bytearray(_CHUNK_BYTES))
        with open(open_regular(path), "rb", buffering=0) as file:  # noqa: PTH123 - a descriptor
            while count := file.readinto(buffer):
                size, crc = size + count, zlib.crc32(buffer[:count], crc)
        return FileChecksum(bytes=size, crc32=crc)


def checksums_of(folder: Path) -> dict[str, FileChecksum]:
    """Return the checksums of all files below ``folder``, by path relative to it.

    Raises:
        OSError: a file cannot be read.
    """
    paths = (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
    found = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: FileChecksum.of(found[name]) for name in sorted(found)}


def verify_files(folder: Path, listed: Mapping[str, FileChecksum], listing: str, fix: str) -> None:
    """Compare the files of ``folder`` with their checksums in ``listed``, which the file ``listing`` of it holds.

    Raises:
        InputError: a file is missing, was changed, or cannot be read; the message ends with ``fix``.
    """
    for name, expected in listed.items():
        path = folder / name
        try:
            # The size first: it costs nothing, and explains more.
            if (size := path.stat().st_size) != expected.bytes:
                raise InputError(f"{path}: has {size:,} bytes, but {listing} lists {expected.bytes:,}; {fix}")
            if FileChecksum.of(path) != expected:
                raise InputError(f"{path}: is damaged: its CRC-32 is not the one in {listing}; {fix}")
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such file, but {listing} lists it; {fix}") from error
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
