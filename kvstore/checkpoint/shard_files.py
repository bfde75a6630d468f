"""Read the array files of a checkpoint: verify their CRC-32, and copy the rows they share with a shard in memory."""

from __future__ import annotations

import zlib
from contextlib import closing
from dataclasses import dataclass
from math import gcd, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossfade.base.arrays import IntArray
from crossfade.base.io.folder import Folder, InputFile
from crossfade.kvstore.checkpoint.files import HEADER_BYTES, WEIGHTS, npy_header
from crossfade.kvstore.checkpoint.format import CorruptFileError, TableShard, shard_rows
from crossfade.kvstore.finite import find_non_finite_row
from crossfade.kvstore.optimizer_spec import OptimizerSpec, state_dtype, state_shapes
from crossfade.kvstore.store import TableSpec

CHUNK_BYTES = 1 << 24
"""Bytes read at a time."""
_MAX_GAP_BYTES = 1 << 16
"""Bytes between two entries that are read along, rather than skipped by another request."""


@dataclass(frozen=True)
class ArraySpec:
    """One array of a table of ``table_rows`` rows: the dtype of its values and the ``shape`` of one row."""

    table: str
    table_rows: int
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """The bytes of one row."""
        return self.dtype.itemsize * prod(self.shape)

    def check_target(self, target: TableShard) -> None:
        """Assert that ``target`` can hold rows of this array: ``Checkpoint.check_fits`` has validated the input."""
        values = target.arrays[self.name]
        assert target.table_rows >= self.table_rows
        assert len(values) >= shard_rows(self.table_rows, target.number, target.num_shards)
        assert (values.dtype, values.shape[1:]) == (self.dtype, self.shape)


def arrays_of(table: TableSpec, optimizer: OptimizerSpec) -> list[ArraySpec]:
    """Return the arrays of a table: its weights and its optimizer state."""
    state = state_shapes(optimizer.kind, table.rows, table.dim)
    return [
        ArraySpec(table.name, table.rows, WEIGHTS, np.dtype(np.float32), (table.dim,)),
        *(
            ArraySpec(table.name, table.rows, name, np.dtype(state_dtype(name)), shape[1:])
            for name, shape in state.items()
        ),
    ]


@dataclass(frozen=True)
class ShardFile:
    """A file with the rows of ``array`` in shard ``number`` of ``num_shards``."""

    path: str
    crc32: int
    array: ArraySpec
    number: int
    num_shards: int

    @property
    def rows(self) -> int:
        """The number of rows."""
        return shard_rows(self.array.table_rows, self.number, self.num_shards)

    @property
    def bytes(self) -> int:
        """The size of the file in bytes."""
        return HEADER_BYTES + self.rows * self.array.row_bytes


@dataclass(frozen=True)
class ShardOverlap:
    """The rows that a file and a shard in memory have in common: ``count`` of them, evenly spaced in both."""

    count: int
    file_start: int
    file_step: int
    memory_start: int
    memory_step: int

    @staticmethod
    def of(file: ShardFile, shard: TableShard) -> ShardOverlap | None:
        """Solve r ≡ file.number (mod file.num_shards), r ≡ shard.number (mod shard.num_shards); None if no row does."""
        divisor = gcd(file.num_shards, shard.num_shards)
        if file.number % divisor != shard.number % divisor:
            return None
        # The least solution (Chinese remainder theorem); the others follow in steps of the least common multiple.
        file_step, memory_step = shard.num_shards // divisor, file.num_shards // divisor
        multiple = (shard.number - file.number) // divisor * pow(memory_step, -1, file_step) % file_step
        first = file.number + multiple * file.num_shards
        file_start, memory_start = first // file.num_shards, first // shard.num_shards
        count = shard_rows(file.rows, file_start, file_step)
        return ShardOverlap(count, file_start, file_step, memory_start, memory_step) if count else None

    def copy(self, chunk: NDArray[Any], start: int, target: NDArray[Any]) -> None:
        """Copy the common rows that lie in ``chunk``, the file's rows from ``start`` on, into ``target``."""
        skipped = shard_rows(start, self.file_start, self.file_step)
        rows = chunk[self.file_start + skipped * self.file_step - start :: self.file_step]
        first = self.memory_start + skipped * self.memory_step
        target[first : first + len(rows) * self.memory_step : self.memory_step] = rows


