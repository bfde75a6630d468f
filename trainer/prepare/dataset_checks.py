# ruff: noqa: S608  (what is put into SQL is the name of a type of this program)
"""Check the files of a dataset: each check adds to a list of problems, of which the first are kept, the others counted.

    splits = SplitCheck(folder, manifest, problems, work)
    splits.run(progress)                    # columns, nulls, rows within the vocabularies, finite weights
    count_R = splits.counts["track"]        # interactions of train per row
    counts = FeatureCheck(folder, manifest, problems, "track", "artist", work, count_R).run(progress)
    VocabularyCheck(folder, manifest, problems, "track", count_R).run(work, memory, progress)

Shapes: N rows of a part of a row group, R rows of an entity, V rows of a feature's values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crossfade.base.arrays import BoolArray, FloatArray, IntArray
from crossfade.base.errors import InputError, as_typed, escape_unprintable, format_names
from crossfade.base.io.folder import Folder
from crossfade.base.text import counted
from crossfade.trainer.data.column_names import TIMESTAMP, WEIGHT
from crossfade.trainer.data.features import ROW, VALUE
from crossfade.trainer.data.manifest import PENDING, VOCABULARY, DataFile, DatasetManifest, Entity
from crossfade.trainer.data.parquet import GROUP_ROWS_MAX, ParquetFiles
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.prepare.admission import pending_schema
from crossfade.trainer.prepare.database import execute, execute_on, working_database
from crossfade.trainer.prepare.event_context import NO_ROW
from crossfade.trainer.prepare.extend import SQL_TYPES
from crossfade.trainer.prepare.vocabulary_tables import vocabulary_schema

MAX_LISTED = 20
PART_ROWS = 1 << 20
"""Rows that are in memory at a time, at most."""


class Problems:
    """Counts problems and lists the first ``MAX_LISTED``. Each check returns how many it has added."""

    def __init__(self) -> None:
        self.listed: list[str] = []
        self.count = 0

    def add(self, problem: str) -> None:
        """Add one problem."""
        self.count += 1
        if self.count <= MAX_LISTED:
            self.listed.append(escape_unprintable(problem))

    @contextmanager
    def collect_errors(self) -> Iterator[None]:
        """Add the message of an ``InputError`` that ends the block, and continue after the block."""
        try:
            yield
        except InputError as error:
            self.add(error.worded(as_typed).removesuffix("; prepare the data again"))

    def check_columns(self, files: ParquetFiles, file: DataFile, expected: Mapping[str, pa.DataType]) -> int:
        """Check that a file has the ``expected`` columns with their types."""
        files.check_footer(file)
        schema = files.footer(file).schema.to_arrow_schema()
        before = self.count
        for name, data_type in expected.items():
            times = schema.names.count(name)
            if times != 1:
                columns = "no column" if times == 0 else f"{times} columns"
                self.add(f"{files.uri(file)}: has {columns} '{name}'; its columns are {format_names(schema.names)}")
            elif plain_type(schema.field(name).type) != data_type:
                found = schema.field(name).type
                self.add(f"{files.uri(file)}: column '{name}' has the type {found}; expected {data_type}: cast it")
        return self.count - before

    def iter_parts(
        self, files: ParquetFiles, file: DataFile, expected: Mapping[str, pa.DataType]
    ) -> Iterator[tuple[pa.Table, str, int]]:
        """Yield the parts of a file with the ``expected`` columns, each with its row group's name and its first row."""
        if self.check_columns(files, file, expected):
            return
        for index in range(len(file.row_groups)):
            first = 0
            for table in files.iter_parts(file, index, list(expected), PART_ROWS):
                yield table, f"{files.uri(file)}, row group {index}", first
                first += table.num_rows

    def check_no_nulls(self, column: pa.ChunkedArray, name: str, where: str, first: int = 0) -> int:
        """Check that a column, whose rows count from ``first``, has no null."""
        if column.null_count:
            row = first + pc.index(pc.is_null(column), True).as_py()
            self.add(f"{where}, row {row}: column '{name}' is null{_others(column.null_count)}; expected none")
        return int(column.null_count)

    def add_values(self, is_bad_N: BoolArray, value_N: IntArray | FloatArray, template: str, first: int = 0) -> int:
        """Add a problem for the first bad value: ``template`` gets its row, counted from ``first``, and its value."""
        bad = int(is_bad_N.sum())
        if bad:
            index = int(np.argmax(is_bad_N))
            self.add(template.format(first + index, value_N[index]) + _others(bad))
        return bad

    def check_rows(
        self,
        row_N: IntArray,
        entity: Entity,
        place: str,
        endings: tuple[str, str],
        first: int,
        *,
        may_be_none: bool = False,
    ) -> BoolArray:
        """Check that rows are those of ``entity``, or ``NO_ROW`` if they ``may_be_none``, and none is vacant.

        Problems begin with the template ``place``, and end with ``endings``: of rows outside, and of vacant ones.
        Returns which rows are within the entity's: bool (N,).
        """
        exists_N: BoolArray = (row_N >= 0) & (row_N < entity.rows)
        outside, vacant = endings
        template = f"{place}, {outside} has rows 0 to {entity.rows - 1}"
        self.add_values(~exists_N & ~((row_N == NO_ROW) & may_be_none), row_N, template, first)
        self.add_values(np.isin(row_N, np.array(entity.vacant_rows, np.int64)), row_N, f"{place}, {vacant}", first)
        return exists_N


