"""TODO-DOC split from kvstore/checkpoint/reader.py."""

from __future__ import annotations

import errno
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kvstore.checkpoint.writer import VERSION
from kvstore.errors import CheckpointError
from kvstore.io.folder import Folder
from kvstore.optimizers import OptimizerSpec
from kvstore.store import FileDigest, TableSpec
from kvstore.validation_errors import format_validation_error

HEADER_BYTES = 128


_SEAL = re.compile(rb',\n "crc32": (\d+)\n}\n\Z')


_MAX_SEAL_BYTES = 64


Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class TableShard:
    """Rows of a table in memory: those that are ``number`` modulo ``ranges``, of ``rows`` in the whole table.

    ``arrays`` holds ``weights`` (n, dim) and each optimizer state by its name; entry i is row i·ranges + number.
    Entries at and beyond ``range_rows`` are padding: they are neither written nor read.
    """

    table: str
    rows: int
    number: int
    ranges: int
    arrays: dict[str, NDArray[Any]]


def shard_rows(rows: int, number: int, ranges: int) -> int:
    """How many of a table's ``rows`` lie in range ``number`` of ``ranges``."""
    return max(0, -(-(rows - number) // ranges))


def npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """The head of an .npy file of version 1.0 (numpy.lib.format), the same from every version of numpy.

    It is always ``HEADER_BYTES`` long, so the values lie where one can compute.
    """
    described = f"{{'descr': {dtype.str!r}, 'fortran_order': False, 'shape': {shape}, }}"
    head = b"\x93NUMPY\x01\x00" + (HEADER_BYTES - 10).to_bytes(2, "little") + described.encode()
    return head.ljust(HEADER_BYTES - 1) + b"\n"


def shard_file(held: TableShard, array: str) -> str:
    """The path of the file with ``array`` of these rows, from the checkpoint's folder."""
    return f"{held.table}/{array}.{held.number:05d}-of-{held.ranges:05d}.npy"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _PartFile(_Strict):
    path: str
    bytes: Count
    crc32: Count


class _Part(_Strict):
    """The list of files that one server wrote."""

    format: Literal["crossfade-checkpoint-part"]
    version: Literal[1]
    files: list[_PartFile]


class CheckpointManifest(_Strict):
    """What makes a checkpoint whole. ``training`` is its writer's affair: the cursor, the job and so on.

    So are the small ``files`` beside the tables'; a checkpoint without any does not say so.
    """

    format: Literal["crossfade-checkpoint"] = "crossfade-checkpoint"
    version: Literal[1] = 1
    step: Count
    tables: list[TableSpec]
    optimizer: OptimizerSpec
    seed: int
    parts: list[FileDigest]
    files: list[FileDigest] = Field(default_factory=list)
    training: dict[str, Any] = Field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Its file: JSON whose last member is the CRC-32 of all bytes before that member."""
        body = self.model_dump_json(indent=1, exclude=None if self.files else {"files"}).encode().removesuffix(b"\n}")
        return body + b',\n "crc32": %d\n}\n' % zlib.crc32(body)

    @staticmethod
    def from_bytes(data: bytes) -> CheckpointManifest:
        """The manifest in a file's content, which must not have been changed."""
        try:
            raw = json.loads(data)
        except ValueError as error:
            raise _DamageError(f"not JSON: {error}") from error
        found = raw.get("format") if isinstance(raw, dict) else None
        if found != "crossfade-checkpoint":
            raise _DamageError(f"not a manifest of a checkpoint: its format is {found!r}")
        if raw.get("version") != VERSION:
            raise _DamageError(f"version {raw.get('version')!r} of the format; this Crossfade reads version {VERSION}")
        seal = _SEAL.search(data, max(0, len(data) - _MAX_SEAL_BYTES))
        if seal is None or zlib.crc32(data[: seal.start()]) != int(seal[1]):
            raise _DamageError("its CRC-32 is not that of its content")
        return CheckpointManifest.model_validate_json(data[: seal.start()] + b"}")


class _DamageError(Exception):
    """What is wrong with a file."""


@contextmanager
def _reading(folder: Folder, name: str) -> Iterator[None]:
    """Turn what is wrong with the file ``name`` into a CheckpointError, which refuses a checkpoint that is damaged."""
    uri = f"{folder.uri}/{name}"
    try:
        yield
    except _DamageError as error:
        raise CheckpointError(f"{uri}: {error}", folder.uri) from error
    except ValidationError as error:
        problem = format_validation_error(error)
        raise CheckpointError(f"{uri}: not what a checkpoint has there: {problem}", folder.uri) from error
    except FileNotFoundError as error:
        raise CheckpointError(f"{uri}: missing", folder.uri) from error
    except OSError as error:
        # A disk that cannot read it any more; another time, storage may only be out of reach.
        damaged = folder.uri if error.errno == errno.EIO else None
        raise CheckpointError(f"{uri}: cannot be read: {error}", damaged) from error