def read_entries(folder: Folder, file: ShardFile, entries_N: IntArray) -> NDArray[Any]:
    """Read the entries ``entries_N``, int64, of ``file``, in that order; its CRC-32 has been verified.

    Entries that are close together are read at once.

    Raises:
        OSError: they cannot be read.
    """
    array = file.array
    rows = np.empty((len(entries_N), *array.shape), array.dtype)
    order_N = np.argsort(entries_N, kind="stable")
    sorted_N = entries_N[order_N]
    starts_N = sorted_N * array.row_bytes
    breaks_M = np.flatnonzero((np.diff(starts_N) > _MAX_GAP_BYTES) | (np.diff(starts_N // CHUNK_BYTES) > 0)) + 1
    with closing(folder.open_random(file.path)) as source:
        for places_M in np.split(order_N, breaks_M):
            first, last = int(entries_N[places_M[0]]), int(entries_N[places_M[-1]])
            size = (last - first + 1) * array.row_bytes
            data = source.read_at(HEADER_BYTES + first * array.row_bytes, size)
            between: NDArray[Any] = np.ndarray((last - first + 1, *array.shape), array.dtype, buffer=data)
            rows[places_M] = between[entries_N[places_M] - first]
    return rows


class ShardReader:
    """Reads rows of a file, fastest from front to back.

    The CRC-32 is verified once the file has been read to its end, and before any read that does not continue the
    previous one.
    """

    def __init__(self, folder: Folder, file: ShardFile) -> None:
        self._folder = folder
        self._file = file
        self._buffer = bytearray()
        self._stream: InputFile | None = None
        self._crc32 = 0
        self._next_row = 0
        self._verified = False

    def close(self) -> None:
        """Close the file; a later read opens it again."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def read(self, start: int, count: int) -> NDArray[Any]:
        """Return ``count`` rows from row ``start`` of the file on, valid until the next call.

        Raises:
            CorruptFileError: the header, the length or the CRC-32 is wrong, or a value is not finite.
            OSError: it cannot be read.
        """
        if not self._verified and start != self._next_row:
            self.verify()
        array = self._file.array
        data = self._read_rows(start, count)
        rows: NDArray[Any] = np.ndarray((count, *array.shape), array.dtype, buffer=data)
        self._next_row = start + count
        if not self._verified:
            self._crc32 = zlib.crc32(data, self._crc32)
            if self._next_row == self._file.rows:
                self._verify_crc32()
        if (bad := find_non_finite_row(rows)) is not None:
            row = (start + bad) * self._file.num_shards + self._file.number
            raise CorruptFileError(f"row {row} of table '{array.table}' has values that are not finite")
        return rows

    def verify(self) -> None:
        """Read the file from its first row to its last, and discard the rows.

        Raises:
            CorruptFileError: as ``read`` does.
            OSError: it cannot be read.
        """
        chunk_rows = max(1, CHUNK_BYTES // self._file.array.row_bytes)
        while not self._verified:
            self.read(self._next_row, min(chunk_rows, self._file.rows - self._next_row))

    def _verify_crc32(self) -> None:
        if self._crc32 != self._file.crc32:
            raise CorruptFileError("its CRC-32 does not match its content")
        self._verified = True
        self.close()

    def _read_rows(self, start: int, count: int) -> memoryview:
        row_bytes = self._file.array.row_bytes
        if self._stream is None:
            self._stream = self._folder.open_input(self._file.path)
            if not self._verified:
                self._read_header()
        if self._verified:
            self._stream.seek(HEADER_BYTES + start * row_bytes)
        return self._read_bytes(count * row_bytes)

    def _read_header(self) -> None:
        header = self._read_bytes(HEADER_BYTES)
        if bytes(header) != npy_header(self._file.array.dtype, (self._file.rows, *self._file.array.shape)):
            raise CorruptFileError("its .npy header does not match the table and the optimizer in the manifest")
        self._crc32 = zlib.crc32(header)

    def _read_bytes(self, size: int) -> memoryview:
        assert self._stream is not None
        if len(self._buffer) < size:
            self._buffer = bytearray(size)
        data = rest = memoryview(self._buffer)[:size]
        while rest:
            count = self._stream.readinto(rest)
            if not count:
                raise CorruptFileError("is truncated")
            rest = rest[count:]
        return data
