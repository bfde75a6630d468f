"""Vocabularies: which id has which row, in pieces, so that a large one is never held whole."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from kvstore.arrays import BoolArray, IntArray
from kvstore.errors import InputError
from kvstore.io.folder import Folder
from trainer.data.manifest import VOCABULARY, DatasetManifest
from trainer.data.parquet import ParquetFiles


class Vocabulary:
    """The vocabulary of one entity of the prepared data in ``folder``."""

    def __init__(self, folder: Folder, manifest: DatasetManifest, entity: str) -> None:
        """The vocabulary of ``entity``, which the manifest names."""
        self._entity = manifest.entities[entity]
        self._folder = folder
        self._files = ParquetFiles(folder)
        self._name = entity
        self.rows = self._entity.rows
        self.columns = ["row", "id", *(["name"] if self._entity.has_names else [])]

    def read(self, start: int, stop: int, columns: list[str] | None = None) -> pa.Table:
        """Rows ``start`` to ``stop``, one at least, of ``columns``: by default row, id and, where there is one, name.

        Raises:
            InputError: a file is missing or damaged, or its rows are not those that belong there.
            UnreachableError: storage does not answer.
        """
        columns = columns or self.columns
        wanted = ["row", *(name for name in columns if name != "row")]
        iter_tables = [
            table.slice(max(0, start - first), min(stop, first + table.num_rows) - max(start, first))
            for first, table in self._row_groups(wanted, start, stop)
        ]
        found = np.concatenate([np.empty(0, np.int64), *(piece.column("row").to_numpy() for piece in iter_tables)])
        self._check_rows(found, start, stop)
        # Where rows were forgotten, the id may be null in one file and not in another.
        return pa.concat_tables(iter_tables, promote_options="default").select(columns)

    def iter_tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """All rows in order, a row group at a time: ``columns``, by default row, id and, where there is one, name.

        Raises:
            InputError: a file is missing or damaged, or its rows are not those that belong there.
        """
        columns = columns or self.columns
        wanted = ["row", *(name for name in columns if name != "row")]
        end = 0
        for first, table in self._row_groups(wanted, 0, self.rows):
            end = first + table.num_rows
            self._check_rows(table.column("row").to_numpy(), first, end)
            yield table.select(columns)
        self._check_rows(np.arange(end), 0, self.rows)

    def _check_rows(self, found_N: IntArray, start: int, stop: int) -> None:
        if not np.array_equal(found_N, np.arange(start, stop)):
            raise InputError(
                f"{self._folder.uri}/{VOCABULARY}/{self._name}: does not hold rows {start} to {stop - 1} in order, but "
                f"the manifest says that it has rows 0 to {self.rows - 1}; prepare the data again"
            )

    def counts(self) -> IntArray:
        """How often each row occurs in train: int64 (rows,)."""
        counts_N: IntArray = self.read(0, self.rows, ["count"]).column("count").to_numpy().astype(np.int64)
        return counts_N

    def warm_rows(self) -> BoolArray:
        """Which rows were liked in train, or in that of the earlier data whose rows these keep: bool (rows,)."""
        columns = ["count", *(["met"] if self._entity.has_warm else [])]
        table = self.read(0, self.rows, columns)
        met_N: BoolArray = table.column("count").to_numpy() > 0
        return met_N | table.column("met").to_numpy() if self._entity.has_warm else met_N

    def rows_assigned_after(self, place: int) -> IntArray:
        """The rows, sorted, whose id has had them for less time than the data set at ``place`` of the lineage is old.

        There must be that column: the entity is ``seen``.
        """
        taken = [np.empty(0, np.int64)]
        for piece in self.iter_tables(["row", "since"]):
            taken.append(piece.column("row").to_numpy()[piece.column("since").to_numpy() > place])
        return np.concatenate(taken)

    def _row_groups(self, columns: list[str], start: int, stop: int) -> Iterator[tuple[int, pa.Table]]:
        first = 0
        for file in self._entity.files:
            for index, rows in enumerate(file.row_groups):
                if rows and first < stop and first + rows > start:
                    yield first, plain_strings(self._files.read(file, index, columns))
                first += rows


def plain_strings(table: pa.Table) -> pa.Table:
    """``table``, its columns of large strings cast to strings: writers differ in which they say a column is of."""
    for index, field in enumerate(table.schema):
        if pa.types.is_large_string(field.type):
            table = table.set_column(index, field.with_type(pa.string()), table.column(index).cast(pa.string()))
    return table
