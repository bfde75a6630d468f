"""Checkpoints: what tables and optimizers were after a step, in files that numpy can read (docs/checkpoint-format.md).

    CHECKPOINTS/step-000000123/
        customer/weights.00003-of-00008.npy     float32 (rows of range 3, dim): its entry i is row i·8 + 3
        customer/squares.00003-of-00008.npy     optimizer state, by its name in LazyOptimizer.state
        part-00000-of-00002.json                what one server wrote: its files, each with bytes and CRC-32
        dense.npz                               perhaps: small files of the writer's own
        manifest.json                           last of all: tables, optimizer, parts and files with bytes and CRC-32

    commit(checkpoints, manifest)                              # all parts are written: now the checkpoint is whole
    checkpoint, passed_over = newest_checkpoint(checkpoints)
    checkpoint.load([RowRange("customer", rows, number=2, ranges=6, arrays={"weights": weights_ND})])

A checkpoint names ranges of rows, not servers: row r of a table lies in range r mod P, so it loads into any other
number of ranges. The manifest vouches for the parts and these for their files: a change to any of them is found.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from math import gcd, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvstore.arrays import FloatArray
from kvstore.checkpoint.format import (
    HEADER_BYTES,
    CheckpointManifest,
    TableShard,
    _DamageError,
    _Part,
    _PartFile,
    _reading,
    npy_header,
    shard_rows,
)
from kvstore.errors import CheckpointError
from kvstore.io.folder import Folder, InputFile
from kvstore.optimizers import OptimizerSpec, make_optimizer
from kvstore.store import FileDigest, TableSpec

MANIFEST_NAME = "manifest.json"


WEIGHTS = "weights"


_PIECE_BYTES = 1 << 24


_STEP_NAME = re.compile(r"step-(\d{9,})")


_RANGE_FILE = re.compile(r"(?P<table>[\w-]+)/(?P<array>[\w-]+)\.(?P<number>\d{5,})-of-(?P<ranges>\d{5,})\.npy")


def open_checkpoint(uri: str) -> Checkpoint:
    """The checkpoint in the folder ``uri``. All is checked but the content of its large files, which ``load`` checks.

    Raises:
        CheckpointError: it is damaged, partial or foreign, or cannot be read; the message names the file.
    """
    return _open(Folder(uri))


def _open(folder: Folder) -> Checkpoint:
    with _reading(folder, MANIFEST_NAME):
        try:
            data = folder.read(MANIFEST_NAME)
        except FileNotFoundError:
            raise _DamageError("missing: this is no checkpoint, or one that was not written to its end") from None
        manifest = CheckpointManifest.from_bytes(data)
        named = _STEP_NAME.fullmatch(folder.name)
        if named is not None and int(named[1]) != manifest.step:
            raise _DamageError(f"it is of step {manifest.step}")
    sizes = _sizes(folder)
    files = [file for part in manifest.parts for file in _read_part(folder, part)]
    for path, written in [(file.path, file.bytes) for file in files] + [
        (own.name, own.bytes) for own in manifest.files
    ]:
        with _reading(folder, path):
            if path not in sizes:
                raise _DamageError("missing")
            if sizes[path] != written:
                raise _DamageError(f"has {sizes[path]} bytes where {written} were written")
    return Checkpoint(folder, manifest, files)


def _sizes(folder: Folder) -> dict[str, int]:
    try:
        return folder.sizes()
    except OSError as error:
        raise CheckpointError(f"{folder.uri}: cannot be read: {error}") from error


def _read_part(folder: Folder, part: FileDigest) -> list[_PartFile]:
    with _reading(folder, part.name):
        return _Part.model_validate_json(_read_listed(folder, part)).files


def _read_listed(folder: Folder, part: FileDigest) -> bytes:
    """The content of a file that the manifest lists."""
    data = folder.read(part.name)
    if len(data) != part.bytes:
        raise _DamageError(f"has {len(data)} bytes where {MANIFEST_NAME} says {part.bytes}")
    if zlib.crc32(data) != part.crc32:
        raise _DamageError(f"its CRC-32 is not the one that {MANIFEST_NAME} says")
    return data


@dataclass(frozen=True)
class _Array:
    """One array of a table of ``rows``: the type of its values and the ``shape`` of one row's."""

    table: str
    rows: int
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def entry_bytes(self) -> int:
        """The bytes of one row."""
        return self.dtype.itemsize * prod(self.shape)

    def check_target(self, held: TableShard) -> None:
        """See that rows in memory can take those of this array: whoever asks has checked what fits."""
        target = held.arrays[self.name]
        assert held.rows >= self.rows
        assert len(target) >= shard_rows(self.rows, held.number, held.ranges)
        assert (target.dtype, target.shape[1:]) == (self.dtype, self.shape)


