"""Open a checkpoint and read its rows into any number of shards (docs/checkpoint-format.md).

    CHECKPOINTS/step-000000123/
        customer/weights.00003-of-00008.npy             float32 (rows of shard 3, dim): its entry i is row i·8 + 3
        customer/sum_of_squares.00003-of-00008.npy      optimizer state, by its name in LazyOptimizer.state
        part-00000-of-00002.json                        the files that one server wrote, with sizes and CRC-32
        dense.npz                                       optional small files of the writer's own
        manifest.json                                   written last: tables, optimizer, parts, files, sizes, CRC-32

    checkpoint = open_checkpoint("s3://music/checkpoints/step-000000123")
    checkpoint.load([TableShard("customer", table_rows, number=2, num_shards=6, arrays={"weights": weights_ND})])

Files are named by shard, not by server: row r of a table is in shard r mod P, so a checkpoint loads into any other
number of shards. The manifest has checksums of the parts and these of their files, so any change is detected.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.errors import CheckpointError
from crossfade.base.io.folder import Folder
from crossfade.base.io.regular_files import SMALL_FILE_BYTES
from crossfade.base.json_text import validate_json
from crossfade.kvstore.checkpoint.files import MANIFEST_NAME, SHARD_NAME, STEP_NAME, WEIGHTS
from crossfade.kvstore.checkpoint.format import (
    CheckpointManifest,
    CorruptFileError,
    Part,
    PartFile,
    TableShard,
    shard_rows,
    translate_read_errors,
)
from crossfade.kvstore.checkpoint.shard_files import (
    CHUNK_BYTES,
    ArraySpec,
    ShardFile,
    ShardOverlap,
    ShardReader,
    arrays_of,
    read_entries,
)
from crossfade.kvstore.optimizer_spec import OptimizerSpec
from crossfade.kvstore.store import FileDigest, TableSpec


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
                    self._reader(file).verify()
                    rows_ND[in_file_N] = read_entries(self._folder, file, rows_N[in_file_N] // file.num_shards)
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