def plain_type(data_type: pa.DataType) -> pa.DataType:
    """Return the type as which columns of ``data_type`` are read: large strings are read as strings."""
    return pa.string() if pa.types.is_large_string(data_type) else data_type


def _others(count: int) -> str:
    return f" (and {count - 1:,} more in this row group)" if count > 1 else ""


_LARGE_GROUP_ROWS = 8 * GROUP_ROWS_MAX
_FEW_GROUPS = 8


class SplitCheck:
    """Checks all splits of a dataset.

    ``counts`` has, by entity, the interactions of positive weight in train per row: int64 (R,), in files in ``work``.
    """

    def __init__(self, folder: Folder, manifest: DatasetManifest, problems: Problems, work: Path) -> None:
        self._uri = folder.uri
        self._files = ParquetFiles(folder)
        self._manifest = manifest
        self._problems = problems
        self.counts: dict[str, IntArray] = {
            name: np.memmap(work / f"{number}.counts", mode="w+", dtype=np.int64, shape=(entity.rows,))
            for number, (name, entity) in enumerate(manifest.entities.items())
            if name in (manifest.query, manifest.item, *manifest.context)
        }
        self.train_is_valid = False
        self._columns = {manifest.query: pa.int64(), manifest.item: pa.int64(), WEIGHT: pa.float32()}
        if manifest.has_timestamp:
            self._columns[TIMESTAMP] = pa.int64()
        self._columns |= dict.fromkeys(manifest.context, pa.int64())
        self._groups_sorted, self._groups_mixed = 0, 0

    def run(self, progress: ProgressReporter) -> None:
        """Read and check all splits, and the replay."""
        if "train" not in self._manifest.splits or not self._manifest.splits["train"].rows:
            self._problems.add(f"{self._uri}: train has no interaction; expected at least one")
        for split, described in self._manifest.interactions().items():
            before = self._problems.count
            progress.phase(f"check {split}", described.rows, "row")
            for file in described.files:
                with self._problems.collect_errors():
                    self._check_file(split, file, progress)
            if split == "train":
                self.train_is_valid = self._problems.count == before

    def notes(self) -> list[str]:
        """Return what could be better about train: few or large row groups, or sorted rows."""
        notes = []
        train = self._manifest.splits.get("train")
        groups = [rows for file in train.files for rows in file.row_groups if rows] if train else []
        if len(groups) < _FEW_GROUPS and sum(groups) > GROUP_ROWS_MAX:
            notes.append(
                f"train has {counted(len(groups), 'row group')}, the most workers that can share it; 64 are better"
            )
        if max(groups, default=0) > _LARGE_GROUP_ROWS:
            notes.append(f"train has a row group of {max(groups):,} rows, read at once; {GROUP_ROWS_MAX:,} are enough")
        if self._groups_sorted > self._groups_mixed:
            notes.append(f"train is sorted by {self._manifest.query}; training works better on rows in random order")
        return notes

    def _check_file(self, split: str, file: DataFile, progress: ProgressReporter) -> None:
        for table, where, first in self._problems.iter_parts(self._files, file, self._columns):
            self._check_part(split, table, where, first)
            progress.advance(table.num_rows)

    def _check_part(self, split: str, table: pa.Table, where: str, first: int) -> None:
        """Check rows of a row group, which begin at its row ``first``."""
        if sum(self._problems.check_no_nulls(table.column(name), name, where, first) for name in self._columns):
            return
        weight_N = table.column(WEIGHT).to_numpy()
        template = f"{where}, row {{}}: the weight is {{}}; expected a finite one"
        self._problems.add_values(~np.isfinite(weight_N), weight_N, template, first)
        for name in self.counts:
            row_N = table.column(name).to_numpy()
            place = f"{where}, row {{}}: column '{name}' is {{}}"
            in_vocabulary_N = self._problems.check_rows(
                row_N,
                self._manifest.entities[name],
                place,
                ("but the vocabulary", "a vacant row; delete its interactions"),
                first,
                may_be_none=name in self._manifest.context,
            )
            if split == "train":
                np.add.at(self.counts[name], row_N[in_vocabulary_N & (weight_N > 0)], 1)
        if split == "train":
            self._count_sorted(table.column(self._manifest.query).to_numpy())

    def _count_sorted(self, row_N: IntArray) -> None:
        if len(row_N) and row_N[0] != row_N[-1]:
            if (row_N[1:] >= row_N[:-1]).all():
                self._groups_sorted += 1
            else:
                self._groups_mixed += 1