@dataclass(frozen=True)
class _RangeFile:
    """A file of the rows of an array that are ``number`` modulo ``ranges``."""

    path: str
    crc32: int
    array: _Array
    number: int
    ranges: int

    @property
    def rows(self) -> int:
        """How many there are."""
        return shard_rows(self.array.rows, self.number, self.ranges)

    @property
    def bytes(self) -> int:
        """Its size."""
        return HEADER_BYTES + self.rows * self.array.entry_bytes


class Checkpoint:
    """A whole checkpoint that can be read. Made by ``open_checkpoint`` and ``newest_checkpoint``."""

    def __init__(self, folder: Folder, manifest: CheckpointManifest, files: Sequence[_PartFile]) -> None:
        """That of ``manifest`` and ``files`` in ``folder``.

        Raises:
            CheckpointError: these are not the files of such tables.
        """
        self.uri = folder.uri
        self.manifest = manifest
        self._folder = folder
        self._tables = {table.name: table for table in manifest.tables}
        self._arrays = [array for table in manifest.tables for array in _arrays_of(table, manifest.optimizer)]
        self._files = _sort_files(folder, self._arrays, files)
        self._readers: dict[str, _RangeReader] = {}

    def rows(self, table: str) -> int:
        """How many rows it has of ``table``: 0 if it lacks the table."""
        return self._tables[table].rows if table in self._tables else 0

    def file(self, name: str) -> bytes | None:
        """The content of the file ``name`` beside the tables'; None if it has none.

        Raises:
            CheckpointError: it is damaged or cannot be read.
        """
        for listed in self.manifest.files:
            if listed.name == name:
                with _reading(self._folder, name):
                    return _read_listed(self._folder, listed)
        return None

    def check_fits(self, tables: Sequence[TableSpec], optimizer: OptimizerSpec) -> None:
        """See that ``tables`` under ``optimizer`` can start from it. They may have more rows, and tables that it lacks.

        Raises:
            CheckpointError: they cannot.
        """
        if not any(table.name in self._tables for table in tables):
            raise CheckpointError(
                f"{self.uri}: has the tables {', '.join(sorted(self._tables))}, none of which is wanted here "
                f"({', '.join(table.name for table in tables)})"
            )
        for table in tables:
            held = self._tables.get(table.name, table)
            if held.dim != table.dim:
                raise CheckpointError(
                    f"{self.uri}: table '{table.name}' has {held.dim} columns, but {table.dim} are wanted"
                )
            if held.rows > table.rows:
                raise CheckpointError(
                    f"{self.uri}: table '{table.name}' has {held.rows} rows, but only {table.rows} are wanted; a "
                    "checkpoint loads into tables of its size or larger"
                )
        if self.manifest.optimizer.kind != optimizer.kind:
            raise CheckpointError(
                f"{self.uri}: has the state of the optimizer {self.manifest.optimizer.kind}, not of {optimizer.kind}"
            )

    def load(self, ranges: Sequence[TableShard]) -> None:
        """Read what it has of the rows of ``ranges`` into their arrays, which otherwise stay as they are.

        Each file with a wanted row is read once, from front to back, in pieces.

        Raises:
            CheckpointError: a file is damaged or cannot be read. Some of the arrays have been overwritten then.
        """
        for array in self._arrays:
            wanted = [held for held in ranges if held.table == array.table and array.name in held.arrays]
            for held in wanted:
                array.check_target(held)
            for file in self._files[array]:
                shared = [(held.arrays[array.name], _Overlap.of(file, held)) for held in wanted]
                self._load_file(file, [(target, rows) for target, rows in shared if rows is not None])

    def _load_file(self, file: _RangeFile, targets: Sequence[tuple[NDArray[Any], _Overlap]]) -> None:
        if not targets:
            return
        entries = max(1, _PIECE_BYTES // file.array.entry_bytes)
        with _reading(self._folder, file.path), closing(_RangeReader(self._folder, file)) as reader:
            for start in range(0, file.rows, entries):
                piece = reader.read(start, min(entries, file.rows - start))
                for target, rows in targets:
                    rows.copy(piece, start, target)

    def weights(self, table: str, start: int, stop: int) -> FloatArray:
        """Rows ``start`` to ``stop`` of ``table``, float32 (stop - start, dim).

        Files stay open and are read on, so consecutive pieces of tens of thousands of rows take one pass over them, at
        the end of which their CRC-32 is known. Whoever begins elsewhere has each file checked first.

        Raises:
            CheckpointError: a file is damaged or cannot be read.
        """
        assert 0 <= start <= stop <= self.rows(table)
        array = next(array for array in self._arrays if (array.table, array.name) == (table, WEIGHTS))
        rows_ND = np.empty((stop - start, *array.shape), array.dtype)
        for file in self._files[array]:
            first, end = (shard_rows(row, file.number, file.ranges) for row in (start, stop))
            if first < end:
                with _reading(self._folder, file.path):
                    reader = self._readers.get(file.path) or _RangeReader(self._folder, file)
                    self._readers[file.path] = reader
                    rows_ND[first * file.ranges + file.number - start :: file.ranges] = reader.read(first, end - first)
        return rows_ND

    def close(self) -> None:
        """Close the files that ``weights`` has opened."""
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()


def _arrays_of(table: TableSpec, optimizer: OptimizerSpec) -> list[_Array]:
    """The arrays of a table: its weights, and what its optimizer keeps."""
    state = make_optimizer(optimizer, 0, table.dim).state
    return [
        _Array(table.name, table.rows, WEIGHTS, np.dtype(np.float32), (table.dim,)),
        *(_Array(table.name, table.rows, name, values.dtype, values.shape[1:]) for name, values in state.items()),
    ]


def _sort_files(folder: Folder, arrays: Sequence[_Array], files: Sequence[_PartFile]) -> dict[_Array, list[_RangeFile]]:
    """The files of each array in the order of ranges, which must all be there."""
    named = {(array.table, array.name): array for array in arrays}
    found: dict[_Array, list[_RangeFile]] = {array: [] for array in arrays}
    for file in files:
        with _reading(folder, file.path):
            parts = _RANGE_FILE.fullmatch(file.path)
            array = named.get((parts["table"], parts["array"])) if parts else None
            if parts is None or array is None:
                raise _DamageError(f"not a file of the tables and the optimizer that {MANIFEST_NAME} names")
            held = _RangeFile(file.path, file.crc32, array, int(parts["number"]), int(parts["ranges"]))
            if file.bytes != held.bytes:
                raise _DamageError(f"has {file.bytes} bytes, but its rows take {held.bytes}")
            found[array].append(held)
    for array, of_array in found.items():
        of_array.sort(key=lambda file: file.number)
        of_weights = found[named[array.table, WEIGHTS]]
        ranges = of_weights[0].ranges if of_weights else 1
        if [(file.number, file.ranges) for file in of_array] != [(number, ranges) for number in range(ranges)]:
            with _reading(folder, f"{array.table}/{array.name}.*.npy"):
                raise _DamageError("there is not one file for each range of the table's rows")
    return found


@dataclass(frozen=True)
class _Overlap:
    """The rows that a file and a range in memory have in common: ``count`` of them, evenly spaced in both."""

    count: int
    file_start: int
    file_step: int
    memory_start: int
    memory_step: int

    @staticmethod
    def of(file: _RangeFile, held: TableShard) -> _Overlap | None:
        """Rows r with r ≡ file.number (mod file.ranges) and r ≡ held.number (mod held.ranges), if there are any."""
        divisor = gcd(file.ranges, held.ranges)
        if file.number % divisor != held.number % divisor:
            return None
        # The least such row (Chinese remainder theorem); the others follow in steps of the least common multiple.
        file_step, memory_step = held.ranges // divisor, file.ranges // divisor
        turns = (held.number - file.number) // divisor * pow(memory_step, -1, file_step) % file_step
        first = file.number + turns * file.ranges
        file_start, memory_start = first // file.ranges, first // held.ranges
        count = shard_rows(file.rows, file_start, file_step)
        return _Overlap(count, file_start, file_step, memory_start, memory_step) if count else None

    def copy(self, piece: NDArray[Any], start: int, target: NDArray[Any]) -> None:
        """Put those of them that lie in ``piece``, the file's entries from ``start`` on, into ``target``."""
        skipped = shard_rows(start, self.file_start, self.file_step)
        rows = piece[self.file_start + skipped * self.file_step - start :: self.file_step]
        first = self.memory_start + skipped * self.memory_step
        target[first : first + len(rows) * self.memory_step : self.memory_step] = rows


class _RangeReader:
    """Reads entries of a file, best from front to back; what it has read to the end is as it was written."""

    def __init__(self, folder: Folder, file: _RangeFile) -> None:
        self._folder = folder
        self._file = file
        self._buffer = bytearray()
        self._stream: InputFile | None = None
        self._crc32 = 0
        self._next_entry = 0
        self._checked = False

    def close(self) -> None:
        """Let go of the file, for now."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def read(self, start: int, count: int) -> NDArray[Any]:
        """Entries from ``start`` on, ``count`` of them, valid until the next call."""
        if not self._checked and start != self._next_entry:
            self._read_rest()
        array = self._file.array
        taken = self._take(start, count)
        entries: NDArray[Any] = np.ndarray((count, *array.shape), array.dtype, buffer=taken)
        self._next_entry = start + count
        if not self._checked:
            self._crc32 = zlib.crc32(taken, self._crc32)
            if self._next_entry == self._file.rows:
                self._check_crc32()
        return entries

    def _read_rest(self) -> None:
        """Before a jump: read on until the CRC-32 is known."""
        entries = max(1, _PIECE_BYTES // self._file.array.entry_bytes)
        while not self._checked:
            self.read(self._next_entry, min(entries, self._file.rows - self._next_entry))

    def _check_crc32(self) -> None:
        if self._crc32 != self._file.crc32:
            raise _DamageError("its CRC-32 is not that of what was written")
        self._checked = True
        self.close()

    def _take(self, start: int, count: int) -> memoryview:
        """The bytes of entries from ``start`` on."""
        size = self._file.array.entry_bytes
        if self._stream is None:
            self._stream = self._folder.open_input(self._file.path)
            if not self._checked:
                self._take_header()
        if self._checked:
            self._stream.seek(HEADER_BYTES + start * size)
        return self._take_bytes(count * size)

    def _take_header(self) -> None:
        header = self._take_bytes(HEADER_BYTES)
        if bytes(header) != npy_header(self._file.array.dtype, (self._file.rows, *self._file.array.shape)):
            raise _DamageError("its .npy header is not that of its rows")
        self._crc32 = zlib.crc32(header)

    def _take_bytes(self, size: int) -> memoryview:
        assert self._stream is not None
        if len(self._buffer) < size:
            self._buffer = bytearray(size)
        taken = rest = memoryview(self._buffer)[:size]
        while rest:
            got = self._stream.readinto(rest)
            if not got:
                raise _DamageError("ended before its end")
            rest = rest[got:]
        return taken
