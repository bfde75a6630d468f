"""Open a checkpoint and read its rows into any number of shards (docs/reference.md).

    CHECKPOINTS/step-000000123/
        customer/weights.00003-of-00008.npy             float32 (rows of shard 3, dim): its entry i is row i·8 + 3
        customer/sum_of_squares.00003-of-00008.npy      optimizer state, by its name in LazyOptimizer.state
        part-00000-of-00002.json                        the files that one server wrote, with sizes and CRC-32
        dense.npz                                       optional small files of the writer's own
        manifest.json                                   written last: tables, optimizer, parts, files, sizes, CRC-32

    checkpoint = open_checkpoint("s3://music/checkpoints/step-000000123")
    checkpoint.load([TableShard("customer", table_rows, number=2, num_shards=6, arrays={"weights": weights_ND})])

Files are named by shard, not by server: row r of a table is in shard r mod P, so a checkpoint loads into any other
number of shards. The manifest has checksums of the parts and these of their files, so any change is detected. How a
checkpoint becomes complete, and what a crash leaves, is in ``kvstore/checkpoint/lifecycle.py``.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from math import gcd, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.errors import CheckpointError
from crossfade.base.io.folder import Folder
from crossfade.base.io.random_access import RandomFile
from crossfade.base.io.regular_files import SMALL_FILE_BYTES
from crossfade.base.json_text import validate_json
from crossfade.kvstore.checkpoint.format import (
    HEADER_BYTES,
    MANIFEST_NAME,
    SHARD_NAME,
    STEP_NAME,
    WEIGHTS,
    CheckpointManifest,
    CorruptFileError,
    Part,
    PartFile,
    TableShard,
    npy_header,
    shard_rows,
    translate_read_errors,
)
from crossfade.kvstore.finite import find_non_finite_row
from crossfade.kvstore.optimizer_spec import OptimizerSpec, state_dtype, state_shapes
from crossfade.kvstore.store import FileDigest, TableSpec

CHUNK_BYTES = 1 << 24
"""Bytes read at a time."""
_MAX_GAP_BYTES = 1 << 16
"""Bytes between two entries that are read along, rather than skipped by another request."""
_BLOCK_BYTES = 1 << 16
"""Bytes of rows that have a CRC-32 of their own in memory, by which single rows are verified when they are read."""


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


def read_entries(folder: Folder, file: ShardFile, entries_N: IntArray, blocks: Sequence[int]) -> NDArray[Any]:
    """Read the entries ``entries_N``, int64, of ``file``, in that order; ``blocks`` are the CRC-32 of its blocks.

    Entries that are close together are read at once, in whole blocks.

    Raises:
        CorruptFileError: a block is not what it was when the file was verified.
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
            begin, end = first * array.row_bytes, (last + 1) * array.row_bytes
            low, high = begin // _BLOCK_BYTES, -(-end // _BLOCK_BYTES)
            size = min(high * _BLOCK_BYTES, file.bytes - HEADER_BYTES) - low * _BLOCK_BYTES
            data = memoryview(source.read_at(HEADER_BYTES + low * _BLOCK_BYTES, size))
            if _crc32_of_blocks(data) != list(blocks[low:high]):
                raise CorruptFileError("its content has changed since it was verified")
            data = data[begin - low * _BLOCK_BYTES :]
            between: NDArray[Any] = np.ndarray((last - first + 1, *array.shape), array.dtype, buffer=data)
            rows[places_M] = between[entries_N[places_M] - first]
    return rows


def _crc32_of_blocks(data: memoryview) -> list[int]:
    return [zlib.crc32(data[start : start + _BLOCK_BYTES]) for start in range(0, len(data), _BLOCK_BYTES)]


