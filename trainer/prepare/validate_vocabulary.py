# ruff: noqa: S608  (what is put into SQL is the name of a type of this program)
"""Validate one vocabulary: rows without gaps, distinct IDs, counts that match train, and pending IDs without rows.

    VocabularyCheck(folder, manifest, problems, "track", count_R, part_rows=1 << 20).run(work, memory_bytes, progress)

Shapes: N rows of a part of a row group, R rows of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crossfade.base.arrays import IntArray
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import PENDING, VOCABULARY, DataFile, DatasetManifest, Entity
from crossfade.trainer.data.parquet import ParquetFiles
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.prepare.admission import pending_schema
from crossfade.trainer.prepare.database import execute, working_database
from crossfade.trainer.prepare.extend import SQL_TYPES
from crossfade.trainer.prepare.problems import MAX_LISTED, Problems

_NEVER_NULL = ("row", "count", "warm", "lineage_index")


class VocabularyCheck:
    """Checks the vocabulary of the entity ``name``.

    ``count_R`` are the counts that it should have, None if they are unknown. At most ``part_rows`` rows are in memory
    at a time.
    """

    def __init__(
        self,
        folder: Folder,
        manifest: DatasetManifest,
        problems: Problems,
        name: str,
        count_R: IntArray | None,
        part_rows: int,
    ) -> None:
        self._where = f"{folder.uri}/{VOCABULARY}/{name}"
        self._pending_where = f"{folder.uri}/{PENDING}/{name}"
        self._files = ParquetFiles(folder)
        self._name = name
        self._entity: Entity = manifest.entities[name]
        self._problems = problems
        self._count_R = count_R
        self._part_rows = part_rows
        self._vacant_rows = np.array(self._entity.vacant_rows, np.int64)
        self._columns = _expected_columns(self._entity)
        self._lineage_length = len(manifest.lineage)
        self._next_row = 0

    def run(self, work: Path, memory_bytes: int | None, progress: ProgressReporter) -> None:
        """Read and check all files, with a database in ``work`` to find IDs that occur twice."""
        folder = work / "ids"
        folder.mkdir(exist_ok=True)
        progress.phase(f"check {self._name}", self._entity.rows, "row")
        with working_database(folder, memory_bytes, None) as connection:
            execute(connection, f"CREATE OR REPLACE TABLE ids (row BIGINT, id {SQL_TYPES[self._entity.id_type]})")
            for file in self._entity.files:
                with self._problems.collect_errors():
                    for table in self._checked_parts(file):
                        _insert(connection, table, "INSERT INTO ids SELECT row, id FROM part")
                        progress.advance(table.num_rows)
            self._check_pending(connection)
            repeated = execute(
                connection,
                "SELECT id, min(row), max(row), count(*) FROM ids WHERE id IS NOT NULL GROUP BY id HAVING count(*) > 1 "
                f"ORDER BY 2 LIMIT {MAX_LISTED + 1}",
            )
        for text, first, last, times in repeated:
            self._problems.add(f"{self._where}: the id '{text}' has {times} rows, {first} and {last}; expected one")

    def _check_pending(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Check that pending IDs occur once and have no row; the table ``ids`` holds those that have one."""
        if not self._entity.pending:
            return
        execute(connection, f"CREATE OR REPLACE TABLE pending (id {SQL_TYPES[self._entity.id_type]})")
        for file in self._entity.pending:
            with self._problems.collect_errors():
                for table in self._checked_pending_parts(file):
                    _insert(connection, table, "INSERT INTO pending SELECT id FROM part")
        for problem, ids in (
            ("is pending, but has a row", "SELECT id FROM pending SEMI JOIN ids USING (id)"),
            ("is pending twice", "SELECT id FROM pending GROUP BY id HAVING count(*) > 1"),
        ):
            for (text,) in execute(connection, f"{ids} ORDER BY id LIMIT {MAX_LISTED + 1}"):
                self._problems.add(f"{self._pending_where}: the id '{text}' {problem}")

    def _checked_pending_parts(self, file: DataFile) -> Iterator[pa.Table]:
        """Yield the parts of a file of pending IDs after checking them."""
        columns = {field.name: field.type for field in pending_schema(self._entity.id_type)}
        if self._problems.check_columns(self._files, file, columns):
            return
        for index in range(len(file.row_groups)):
            where, first = f"{self._files.uri(file)}, row group {index}", 0
            for table in self._files.iter_parts(file, index, list(columns), self._part_rows):
                if not self._count_nulls(table, ("id", "count"), where, first):
                    count_N = table.column("count").to_numpy()
                    template = f"{where}, row {{}}: the count is {{}}; expected at least 1"
                    self._problems.add_values(count_N < 1, count_N, template, first)
                first += table.num_rows
                yield table

    def _checked_parts(self, file: DataFile) -> Iterator[pa.Table]:
        """Yield the parts of a file of the vocabulary after checking them."""
        if self._problems.check_columns(self._files, file, self._columns):
            return
        for index in range(len(file.row_groups)):
            where, first = f"{self._files.uri(file)}, row group {index}", 0
            for table in self._files.iter_parts(file, index, list(self._columns), self._part_rows):
                self._check_part(table, where, first)
                first += table.num_rows
                self._next_row += table.num_rows
                yield table

    def _check_part(self, table: pa.Table, where: str, first: int) -> None:
        """Check rows of a row group, which begin at its row ``first``: they must be the next rows of the vocabulary."""
        if self._count_nulls(table, [name for name in self._columns if name in _NEVER_NULL], where, first):
            return
        row_N, count_N = table.column("row").to_numpy(), table.column("count").to_numpy()
        expected = f"expected 0, 1, 2 … through all files, here from {self._next_row - first} on"
        expected_N = np.arange(self._next_row, self._next_row + len(row_N))
        template = f"{where}, row {{}}: column 'row' is {{}}; {expected}"
        if self._problems.add_values(row_N != expected_N, row_N, template, first):
            return
        self._check_ids(table, row_N, where, first)
        if self._entity.has_last_seen:
            index_N = table.column("lineage_index").to_numpy()
            is_wrong_N = (index_N < 0) | (index_N > self._lineage_length)
            template = f"{where}, row {{}}: column 'lineage_index' is {{}}; expected 0 to {self._lineage_length}"
            self._problems.add_values(is_wrong_N, index_N, template, first)
        self._check_counts(row_N, count_N, where, first)

    def _check_ids(self, table: pa.Table, row_N: IntArray, where: str, first: int) -> None:
        """Check that exactly the vacant rows have no ID, and that none is empty."""
        ids = table.column("id")
        is_vacant_N, is_null_N = np.isin(row_N, self._vacant_rows), pc.is_null(ids).to_numpy()
        self._problems.add_values(is_null_N & ~is_vacant_N, row_N, f"{where}, row {{}}: row {{}} has no id", first)
        template = f"{where}, row {{}}: row {{}} is vacant, but has an id"
        self._problems.add_values(~is_null_N & is_vacant_N, row_N, template, first)
        if self._entity.id_type == "string":
            is_empty_N = pc.fill_null(pc.equal(ids, ""), False).to_numpy()
            self._problems.add_values(is_empty_N, row_N, f"{where}, row {{}}: row {{}} has an empty id", first)

    def _check_counts(self, row_N: IntArray, count_N: IntArray, where: str, first: int) -> None:
        if self._count_R is None or not len(row_N) or row_N[-1] >= len(self._count_R):
            return
        expected_N = np.asarray(self._count_R[row_N[0] : row_N[-1] + 1])
        is_wrong_N = count_N != expected_N
        if is_wrong_N.any():
            actual = expected_N[int(np.argmax(is_wrong_N))]
            template = f"{where}, row {{}}: the count is {{}}, but train has {actual:,} interactions of positive weight"
            self._problems.add_values(is_wrong_N, count_N, template, first)

    def _count_nulls(self, table: pa.Table, columns: Iterable[str], where: str, first: int) -> int:
        return sum(self._problems.check_no_nulls(table.column(name), name, where, first) for name in columns)


def _expected_columns(entity: Entity) -> dict[str, pa.DataType]:
    columns = {"row": pa.int64(), "id": pa.int64() if entity.id_type == "int64" else pa.string(), "count": pa.int64()}
    if entity.has_names:
        columns["name"] = pa.string()
    if entity.has_warm:
        columns["warm"] = pa.bool_()
    if entity.has_last_seen:
        columns |= {"last_seen": pa.int64(), "lineage_index": pa.int64()}
    return columns


def _insert(connection: duckdb.DuckDBPyConnection, table: pa.Table, statement: str) -> None:
    """Execute ``statement``, which selects from ``part``, with ``table`` as that."""
    connection.register("part", table)
    execute(connection, statement)
    connection.unregister("part")
