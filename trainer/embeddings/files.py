"""Embeddings as Parquet: written in parts by all workers, from a store or a checkpoint, and read back by rows.

    write_embeddings(store, model.vectors, vocabularies, run / "embeddings", source)
    vectors_ND = EmbeddingFiles(run / "embeddings").vectors("track", rows_N)

    EMBEDDINGS/ENTITY/rows-000000000000.parquet     id, row int64, vector fixed-size list of float32, and name if the
                                                    dataset has names
    EMBEDDINGS/embeddings.json                      the files, with sizes and checksums (listing.py)

A file holds consecutive rows, from the number in its name on. Neither writing nor reading holds a complete table. What
is read is verified: the footer of a file when it is opened, its pages by their checksums, and that vectors are finite.

Shapes: N rows, D columns.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.errors import CrossfadeError, InputError, Option, StorageUnavailableError
from crossfade.base.io.disk_errors import write_failure
from crossfade.base.io.folder import Folder
from crossfade.base.io.output import staged_folder
from crossfade.base.io.replacing import replace_folder
from crossfade.kvstore.finite import find_non_finite_row
from crossfade.kvstore.store import RowStore, TableSpec
from crossfade.trainer.data.manifest import DataFile
from crossfade.trainer.data.parquet import checked_metadata, open_parquet, storage_errors_of
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.embeddings.listing import AGAIN, LISTED, POPULARITY_FILE, read_listing, write_listing

FILE_ROWS = 1 << 20
GROUP_ROWS = 1 << 16
_WRITE_OPTIONS: dict[str, Any] = {"compression": "zstd", "use_dictionary": False, "write_page_checksum": True}
"""Values are distinct: to look for a dictionary takes more than half of the time, and an eighth more space."""
_COMPARED_ROWS = 1 << 14
"""IDs of embeddings that are compared with those of a dataset."""


class VectorSource(Protocol):
    """Provides vectors by rows: a store during training, a checkpoint, or written embeddings."""

    def vectors(self, entity: str, rows_N: IntArray) -> FloatArray:
        """Return the vectors of ``rows_N``, int64, sorted and unique: float32 (N, D)."""


def write_embeddings(
    store: RowStore,
    tables: Sequence[TableSpec],
    vocabularies: dict[str, Vocabulary],
    folder: Path,
    source: VectorSource,
) -> None:
    """Write the vectors of ``tables`` into ``folder``, and replace its previous content when all are written.

    Every worker calls it and writes its part of the files.

    Args:
        store: coordinates the workers.
        tables: what to write.
        vocabularies: IDs and names of the rows of each table.
        folder: on a file system that all workers share.
        source: provides the vectors.
    """
    staging = partial_folder(folder)
    _on_first(store, partial(shutil.rmtree, staging, ignore_errors=True))
    for table in tables:
        write_table(staging, source, table, vocabularies[table.name], rank=store.rank, workers=store.workers)
    store.barrier()
    _on_first(store, lambda: _complete(folder, staging))


def partial_folder(folder: Path) -> Path:
    """Return the folder in which ``write_embeddings`` collects what replaces ``folder``; a failure leaves it."""
    return folder.with_name(f".{folder.name}.partial")


def write_table(
    folder: Path, source: VectorSource, table: TableSpec, vocabulary: Vocabulary, *, rank: int = 0, workers: int = 1
) -> None:
    """Write the vectors of ``table`` into ``folder/ENTITY``, or worker ``rank``'s part of them.

    ``source`` is asked for ``GROUP_ROWS`` consecutive rows at a time; with one worker, from row 0 to the end.
    """
    entity_folder = folder / table.name
    entity_folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, table.rows, FILE_ROWS)[rank::workers]:
        _write_file(entity_folder / file_name(start), source, table, vocabulary, start)


@contextmanager
def staged_export(out: Path, check_free: Callable[[], None]) -> Iterator[Path]:
    """Create a folder next to ``out`` that replaces it when the block succeeds, and is deleted when it fails.

    ``check_free`` raises if ``out`` may not be replaced; it is called at the beginning and before the folder is moved.

    Raises:
        CrossfadeError: writing fails.
        InputError: ``out`` may not be replaced, its parent cannot be written, or another process writes ``out``.
    """
    out = out.absolute()
    with ExitStack() as stack:
        try:
            staging = stack.enter_context(staged_folder(out))
        except OSError as error:
            message = (f"{out.parent}: cannot be written: {error.strerror}; choose another ", Option("out"))
            raise InputError(message) from error
        check_free()
        try:
            yield staging
            check_free()
            replace_folder(out, staging)
        except OSError as error:
            # An error of writing: errors of reading have been turned into those of the checkpoint or the dataset.
            raise CrossfadeError(f"{out}: could not be written: {write_failure(error, out)}") from error


def _complete(folder: Path, staging: Path) -> None:
    write_listing(Folder(staging))
    replace_folder(folder, staging)


def _on_first(store: RowStore, action: Callable[[], None]) -> None:
    if store.rank == 0:
        action()
    store.barrier()


def _write_file(where: Path, source: VectorSource, table: TableSpec, vocabulary: Vocabulary, start: int) -> None:
    stop = min(start + FILE_ROWS, table.rows)
    writer: pq.ParquetWriter | None = None
    try:
        for first in range(start, stop, GROUP_ROWS):
            last = min(first + GROUP_ROWS, stop)
            names = vocabulary.read(first, last)
            vectors_ND = source.vectors(table.name, np.arange(first, last, dtype=np.int64))
            flat = pa.array(vectors_ND.ravel())
            columns = {"id": names.column("id"), "row": names.column("row")}
            columns["vector"] = pa.FixedSizeListArray.from_arrays(flat, table.dim)
            if "name" in names.column_names:
                columns["name"] = names.column("name")
            group = pa.table(columns)
            writer = writer or pq.ParquetWriter(where, group.schema, **_WRITE_OPTIONS)
            writer.write_table(group, row_group_size=GROUP_ROWS)
    finally:
        if writer is not None:
            writer.close()


class EmbeddingFiles:
    """Written embeddings, read by entity and rows.

    Files stay open, and the row group that was read last stays in memory, for a caller that reads in smaller blocks.
    """

    def __init__(self, location: str | Path | Folder) -> None:
        """Open the embeddings at ``location``, usually ``RUN/embeddings``.

        Raises:
            InputError: there are none, or they are of an earlier revision.
            StorageUnavailableError: storage does not answer.
        """
        self._folder = location if isinstance(location, Folder) else Folder(location)
        self._listed = read_listing(self._folder)
        self.entities = [name for name in self._listed if name != POPULARITY_FILE]
        self._opened: dict[str, list[tuple[str, pq.ParquetFile]]] = {}
        self._last_group: tuple[str, int, FloatArray] | None = None

    def rows(self, entity: str) -> int:
        """Return the number of rows of ``entity``.

        Raises:
            InputError: there is no such entity, or a file is missing or corrupt.
        """
        return sum(file.metadata.num_rows for _, file in self._files(entity))

    def fingerprint(self) -> str:
        """Return a text that differs between embeddings, and is the same for every copy: of the list of the files."""
        listed = [(file.path, file.bytes, file.footer_crc32) for files in self._listed.values() for file in files]
        return f"{zlib.crc32(repr(listed).encode()):08x}"

    def popularity(self) -> pa.Table | None:
        """Return the table of the popularity term; None if they have none.

        Raises:
            InputError: its file is missing or corrupt.
        """
        if POPULARITY_FILE not in self._listed:
            return None
        [listed] = self._listed[POPULARITY_FILE]
        with closing(_open(self._folder, listed)) as file:
            return _read(self.popularity_uri, partial(file.read, use_threads=False), listed.rows)

    @property
    def popularity_uri(self) -> str:
        """Where the popularity term is."""
        return f"{self._folder.uri}/{POPULARITY_FILE}"

    def has_rows_of(self, entity: str, vocabulary: Vocabulary) -> bool:
        """Return whether the rows of ``entity`` are those of ``vocabulary``, by their number and the first IDs.

        IDs that were deleted from the dataset since are null in it, and do not count.
        """
        import pyarrow.compute as pc  # takes time to import

        if self.rows(entity) != vocabulary.rows:
            return False
        uri, file = self._files(entity)[0]
        table = _read_group(uri, file, 0, "id")
        ids = table.column("id").combine_chunks()[:_COMPARED_ROWS]
        known = vocabulary.read(0, len(ids), ["id"]).column("id").combine_chunks()
        return bool(ids.type == known.type and pc.all(pc.equal(ids, known), min_count=0).as_py())

    def vectors(self, entity: str, rows_N: IntArray) -> FloatArray:
        """Return the vectors of ``rows_N``, int64, sorted and unique: float32 (N, D).

        Raises:
            InputError: there is no such entity or row, or a file is missing or damaged.
        """
        pieces, first = [], 0
        for uri, file in self._files(entity):
            for index in range(file.num_row_groups):
                rows = file.metadata.row_group(index).num_rows
                begin, end = np.searchsorted(rows_N, [first, first + rows])
                if begin < end:
                    pieces.append(self._group_vectors(uri, file, index, first)[rows_N[begin:end] - first])
                first += rows
        if len(rows_N) and rows_N[-1] >= first:
            raise InputError(f"{self._folder.uri}/{entity}: has {first} rows, but row {rows_N[-1]} was requested")
        dim = file.schema_arrow.field("vector").type.list_size
        return np.concatenate([np.empty((0, dim), np.float32), *pieces])

    def _group_vectors(self, uri: str, file: pq.ParquetFile, index: int, first: int) -> FloatArray:
        """Return the vectors of the row group ``index``, which begins with the row ``first``."""
        if self._last_group is None or self._last_group[:2] != (uri, index):
            vectors_ND = vectors_of(_read_group(uri, file, index, "vector").column("vector"))
            if self._folder.on_s3:
                self._check_unchanged(uri)
            if (bad := find_non_finite_row(vectors_ND)) is not None:
                raise InputError(f"{uri}: the vector of row {first + bad} is not finite; {AGAIN}")
            self._last_group = uri, index, vectors_ND
        return self._last_group[2]

    def _check_unchanged(self, uri: str) -> None:
        """Check that the object at ``uri`` is the one that was opened: a later one is read as if it were."""
        listed = next(file for files in self._listed.values() for file in files if uri.endswith(f"/{file.path}"))
        _open(self._folder, listed).close()

    def _files(self, entity: str) -> list[tuple[str, pq.ParquetFile]]:
        if entity not in self._opened:
            self._opened[entity] = self._open_files(entity)
        return self._opened[entity]

    def _open_files(self, entity: str) -> list[tuple[str, pq.ParquetFile]]:
        if entity not in self.entities:
            raise InputError(
                f"{self._folder.uri}: has no embeddings of '{entity}'; it has those of {', '.join(self.entities)}"
            )
        files, first = [], 0
        for listed in self._listed[entity]:
            uri = f"{self._folder.uri}/{listed.path}"
            if listed.path != f"{entity}/{file_name(first)}":
                raise InputError(f"{uri}: expected {file_name(first)} here: a file of embeddings is missing")
            files.append((uri, _open(self._folder, listed)))
            first += listed.rows
        return files


def _open(folder: Folder, listed: DataFile) -> pq.ParquetFile:
    with storage_errors_of(folder, listed.path, LISTED):
        source = folder.open_random(listed.path)
        metadata, _ = checked_metadata(source, listed, f"{folder.uri}/{listed.path}", LISTED)
    return open_parquet(source, metadata=metadata, page_checksum_verification=True)


def file_name(first_row: int) -> str:
    """Return the name of the file that starts at ``first_row``."""
    return f"rows-{first_row:012d}.parquet"


def _read_group(uri: str, file: pq.ParquetFile, index: int, column: str) -> pa.Table:
    read = partial(file.read_row_group, index, columns=[column], use_threads=False)
    return _read(uri, read, file.metadata.row_group(index).num_rows)


def _read(uri: str, read: Callable[[], pa.Table], rows: int) -> pa.Table:
    """Return what ``read`` reads of the file at ``uri``, which must have ``rows`` rows.

    Raises:
        InputError: it cannot be read, or is damaged.
        StorageUnavailableError: storage does not answer.
    """
    try:
        table = read()
    except ConnectionError as error:
        raise StorageUnavailableError(f"{uri}: cannot be read: {' '.join(str(error).split())}") from error
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{uri}: cannot be read: {' '.join(str(error).split()).rstrip('.')}; {AGAIN}") from error
    if table.num_rows != rows:  # headers of pages have no checksum
        raise InputError(f"{uri}: is damaged: has {table.num_rows:,} rows where {rows:,} are expected; {AGAIN}")
    return table


def vectors_of(column: pa.ChunkedArray) -> FloatArray:
    """Convert a column of fixed-size lists to float32 (N, D)."""
    combined = column.combine_chunks()
    if isinstance(combined, pa.ChunkedArray):
        combined = pa.concat_arrays(combined.chunks)
    vectors_ND: FloatArray = combined.flatten().to_numpy().reshape(len(combined), combined.type.list_size)
    return vectors_ND