class ShardReader:
    """Reads rows of a file, fastest from front to back.

    The CRC-32 is verified once the file has been read to its end, and before any read that does not continue the
    previous one.
    """

    def __init__(self, folder: Folder, file: ShardFile) -> None:
        self._folder = folder
        self._file = file
        self._buffer = bytearray()
        self._stream: RandomFile | None = None
        self._crc32 = 0
        self._next_row = 0
        self._verified = False
        self._rest = b""
        self.blocks: list[int] = []
        """The CRC-32 of each block of rows that was read, once the file is verified."""

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
            whole = self._rest + bytes(data)
            end = len(whole) if self._next_row == self._file.rows else len(whole) // _BLOCK_BYTES * _BLOCK_BYTES
            self.blocks += _crc32_of_blocks(memoryview(whole)[:end])
            self._rest = whole[end:]
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
            self._stream = self._folder.open_random(self._file.path)
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


def open_checkpoint(uri: str) -> Checkpoint:
    """Open the checkpoint in the folder ``uri``; verify all of it but the content of its large files.

    Raises:
        CheckpointError: it is corrupt, incomplete or unreadable; the message names the file.
        InputError: it is of another version of the format.
    """
    return open_checkpoint_folder(Folder(uri))


def open_checkpoint_folder(folder: Folder) -> Checkpoint:
    """Open the checkpoint in ``folder``, as ``open_checkpoint`` does."""
    manifest = _read_manifest(folder)
    sizes = _file_sizes(folder)
    files = [file for part in manifest.parts for file in _read_part(folder, part)]
    expected = [(file.path, file.bytes) for file in files] + [(file.name, file.bytes) for file in manifest.files]
    for path, size in expected:
        with translate_read_errors(folder, path):
            if path not in sizes:
                raise CorruptFileError("missing")
            if sizes[path] != size:
                raise CorruptFileError(f"has {sizes[path]} bytes, expected {size}")
    return Checkpoint(folder, manifest, files)


def _read_manifest(folder: Folder) -> CheckpointManifest:
    with translate_read_errors(folder, MANIFEST_NAME):
        try:
            data = folder.read(MANIFEST_NAME)
        except FileNotFoundError:
            raise CorruptFileError("missing: this is not a checkpoint, or an incomplete one") from None
        manifest = CheckpointManifest.from_bytes(data)
        named = STEP_NAME.fullmatch(folder.name)
        if named is not None and int(named[1]) != manifest.step:
            raise CorruptFileError(f"is of step {manifest.step}, but the folder's name has another step")
        return manifest


def _file_sizes(folder: Folder) -> dict[str, int]:
    try:
        return folder.sizes()
    except OSError as error:
        raise CheckpointError(f"{folder.uri}: cannot be read: {error}") from error


def _read_part(folder: Folder, part: FileDigest) -> list[PartFile]:
    with translate_read_errors(folder, part.name):
        try:
            return validate_json(Part, _read_listed(folder, part)).files
        except ValueError as error:
            raise CorruptFileError(f"invalid content: {error}") from error


def _read_listed(folder: Folder, listed: FileDigest, max_bytes: int = SMALL_FILE_BYTES) -> bytes:
    """Read and verify a file that the manifest lists."""
    data = folder.read(listed.name, max_bytes)
    if len(data) != listed.bytes:
        raise CorruptFileError(f"has {len(data)} bytes, but {MANIFEST_NAME} lists {listed.bytes}")
    if zlib.crc32(data) != listed.crc32:
        raise CorruptFileError(f"its CRC-32 is not the one in {MANIFEST_NAME}")
    return data


