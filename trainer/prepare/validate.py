# ruff: noqa: S608  (what is put into SQL is the name of a type of this program)
"""Validating a prepared data set, one of ``crossfade prepare`` or one made elsewhere: everything is read once.

    checked = check(Folder("s3://music/plays"), query=None, item=None, memory_bytes=None, progress=progress)
    checked.problems.listed               # what is wrong and where; if nothing is, there is a manifest now

Memory holds a million rows at a time, however large row groups are. What is kept of all rows, counts and ids, lies in
temporary files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kvstore.arrays import BoolArray, IntArray
from kvstore.errors import InputError
from kvstore.io.folder import Folder
from kvstore.io.storage_errors import translate_storage_errors
from trainer.data.manifest import (
    FILE_NAME,
    JOURNAL,
    PENDING,
    TIMESTAMP,
    VOCABULARY,
    WEIGHT,
    DataFile,
    DatasetManifest,
    Entity,
    read_manifest,
)
from trainer.data.parquet import ParquetFiles
from trainer.data.reporter import ProgressReporter
from trainer.prepare.admission import pending_schema
from trainer.prepare.database import execute, working_database
from trainer.prepare.infer_manifest import infer_manifest
from trainer.prepare.part_writer import GROUP_ROWS_MAX
from trainer.prepare.problems import LISTED, Problems
from trainer.prepare.validate_features import FeatureCheck

_LARGE_GROUP_ROWS = 8 * GROUP_ROWS_MAX
_PART_ROWS = 1 << 20
_FEW_GROUPS = 8
_SQL_TYPES = {"int64": "BIGINT", "string": "VARCHAR"}

Counts = dict[str, IntArray]


@dataclass(frozen=True)
class ValidationReport:
    """What was found: ``problems``, and ``notes`` on what is allowed and could be better.

    ``manifest`` describes the data, if that much could be found out; ``written`` says that it is new.
    """

    manifest: DatasetManifest | None
    problems: Problems
    notes: list[str]
    manifest_written: bool


def validate(
    folder: Folder, query: str | None, item: str | None, memory_bytes: int | None, progress: ProgressReporter
) -> ValidationReport:
    """Validate the data set in ``folder``; where it has no manifest and no problem, write one.

    ``query`` and ``item`` name the entities of data without a manifest, by default the first columns of train.

    Raises:
        UnreachableError: storage does not answer any more.
        InputError: it cannot be reached or may not be read, or its manifest is of other entities than ``query`` and
            ``item``.
    """
    problems = Problems()
    with translate_storage_errors(folder.uri, unreachable=InputError):
        is_new = FILE_NAME not in folder.names()
    try:
        manifest = infer_manifest(folder, query, item, progress) if is_new else read_manifest(folder)
    except InputError as error:
        problems.add(str(error))
        return ValidationReport(None, problems, [], manifest_written=False)
    for option, asked, found in (("--query", query, manifest.query), ("--item", item, manifest.item)):
        if asked not in (None, found):
            raise InputError(f"{option} {asked}: the manifest in {folder.uri} says '{found}'; leave it out")
    with tempfile.TemporaryDirectory(prefix="crossfade-check-") as work:
        splits = _SplitCheck(folder, manifest, problems, Path(work))
        splits.run(progress)
        counts = splits.counts if splits.train_is_whole else {}
        for entity, features in manifest.features.items():
            for name in features:
                counts_N = counts.get(entity)
                checked = FeatureCheck(folder, manifest, problems, entity, name, Path(work), counts_N, _PART_ROWS)
                counts |= checked.run(progress)
        for name in manifest.entities:
            _VocabularyCheck(folder, manifest, problems, name, counts.get(name)).run(Path(work), memory_bytes, progress)
    notes = [*_stray_files(folder, manifest, problems), *splits.notes()]
    manifest_written = is_new and not problems.count
    if manifest_written:
        with translate_storage_errors(folder.uri):
            manifest.write(folder)
    return ValidationReport(manifest, problems, notes, manifest_written)


def _stray_files(folder: Folder, manifest: DatasetManifest, problems: Problems) -> list[str]:
    if folder.exists(JOURNAL):
        problems.add(f"{folder.uri}/{JOURNAL}: a 'crossfade forget' broke off; run it again to delete what it left")
        return []
    listed = {file.path for file in manifest.files()}
    strays = [path for path in sorted(folder.sizes()) if path.endswith(".parquet") and path not in listed]
    return [f"{len(strays)} file(s) that the manifest does not list, such as {strays[0]}"] if strays else []


class _SplitCheck:
    """The check of the shards. ``counts`` are the interactions of train of each row of each entity."""

    def __init__(self, folder: Folder, manifest: DatasetManifest, problems: Problems, work: Path) -> None:
        self._uri = folder.uri
        self._files = ParquetFiles(folder)
        self._manifest = manifest
        self._problems = problems
        self.counts: Counts = {
            name: np.memmap(work / f"{number}.counts", mode="w+", dtype=np.int64, shape=(entity.rows,))
            for number, (name, entity) in enumerate(manifest.entities.items())
            if name in (manifest.query, manifest.item)
        }
        self.train_is_whole = False
        self._forgotten = {name: np.array(entity.vacant_rows, np.int64) for name, entity in manifest.entities.items()}
        self._columns = {manifest.query: pa.int64(), manifest.item: pa.int64(), WEIGHT: pa.float32()}
        if manifest.has_timestamp:
            self._columns[TIMESTAMP] = pa.int64()
        self._groups_sorted, self._groups_mixed = 0, 0

    def run(self, progress: ProgressReporter) -> None:
        """Read all splits."""
        if "train" not in self._manifest.splits or not self._manifest.splits["train"].rows:
            self._problems.add(f"{self._uri}: there is no interaction in train; expected one at least")
        for split, described in self._manifest.splits.items():
            before = self._problems.count
            progress.phase(f"check {split}", described.rows, "row")
            for file in described.files:
                with self._problems.catching():
                    self._check_file(split, file, progress)
            if split == "train":
                self.train_is_whole = self._problems.count == before

    def _check_file(self, split: str, file: DataFile, progress: ProgressReporter) -> None:
        if self._problems.of_columns(self._files, file, self._columns):
            return
        for index in range(len(file.row_groups)):
            where, first = f"{self._files.uri(file)}, row group {index}", 0
            for table in self._files.iter_parts(file, index, list(self._columns), _PART_ROWS):
                self._check_part(split, table, where, first)
                first += table.num_rows
                progress.advance(table.num_rows)

    def _check_part(self, split: str, table: pa.Table, where: str, first: int) -> None:
        """Check rows of a row group, from row ``first`` of it on."""
        if sum(self._problems.of_nulls(table.column(name), name, where, first) for name in self._columns):
            return
        weight_N = table.column(WEIGHT).to_numpy()
        said = f"{where}, row {{}}: the weight is {{}}; expected a finite one"
        self._problems.of_values(~np.isfinite(weight_N), weight_N, said, first)
        for name in (self._manifest.query, self._manifest.item):
            row_N = table.column(name).to_numpy()
            inside_N = self._check_rows(name, row_N, where, first)
            if split == "train":
                np.add.at(self.counts[name], row_N[inside_N & (weight_N > 0)], 1)
        if split == "train":
            self._note_order(table.column(self._manifest.query).to_numpy())

    def _check_rows(self, name: str, row_N: IntArray, where: str, first: int) -> BoolArray:
        """Which rows of an entity are within its vocabulary; the others are problems, and so are forgotten ones."""
        rows = self._manifest.entities[name].rows
        inside_N: BoolArray = (row_N >= 0) & (row_N < rows)
        said = f"{where}, row {{}}: column '{name}' is {{}}, but the vocabulary has rows 0 to {rows - 1}"
        self._problems.of_values(~inside_N, row_N, said, first)
        said = f"{where}, row {{}}: column '{name}' is {{}}, a row that was forgotten; its interactions must go"
        self._problems.of_values(np.isin(row_N, self._forgotten[name]), row_N, said, first)
        return inside_N

    def _note_order(self, row_N: IntArray) -> None:
        if len(row_N) and row_N[0] != row_N[-1]:
            if (row_N[1:] >= row_N[:-1]).all():
                self._groups_sorted += 1
            else:
                self._groups_mixed += 1

    def notes(self) -> list[str]:
        """What could be better about train."""
        notes = []
        train = self._manifest.splits.get("train")
        groups = [rows for file in train.files for rows in file.row_groups if rows] if train else []
        if len(groups) < _FEW_GROUPS and sum(groups) > GROUP_ROWS_MAX:
            notes.append(f"train has {len(groups)} row group(s), which no more workers share; 64 or more are better")
        if max(groups, default=0) > _LARGE_GROUP_ROWS:
            notes.append(f"train has a row group of {max(groups):,} rows, read at once; {GROUP_ROWS_MAX:,} are enough")
        if self._groups_sorted > self._groups_mixed:
            notes.append(f"train is sorted by {self._manifest.query}; learning goes better on rows in random order")
        return notes


class _VocabularyCheck:
    """The check of one vocabulary; ``counts_N`` are the counts that it should have, None if they are not known."""

    def __init__(
        self, folder: Folder, manifest: DatasetManifest, problems: Problems, name: str, counts_N: IntArray | None
    ) -> None:
        self._where = f"{folder.uri}/{VOCABULARY}/{name}"
        self._files = ParquetFiles(folder)
        self._name = name
        self._entity: Entity = manifest.entities[name]
        self._problems = problems
        self._counts_N = counts_N
        self._forgotten = np.array(self._entity.vacant_rows, np.int64)
        id_type = pa.int64() if self._entity.id_type == "int64" else pa.string()
        self._columns = {"row": pa.int64(), "id": id_type, "count": pa.int64()}
        if self._entity.has_names:
            self._columns["name"] = pa.string()
        if self._entity.has_warm:
            self._columns["met"] = pa.bool_()
        if self._entity.has_last_seen:
            self._columns |= {"last_seen": pa.int64(), "since": pa.int64()}
        self._generations = len(manifest.lineage)
        self._pending_where = f"{folder.uri}/{PENDING}/{name}"
        self._next_row = 0

    def run(self, work: Path, memory_bytes: int | None, progress: ProgressReporter) -> None:
        """Read all of it."""
        folder = work / "ids"
        folder.mkdir(exist_ok=True)
        before = self._problems.count
        progress.phase(f"check {self._name}", self._entity.rows, "row")
        with working_database(folder, memory_bytes, None) as connection:
            execute(connection, f"CREATE OR REPLACE TABLE ids (row BIGINT, id {_SQL_TYPES[self._entity.id_type]})")
            for file in self._entity.files:
                with self._problems.catching():
                    for table in self._groups(file):
                        connection.register("piece", table)
                        execute(connection, "INSERT INTO ids SELECT row, id FROM piece")
                        connection.unregister("piece")
                        progress.advance(table.num_rows)
            self._check_pending(connection)
            twins = execute(
                connection,
                "SELECT id, min(row), max(row), count(*) FROM ids WHERE id IS NOT NULL GROUP BY id HAVING count(*) > 1 "
                f"ORDER BY 2 LIMIT {LISTED + 1}",
            )
        for text, one, other, times in twins:
            self._problems.add(f"{self._where}: the id '{text}' has {times} rows, {one} and {other}; expected one")
        if self._problems.count == before and self._next_row != self._entity.rows:
            self._problems.add(
                f"{self._where}: has {self._next_row:,} rows, but the manifest says {self._entity.rows:,}"
            )

    def _check_pending(self, connection: duckdb.DuckDBPyConnection) -> None:
        """See that ids that wait for a row are there once, and have none; the table ``ids`` has those that do."""
        if not self._entity.pending:
            return
        columns = {field.name: field.type for field in pending_schema(self._entity.id_type)}
        execute(connection, f"CREATE OR REPLACE TABLE pending (id {_SQL_TYPES[self._entity.id_type]})")
        for file in self._entity.pending:
            with self._problems.catching():
                if self._problems.of_columns(self._files, file, columns):
                    continue
                for index in range(len(file.row_groups)):
                    where, first = f"{self._files.uri(file)}, row group {index}", 0
                    for table in self._files.iter_parts(file, index, list(columns), _PART_ROWS):
                        if not sum(self._problems.of_nulls(table.column(n), n, where, first) for n in ("id", "count")):
                            count_N = table.column("count").to_numpy()
                            said = f"{where}, row {{}}: the count is {{}}; expected 1 at least"
                            self._problems.of_values(count_N < 1, count_N, said, first)
                        connection.register("piece", table)
                        execute(connection, "INSERT INTO pending SELECT id FROM piece")
                        connection.unregister("piece")
                        first += table.num_rows
        for said, ids in (
            ("has a row, but waits for one", "SELECT id FROM pending SEMI JOIN ids USING (id)"),
            ("waits for a row twice", "SELECT id FROM pending GROUP BY id HAVING count(*) > 1"),
        ):
            for (text,) in execute(connection, f"{ids} ORDER BY id LIMIT {LISTED + 1}"):
                self._problems.add(f"{self._pending_where}: the id '{text}' {said}")

    def _groups(self, file: DataFile) -> Iterator[pa.Table]:
        """The row groups of a file, checked."""
        if self._problems.of_columns(self._files, file, self._columns):
            return
        for index in range(len(file.row_groups)):
            where, first = f"{self._files.uri(file)}, row group {index}", 0
            for table in self._files.iter_parts(file, index, list(self._columns), _PART_ROWS):
                self._check_part(table, where, first)
                first += table.num_rows
                self._next_row += table.num_rows
                yield table

    def _check_part(self, table: pa.Table, where: str, first: int) -> None:
        """See that rows of a row group, from row ``first`` of it on, are the next ones, and what belongs to them."""
        never_null = [column for column in self._columns if column in ("row", "count", "met", "since")]
        if sum(self._problems.of_nulls(table.column(name), name, where, first) for name in never_null):
            return
        row_N, count_N = table.column("row").to_numpy(), table.column("count").to_numpy()
        expected = f"expected 0, 1, 2 … through all files, here from {self._next_row - first} on"
        expected_N = np.arange(self._next_row, self._next_row + len(row_N))
        said = f"{where}, row {{}}: column 'row' is {{}}; {expected}"
        if self._problems.of_values(row_N != expected_N, row_N, said, first):
            return
        forgotten_N = np.isin(row_N, self._forgotten)
        ids = table.column("id")
        nameless_N = pc.is_null(ids).to_numpy()
        self._problems.of_values(nameless_N & ~forgotten_N, row_N, f"{where}, row {{}}: row {{}} has no id", first)
        said = f"{where}, row {{}}: row {{}} was forgotten, but has an id"
        self._problems.of_values(~nameless_N & forgotten_N, row_N, said, first)
        if self._entity.id_type == "string":
            empty_N = pc.fill_null(pc.equal(ids, ""), False).to_numpy()
            self._problems.of_values(empty_N, row_N, f"{where}, row {{}}: row {{}} has an empty id", first)
        if self._entity.has_last_seen:
            since_N = table.column("since").to_numpy()
            said = f"{where}, row {{}}: column 'since' is {{}}, but the lineage has 0 to {self._generations}"
            self._problems.of_values((since_N < 0) | (since_N > self._generations), since_N, said, first)
        self._check_counts(row_N, count_N, where, first)

    def _check_counts(self, row_N: IntArray, count_N: IntArray, where: str, first: int) -> None:
        if self._counts_N is None or not len(row_N) or row_N[-1] >= len(self._counts_N):
            return
        expected_N = np.asarray(self._counts_N[row_N[0] : row_N[-1] + 1])
        wrong_N = count_N != expected_N
        if wrong_N.any():
            real = expected_N[int(np.argmax(wrong_N))]
            said = f"{where}, row {{}}: the count is {{}}, but train has {real:,} interactions of weight above 0"
            self._problems.of_values(wrong_N, count_N, said, first)
