"""Vocabularies: which ID has which row. They are read in parts, so that a large one is never completely in memory.

vocabulary = Vocabulary(folder, read_manifest(folder), "track")
vocabulary.read(0, 10).to_pylist()                  # the ten most frequent tracks: row, id and, if there are, names

Shapes: R rows of the vocabulary, N rows of a part of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np
import pyarrow as pa

from crossfade.base.arrays import BoolArray, IntArray
from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import VOCABULARY, DatasetManifest
from crossfade.trainer.data.parquet import ParquetFiles

_THREADS = 8


class Vocabulary:
    """The vocabulary of one entity of the prepared dataset in ``folder``."""

    def __init__(self, folder: Folder, manifest: DatasetManifest, entity: str) -> None:
        self._entity = manifest.entities[entity]
        self._folder = folder
        self._files = ParquetFiles(folder)
        self._name = entity
        self.rows = self._entity.rows
        self.columns = ["row", "id", *(["name"] if self._entity.has_names else [])]

    def read(self, start: int, stop: int, columns: list[str] | None = None) -> pa.Table:
        """Read ``columns`` of the rows ``start`` to before ``stop``; by default row, id and, if there is one, name.

        Raises:
            InputError: a file is missing or corrupt, or its rows are not the ones that the manifest lists.
            StorageUnavailableError: storage does not answer.
        """
        columns = columns or self.columns
        needed = ["row", *(name for name in columns if name != "row")]
        tables = [
            table.slice(max(0, start - first), min(stop, first + table.num_rows) - max(start, first))
            for first, table in self._row_groups(needed, start, stop)
        ]
        row_N = np.concatenate([np.empty(0, np.int64), *(table.column("row").to_numpy() for table in tables)])
        self._check_rows(row_N, start, stop)
        # A file with vacant rows has a nullable ID column, the others do not.
        return pa.concat_tables(tables, promote_options="default").select(columns)

    def take(self, rows_N: IntArray, columns: list[str] | None = None) -> pa.Table:
        """Read ``columns`` of ``rows_N``, sorted and unique; the default is that of ``read``.

        Only row groups with such rows are read.

        Raises:
            InputError: a file is missing or corrupt, or its rows are not the ones that the manifest lists.
            StorageUnavailableError: storage does not answer.
        """
        if not len(rows_N):
            return self.read(0, 1, columns).slice(0, 0)
        pieces, first = [], 0
        for rows in (rows for file in self._entity.files for rows in file.row_groups):
            begin, end = np.searchsorted(rows_N, [first, first + rows])
            if begin < end:
                group = self.read(first, first + rows, columns)
                pieces.append(group.take(pa.array(rows_N[begin:end] - first)))
            first += rows
        return pa.concat_tables(pieces, promote_options="default")

    def values(self, rows_N: IntArray, column: str) -> pa.Array:
        """Read a column of ``rows_N``, in any order, otherwise as ``take``."""
        sorted_N, place_N = np.unique(rows_N, return_inverse=True)
        return self.take(sorted_N, [column]).column(column).combine_chunks().take(pa.array(place_N))

    def iter_tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Yield ``columns`` of all rows in order, one row group at a time; the default is that of ``read``.

        Raises:
            InputError: a file is missing or corrupt, or its rows are not the ones that the manifest lists.
            StorageUnavailableError: storage does not answer.
        """
        columns = columns or self.columns
        needed = ["row", *(name for name in columns if name != "row")]
        end = 0
        for first, table in self._row_groups(needed, 0, self.rows):
            end = first + table.num_rows
            self._check_rows(table.column("row").to_numpy(), first, end)
            yield table.select(columns)
        self._check_rows(np.arange(end), 0, self.rows)

    def counts(self) -> IntArray:
        """Return how often each row occurs in train with a positive weight: int64 (R,)."""
        count_R: IntArray = self.read(0, self.rows, ["count"]).column("count").to_numpy().astype(np.int64)
        return count_R

    def total_counts(self) -> IntArray:
        """Return ``counts`` and the counts of the datasets that this one was extended from: int64 (R,)."""
        if not self._entity.has_earlier_count:
            return self.counts()
        table = self.read(0, self.rows, ["count", "earlier_count"])
        count_R: IntArray = table.column("count").to_numpy() + table.column("earlier_count").to_numpy()
        return count_R

    def rows_assigned_after(self, lineage_index: int) -> IntArray:
        """Return the rows, sorted, whose ID got them in a dataset after the one at ``lineage_index`` of the lineage.

        The entity must have the column: ``has_last_seen`` of the manifest.
        """
        found = [np.empty(0, np.int64)]
        for table in self.iter_tables(["row", "lineage_index"]):
            is_later_N = table.column("lineage_index").to_numpy() > lineage_index
            found.append(table.column("row").to_numpy()[is_later_N])
        return np.concatenate(found)

    def _check_rows(self, row_N: IntArray, start: int, stop: int) -> None:
        if not np.array_equal(row_N, np.arange(start, stop)):
            raise InputError(
                f"{self._folder.uri}/{VOCABULARY}/{self._name}: does not hold rows {start} to {stop - 1} in order, but "
                f"the manifest lists rows 0 to {self.rows - 1}; prepare the data again"
            )

    def _row_groups(self, columns: list[str], start: int, stop: int) -> Iterator[tuple[int, pa.Table]]:
        """Yield the row groups with rows of ``start`` to before ``stop``, each with its first row."""
        first = 0
        for file in self._entity.files:
            for index, rows in enumerate(file.row_groups):
                if rows and first < stop and first + rows > start:
                    yield first, plain_strings(self._files.read(file, index, columns))
                first += rows