class Checkpoint:
    """A complete checkpoint that can be read. Made by ``open_checkpoint`` and ``latest_checkpoint``."""

    def __init__(self, folder: Folder, manifest: CheckpointManifest, files: Sequence[PartFile]) -> None:
        """Open the checkpoint of ``manifest`` and ``files`` in ``folder``.

        Raises:
            CheckpointError: the files do not match the tables and the optimizer of the manifest.
        """
        self.uri = folder.uri
        self.manifest = manifest
        self._folder = folder
        self._tables = {table.name: table for table in manifest.tables}
        self._arrays = [array for table in manifest.tables for array in arrays_of(table, manifest.optimizer)]
        self._files = _group_by_array(folder, self._arrays, files)
        self._readers: dict[str, ShardReader] = {}

    def rows(self, table: str) -> int:
        """Return the number of rows it has of ``table``: 0 if it lacks the table."""
        return self._tables[table].rows if table in self._tables else 0

    def file(self, name: str, max_bytes: int) -> bytes | None:
        """Read the file ``name`` that its writer added, of ``max_bytes`` at most; None if it has none of that name.

        Raises:
            CheckpointError: the file is corrupt or unreadable.
        """
        for listed in self.manifest.files:
            if listed.name == name:
                with translate_read_errors(self._folder, name):
                    return _read_listed(self._folder, listed, max_bytes)
        return None

    def check_fits(self, tables: Sequence[TableSpec], optimizer: OptimizerSpec) -> None:
        """Check that ``tables`` under ``optimizer`` can load it. They may have more rows, and further tables.

        Raises:
            CheckpointError: they cannot.
        """
        if not any(table.name in self._tables for table in tables):
            raise CheckpointError(
                f"{self.uri}: has the tables {', '.join(sorted(self._tables))}, none of which the job has "
                f"({', '.join(table.name for table in tables)})"
            )
        for table in tables:
            held = self._tables.get(table.name, table)
            if held.dim != table.dim:
                raise CheckpointError(
                    f"{self.uri}: table '{table.name}' has {held.dim} columns, but the job's has {table.dim}"
                )
            if held.rows > table.rows:
                raise CheckpointError(
                    f"{self.uri}: table '{table.name}' has {held.rows} rows, but the job's has only {table.rows}; a "
                    "checkpoint loads into tables of the same size or larger"
                )
        if self.manifest.optimizer.kind != optimizer.kind:
            raise CheckpointError(
                f"{self.uri}: has state of the optimizer {self.manifest.optimizer.kind}, but the job uses "
                f"{optimizer.kind}"
            )

    def load(self, shards: Sequence[TableShard]) -> None:
        """Copy its rows of ``shards`` into their arrays; entries that it lacks stay unchanged.

        Each file that has a row of any shard is read once, from front to back, in chunks.

        Raises:
            CheckpointError: a file is corrupt or unreadable. Some arrays may have been overwritten.
        """
        for array in self._arrays:
            targets = [shard for shard in shards if shard.table == array.table and array.name in shard.arrays]
            for shard in targets:
                array.check_target(shard)
            for file in self._files[array]:
                overlaps = [(shard.arrays[array.name], ShardOverlap.of(file, shard)) for shard in targets]
                self._load_file(file, [(target, overlap) for target, overlap in overlaps if overlap is not None])

    def _load_file(self, file: ShardFile, targets: Sequence[tuple[NDArray[Any], ShardOverlap]]) -> None:
        if not targets:
            return
        chunk_rows = max(1, CHUNK_BYTES // file.array.row_bytes)
        with translate_read_errors(self._folder, file.path), closing(ShardReader(self._folder, file)) as reader:
            for start in range(0, file.rows, chunk_rows):
                chunk = reader.read(start, min(chunk_rows, file.rows - start))
                for target, overlap in targets:
                    overlap.copy(chunk, start, target)

    def files(self) -> set[str]:
        """Return the paths of all its files."""
        arrays = {file.path for files in self._files.values() for file in files}
        listed = {file.name for file in (*self.manifest.parts, *self.manifest.files)}
        return {MANIFEST_NAME} | arrays | listed

    def verify(self) -> None:
        """Read all of it, to find what opening it does not.

        Raises:
            CheckpointError: a file is corrupt or unreadable.
        """
        for files in self._files.values():
            for file in files:
                with translate_read_errors(self._folder, file.path), closing(ShardReader(self._folder, file)) as reader:
                    reader.verify()
        for listed in self.manifest.files:
            self.file(listed.name, listed.bytes)

    def weights(self, table: str, start: int, stop: int) -> FloatArray:
        """Read rows ``start`` to ``stop`` of ``table``, float32 (stop - start, dim).

        Files stay open between calls, so consecutive blocks of tens of thousands of rows take one pass over them, at
        the end of which their CRC-32 is verified. A block that does not continue the previous one costs a pass first.

        Raises:
            CheckpointError: a file is corrupt or unreadable.
        """
        assert 0 <= start <= stop <= self.rows(table)
        array = self._weights_of(table)
        rows_ND = np.empty((stop - start, *array.shape), array.dtype)
        for file in self._files[array]:
            first, end = (shard_rows(row, file.number, file.num_shards) for row in (start, stop))
            if first < end:
                with translate_read_errors(self._folder, file.path):
                    reader = self._reader(file)
                    place = slice(first * file.num_shards + file.number - start, None, file.num_shards)
                    rows_ND[place] = reader.read(first, end - first)
        return rows_ND

    def read_rows(self, table: str, rows_N: IntArray) -> FloatArray:
        """Read ``rows_N``, int64, of ``table``: float32 (N, dim).

        The first call reads the files that have some of the rows, to verify their CRC-32. Then only the rows are read,
        with what lies between close ones.

        Raises:
            CheckpointError: a file is corrupt or unreadable.
        """
        array = self._weights_of(table)
        rows_ND = np.empty((len(rows_N), *array.shape), array.dtype)
        for file in self._files[array]:
            in_file_N = rows_N % file.num_shards == file.number
            if in_file_N.any():
                with translate_read_errors(self._folder, file.path):
                    reader = self._reader(file)
                    reader.verify()
                    entries_N = rows_N[in_file_N] // file.num_shards
                    rows_ND[in_file_N] = read_entries(self._folder, file, entries_N, reader.blocks)
        return rows_ND

    def _reader(self, file: ShardFile) -> ShardReader:
        return self._readers.setdefault(file.path, ShardReader(self._folder, file))

    def _weights_of(self, table: str) -> ArraySpec:
        return next(array for array in self._arrays if (array.table, array.name) == (table, WEIGHTS))

    def close(self) -> None:
        """Close the files that ``weights`` opened."""
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()


def _group_by_array(
    folder: Folder, arrays: Sequence[ArraySpec], files: Sequence[PartFile]
) -> dict[ArraySpec, list[ShardFile]]:
    """Return the files of each array, sorted by shard; check that every shard has exactly one."""
    by_name = {(array.table, array.name): array for array in arrays}
    grouped: dict[ArraySpec, list[ShardFile]] = {array: [] for array in arrays}
    for file in files:
        with translate_read_errors(folder, file.path):
            fields = SHARD_NAME.fullmatch(file.path)
            array = by_name.get((fields["table"], fields["array"])) if fields else None
            if fields is None or array is None:
                raise CorruptFileError(f"belongs to no table and optimizer state in {MANIFEST_NAME}")
            shard_file = ShardFile(file.path, file.crc32, array, int(fields["number"]), int(fields["shards"]))
            if file.bytes != shard_file.bytes:
                raise CorruptFileError(f"has {file.bytes} bytes, but its rows take {shard_file.bytes}")
            grouped[array].append(shard_file)
    for array, of_array in grouped.items():
        of_array.sort(key=lambda file: file.number)
        of_weights = grouped[by_name[array.table, WEIGHTS]]
        num_shards = of_weights[0].num_shards if of_weights else 1
        found = [(file.number, file.num_shards) for file in of_array]
        # Their number first: it is bounded by the file, while that in a name is not.
        if len(found) != num_shards or found != [(number, num_shards) for number in range(num_shards)]:
            with translate_read_errors(folder, f"{array.table}/{array.name}.*.npy"):
                raise CorruptFileError("expected exactly one file for each shard of the table")
    return grouped
