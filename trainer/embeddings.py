"""Embeddings as Parquet: written from a store in pieces by all workers, read back by rows.

    EMBEDDINGS/ENTITY/rows-000000000000.parquet     id, row int64, vector fixed-size list of float32, and name if known

A file holds the rows from the number in its name on. Neither side ever holds a whole table.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kvstore.arrays import FloatArray, IntArray
from kvstore.errors import InputError
from kvstore.store import RowStore, TableSpec
from trainer.data.vocabulary import Vocabulary

FILE_ROWS = 1 << 20
GROUP_ROWS = 1 << 16


class VectorSource(Protocol):
    """Whoever can give the vectors of rows: a store that trains, or embeddings that were written."""

    def vectors(self, entity: str, rows_N: IntArray) -> FloatArray:
        """Vectors of ``rows_N``, int64, sorted and unique: float32 (N, D)."""


class StoreVectors:
    """The vectors that a store holds now."""

    def __init__(self, store: RowStore) -> None:
        """Read from ``store``."""
        self._store = store

    def vectors(self, entity: str, rows_N: IntArray) -> FloatArray:
        """Vectors of ``rows_N``."""
        return self._store.pull({entity: rows_N})[entity]


def write_embeddings(
    store: RowStore, tables: Sequence[TableSpec], vocabularies: dict[str, Vocabulary], folder: Path
) -> None:
    """Write all ``tables`` of ``store`` into ``folder``, replacing what is there once all is written.

    Called by every worker; each writes its share of the files.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    _on_first(store, lambda: shutil.rmtree(partial, ignore_errors=True))
    source = StoreVectors(store)
    for table in tables:
        entity_folder = partial / table.name
        entity_folder.mkdir(parents=True, exist_ok=True)
        starts = range(0, table.rows, FILE_ROWS)
        for start in starts[store.rank :: store.workers]:
            path = entity_folder / f"rows-{start:012d}.parquet"
            _write_file(path, source, table, vocabularies[table.name], start, min(start + FILE_ROWS, table.rows))
    store.barrier()
    _on_first(store, lambda: _replace(folder, partial))


def _on_first(store: RowStore, action: Callable[[], None]) -> None:
    if store.rank == 0:
        action()
    store.barrier()


def _replace(folder: Path, partial: Path) -> None:
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _write_file(
    path: Path, source: VectorSource, table: TableSpec, vocabulary: Vocabulary, start: int, stop: int
) -> None:
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
            writer = writer or pq.ParquetWriter(path, group.schema, compression="zstd")
            writer.write_table(group, row_group_size=GROUP_ROWS)
    finally:
        if writer is not None:
            writer.close()


class EmbeddingFiles:
    """Embeddings that a run has written."""

    def __init__(self, folder: Path) -> None:
        """Those in ``folder``, usually ``RUN/embeddings``.

        Raises:
            InputError: there are none.
        """
        self._folder = folder
        self.entities = sorted(path.name for path in folder.glob("*") if path.is_dir())
        if not self.entities:
            raise InputError(f"{folder}: holds no embeddings; expected a folder that 'crossfade train' wrote")

    def read(self, entity: str, columns: list[str] | None = None) -> pa.Table:
        """All rows of ``entity`` in order: ``columns``, by default all.

        Raises:
            InputError: there is no such entity, or a file is damaged.
        """
        return pa.concat_tables([file.read(columns=columns) for file in self._files(entity)])

    def vectors(self, entity: str, rows_N: IntArray) -> FloatArray:
        """Vectors of ``rows_N``."""
        pieces, first = [], 0
        for file in self._files(entity):
            for index in range(file.num_row_groups):
                rows = file.metadata.row_group(index).num_rows
                begin, end = np.searchsorted(rows_N, [first, first + rows])
                if begin < end:
                    column = file.read_row_group(index, columns=["vector"]).column("vector")
                    pieces.append(vectors_of(column)[rows_N[begin:end] - first])
                first += rows
        if len(rows_N) and rows_N[-1] >= first:
            raise InputError(f"{self._folder / entity}: has {first} rows, but row {rows_N[-1]} was asked for")
        return np.concatenate(pieces) if pieces else np.empty((0, 0), np.float32)

    def _files(self, entity: str) -> list[pq.ParquetFile]:
        paths = sorted((self._folder / entity).glob("rows-*.parquet"))
        if not paths:
            raise InputError(
                f"{self._folder}: has no embeddings of '{entity}'; it has those of {', '.join(self.entities)}"
            )
        files = []
        for path in paths:
            try:
                files.append(pq.ParquetFile(path))
            except (OSError, pa.ArrowException) as error:
                raise InputError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
        return files


def vectors_of(column: pa.ChunkedArray) -> FloatArray:
    """A column of fixed-size lists as float32 (N, D)."""
    combined = column.combine_chunks()
    if isinstance(combined, pa.ChunkedArray):
        combined = pa.concat_arrays(combined.chunks)
    vectors_ND: FloatArray = combined.flatten().to_numpy().reshape(len(combined), combined.type.list_size)
    return vectors_ND