class KeptVocabulary(Vocabulary):
    """A vocabulary whose columns stay in memory once they are read."""

    def __init__(self, folder: Folder, manifest: DatasetManifest, entity: str) -> None:
        super().__init__(folder, manifest, entity)
        self._kept: dict[tuple[str, ...], pa.Table] = {}
        self._arrays: dict[str, pa.Array] = {}

    @cached_property
    def rows_by_id(self) -> dict[str, int]:
        """The row of each ID, as text."""
        ids = self._whole(["id"]).column("id").cast(pa.string()).to_pylist()
        return {id: row for row, id in enumerate(ids) if id is not None}

    def read(self, start: int, stop: int, columns: list[str] | None = None) -> pa.Table:
        """Return ``columns`` of the rows ``start`` to before ``stop``."""
        return self._whole(columns).slice(start, stop - start)

    def take(self, rows_N: IntArray, columns: list[str] | None = None) -> pa.Table:
        """Return ``columns`` of ``rows_N``."""
        return self._whole(columns).take(pa.array(rows_N))

    def values(self, rows_N: IntArray, column: str) -> pa.Array:
        """Return a column of ``rows_N``."""
        if column not in self._arrays:
            self._arrays[column] = self._whole([column]).column(column).combine_chunks()
        return self._arrays[column].take(pa.array(rows_N))

    def iter_tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Yield ``columns`` of all rows at once."""
        yield self._whole(columns)

    def _whole(self, columns: list[str] | None) -> pa.Table:
        key = tuple(columns or self.columns)
        if key not in self._kept:
            self._kept[key] = super().read(0, self.rows, columns).combine_chunks()
        return self._kept[key]


def check_vocabularies(folder: Folder, manifest: DatasetManifest) -> None:
    """Check that all files of vocabularies are there, and have as many rows as the manifest lists.

    Their footers state that. It is checked before tables with a row for each ID take memory, and not only when the IDs
    are read, after the training.

    Raises:
        InputError: a file is missing or corrupt, or differs from the manifest.
        StorageUnavailableError: storage does not answer.
    """
    files = ParquetFiles(folder)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="footers") as pool:
        try:
            for _ in pool.map(files.footer, (file for entity in manifest.entities.values() for file in entity.files)):
                pass
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def equal_values(some: pa.ChunkedArray, others: pa.ChunkedArray) -> BoolArray:
    """Return where two columns of the same rows have the same value, or both none; nowhere if their types differ."""
    import pyarrow.compute as pc  # takes time to import

    if some.type != others.type:
        return np.zeros(len(some), np.bool_)
    both_null = pc.and_(some.is_null(), others.is_null())
    equal_N: BoolArray = pc.or_(pc.fill_null(pc.equal(some, others), False), both_null).to_numpy()
    return equal_N


def plain_strings(table: pa.Table) -> pa.Table:
    """Cast the large-string columns of ``table`` to strings, since writers differ in which of the two they use."""
    for index, field in enumerate(table.schema):
        if pa.types.is_large_string(field.type):
            table = table.set_column(index, field.with_type(pa.string()), table.column(index).cast(pa.string()))
    return table