@dataclass
class FeatureCheck:
    """Checks the feature ``name`` of ``entity``.

    ``count_R`` are the interactions of positive weight in train per row of ``entity``, None if unknown.
    """

    folder: Folder
    manifest: DatasetManifest
    problems: Problems
    entity: str
    name: str
    work: Path
    count_R: IntArray | None

    def __post_init__(self) -> None:
        entities = self.manifest.entities
        self._files = ParquetFiles(self.folder)
        self._feature = self.manifest.features[self.entity][self.name]
        self._entities = {ROW: (self.entity, entities[self.entity]), VALUE: (self.name, entities[self.name])}
        self._count_V: IntArray = np.memmap(
            self.work / f"{self.name}.counts", mode="w+", dtype=np.int64, shape=(entities[self.name].rows,)
        )
        self._last_pair = (-1, -1)

    def run(self, progress: ProgressReporter) -> dict[str, IntArray]:
        """Read and check all pairs; return the interactions of each value by the feature's name, if they are known."""
        before = self.problems.count
        progress.phase(f"check {self.name}", self._feature.pairs, "row")
        for file in self._feature.files:
            with self.problems.collect_errors():
                self._check_file(file, progress)
        is_known = self.count_R is not None and self.problems.count == before
        return {self.name: self._count_V} if is_known else {}

    def _check_file(self, file: DataFile, progress: ProgressReporter) -> None:
        columns = dict.fromkeys((ROW, VALUE), pa.int64())
        for table, where, first in self.problems.iter_parts(self._files, file, columns):
            if not sum(self.problems.check_no_nulls(table.column(name), name, where, first) for name in columns):
                self._check_pairs(table.column(ROW).to_numpy(), table.column(VALUE).to_numpy(), where, first)
            progress.advance(table.num_rows)

    def _check_pairs(self, row_N: IntArray, value_N: IntArray, where: str, first: int) -> None:
        exists_N = self._check_rows(ROW, row_N, where, first) & self._check_rows(VALUE, value_N, where, first)
        previous_row_N = np.concatenate([[self._last_pair[0]], row_N[:-1]])
        previous_value_N = np.concatenate([[self._last_pair[1]], value_N[:-1]])
        is_unsorted_N = (row_N < previous_row_N) | ((row_N == previous_row_N) & (value_N <= previous_value_N))
        expected = "expected pairs sorted by 'row', then by 'value', each once"
        template = f"{where}, row {{}}: column '{ROW}' is {{}}; {expected}"
        self.problems.add_values(is_unsorted_N, row_N, template, first)
        self._last_pair = int(row_N[-1]), int(value_N[-1])
        if self.count_R is not None:
            np.add.at(self._count_V, value_N[exists_N], self.count_R[row_N[exists_N]])

    def _check_rows(self, column: str, row_N: IntArray, where: str, first: int) -> BoolArray:
        name, entity = self._entities[column]
        place = f"{where}, row {{}}: column '{column}' is {{}}"
        endings = f"but {name}", f"a vacant row of {name}; delete its pairs"
        return self.problems.check_rows(row_N, entity, place, endings, first)


@dataclass
class VocabularyCheck:
    """Checks the vocabulary of the entity ``name``.

    ``count_R`` are the counts that it should have, None if they are unknown.
    """

    folder: Folder
    manifest: DatasetManifest
    problems: Problems
    name: str
    count_R: IntArray | None

    def __post_init__(self) -> None:
        entity = self._entity = self.manifest.entities[self.name]
        self._where = f"{self.folder.uri}/{VOCABULARY}/{self.name}"
        self._files = ParquetFiles(self.folder)
        self._vacant_rows = np.array(entity.vacant_rows, np.int64)
        optional = entity.has_warm, entity.has_last_seen, entity.has_former_count
        schema = vocabulary_schema(entity.id_type, entity.has_names, True, *optional)
        self._columns = {field.name: field.type for field in schema}
        self._never_null = [field.name for field in schema if not field.nullable]
        self._next_row = 0

    def run(self, work: Path, memory_bytes: int | None, progress: ProgressReporter) -> None:
        """Read and check all files, with a database in ``work`` to find IDs that occur twice."""
        folder = work / "ids"
        folder.mkdir(exist_ok=True)
        progress.phase(f"check {self.name}", self._entity.rows, "row")
        with working_database(folder, memory_bytes, None) as connection:
            connection.execute(f"CREATE OR REPLACE TABLE ids (row BIGINT, id {SQL_TYPES[self._entity.id_type]})")
            for file in self._entity.files:
                with self.problems.collect_errors():
                    for table in self._checked_parts(file):
                        execute_on(connection, table, "INSERT INTO ids SELECT row, id FROM part")
                        progress.advance(table.num_rows)
            self._check_pending(connection)
            repeated = execute(
                connection,
                "SELECT id, min(row), max(row), count(*) FROM ids WHERE id IS NOT NULL GROUP BY id HAVING count(*) > 1 "
                f"ORDER BY 2 LIMIT {MAX_LISTED + 1}",
            )
        for text, first, last, times in repeated:
            self.problems.add(f"{self._where}: the id '{text}' has {times} rows, {first} and {last}; expected one")

    def _check_pending(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Check that pending IDs occur once and have no row; the table ``ids`` holds those that have one."""
        if not self._entity.pending:
            return
        connection.execute(f"CREATE OR REPLACE TABLE pending (id {SQL_TYPES[self._entity.id_type]})")
        for file in self._entity.pending:
            with self.problems.collect_errors():
                for table in self._checked_pending_parts(file):
                    execute_on(connection, table, "INSERT INTO pending SELECT id FROM part")
        for problem, ids in (
            ("is pending, but has a row", "SELECT id FROM pending SEMI JOIN ids USING (id)"),
            ("is pending twice", "SELECT id FROM pending GROUP BY id HAVING count(*) > 1"),
        ):
            for (text,) in execute(connection, f"{ids} ORDER BY id LIMIT {MAX_LISTED + 1}"):
                self.problems.add(f"{self.folder.uri}/{PENDING}/{self.name}: the id '{text}' {problem}")

    def _checked_pending_parts(self, file: DataFile) -> Iterator[pa.Table]:
        """Yield the parts of a file of pending IDs after checking them."""
        columns = {field.name: field.type for field in pending_schema(self._entity.id_type)}
        for table, where, first in self.problems.iter_parts(self._files, file, columns):
            if not self._count_nulls(table, ("id", "count"), where, first):
                count_N = table.column("count").to_numpy()
                template = f"{where}, row {{}}: the count is {{}}; expected at least 1"
                self.problems.add_values(count_N < 1, count_N, template, first)
            yield table

    def _checked_parts(self, file: DataFile) -> Iterator[pa.Table]:
        """Yield the parts of a file of the vocabulary after checking them."""
        for table, where, first in self.problems.iter_parts(self._files, file, self._columns):
            self._check_part(table, where, first)
            self._next_row += table.num_rows
            yield table

    def _check_part(self, table: pa.Table, where: str, first: int) -> None:
        """Check rows of a row group, which begin at its row ``first``: they must be the next rows of the vocabulary."""
        if self._count_nulls(table, self._never_null, where, first):
            return
        row_N, count_N = table.column("row").to_numpy(), table.column("count").to_numpy()
        expected = f"expected 0, 1, 2 … through all files, here from {self._next_row - first} on"
        expected_N = np.arange(self._next_row, self._next_row + len(row_N))
        template = f"{where}, row {{}}: column 'row' is {{}}; {expected}"
        if self.problems.add_values(row_N != expected_N, row_N, template, first):
            return
        self._check_ids(table, row_N, where, first)
        if self._entity.has_last_seen:
            index_N = table.column("lineage_index").to_numpy()
            is_wrong_N = (index_N < 0) | (index_N > len(self.manifest.lineage))
            template = f"{where}, row {{}}: column 'lineage_index' is {{}}; expected 0 to {len(self.manifest.lineage)}"
            self.problems.add_values(is_wrong_N, index_N, template, first)
        self._check_counts(row_N, count_N, where, first)

    def _check_ids(self, table: pa.Table, row_N: IntArray, where: str, first: int) -> None:
        """Check that exactly the vacant rows have no ID, and that none is empty."""
        ids = table.column("id")
        is_vacant_N, is_null_N = np.isin(row_N, self._vacant_rows), pc.is_null(ids).to_numpy()
        self.problems.add_values(is_null_N & ~is_vacant_N, row_N, f"{where}, row {{}}: row {{}} has no id", first)
        template = f"{where}, row {{}}: row {{}} is vacant, but has an id"
        self.problems.add_values(~is_null_N & is_vacant_N, row_N, template, first)
        if self._entity.id_type == "string":
            is_empty_N = pc.fill_null(pc.equal(ids, ""), False).to_numpy()
            self.problems.add_values(is_empty_N, row_N, f"{where}, row {{}}: row {{}} has an empty id", first)

    def _check_counts(self, row_N: IntArray, count_N: IntArray, where: str, first: int) -> None:
        if self.count_R is None or not len(row_N) or row_N[-1] >= len(self.count_R):
            return
        expected_N = np.asarray(self.count_R[row_N[0] : row_N[-1] + 1])
        is_wrong_N = count_N != expected_N
        if is_wrong_N.any():
            actual = expected_N[int(np.argmax(is_wrong_N))]
            template = f"{where}, row {{}}: the count is {{}}, but train has {actual:,} interactions of positive weight"
            self.problems.add_values(is_wrong_N, count_N, template, first)

    def _count_nulls(self, table: pa.Table, columns: Iterable[str], where: str, first: int) -> int:
        return sum(self.problems.check_no_nulls(table.column(name), name, where, first) for name in columns)
