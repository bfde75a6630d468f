# ruff: noqa: S608  (what is put into SQL is a name of the manifest, quoted, or a number or an expression of this program)
"""Validate a prepared dataset, from ``crossfade prepare`` or another tool: everything is read once.

    report = validate(ValidateOptions.of(data="s3://music/plays"), progress)
    report.problems.listed                # each with its file, row group and row

Files are checked in a working database: a problem is an aggregate over the rows that break a rule. One row group is in
memory at a time. What must be kept of all rows, counts and IDs, is in tables of the database, which spills to disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa

from crossfade.base.errors import InputError, as_typed, command, escape_unprintable, format_names
from crossfade.base.io.folder import Folder
from crossfade.base.io.temporary_folder import temporary_folder
from crossfade.trainer.data.column_names import NO_ROW, TIMESTAMP, WEIGHT
from crossfade.trainer.data.features import ROW, SCHEMA, VALUE, iter_content, iter_pairs
from crossfade.trainer.data.manifest import FEATURES, PENDING, VOCABULARY, DataFile, DatasetManifest, read_manifest
from crossfade.trainer.data.parquet import ParquetFiles
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.prepare.admission import pending_schema
from crossfade.trainer.prepare.database import execute, execute_on, fetch_one, identifier, working_database
from crossfade.trainer.prepare.extend import SQL_TYPES
from crossfade.trainer.prepare.options import ValidateOptions, memory_bytes
from crossfade.trainer.prepare.vocabulary_tables import vocabulary_schema

MAX_LISTED = 20


class Problems:
    """Counts problems and lists the first ``MAX_LISTED``."""

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


@dataclass(frozen=True)
class Rule:
    """Rows that break it meet the SQL ``violation``; ``problem`` has a place for the SQL ``value`` of the first one."""

    violation: str
    value: str
    problem: str


class DatasetChecks:
    """Checks the parts of a dataset in turn: splits and features give the counts that vocabularies should have."""

    def __init__(
        self,
        folder: Folder,
        manifest: DatasetManifest,
        problems: Problems,
        connection: duckdb.DuckDBPyConnection,
        progress: ProgressReporter,
    ) -> None:
        self._folder, self._manifest, self._problems = folder, manifest, problems
        self._connection, self._progress = connection, progress
        self._files = ParquetFiles(folder)
        self._counted: dict[str, str] = {}
        """The table (row, count) of the interactions of positive weight in train, by entity, where they are known."""
        connection.execute("CREATE TABLE vacant (entity VARCHAR, row BIGINT)")
        for name, entity in manifest.entities.items():
            rows = pa.table({"row": pa.array(entity.vacant_rows, pa.int64())})
            execute_on(connection, rows, f"INSERT INTO vacant SELECT '{name}', row FROM part")

    def splits(self) -> None:
        """Check all splits, and the replay, and count the interactions of train."""
        manifest, problems = self._manifest, self._problems
        sides = [manifest.query, manifest.item]
        columns = [*sides, WEIGHT, *([TIMESTAMP] if manifest.has_timestamp else []), *manifest.context]
        types = {name: pa.float32() if name == WEIGHT else pa.int64() for name in columns}
        schema = pa.schema([pa.field(name, data_type, nullable=False) for name, data_type in types.items()])
        rules = [Rule(f"NOT isfinite({WEIGHT})", WEIGHT, "the weight is {}; expected a finite one")]
        store = []
        for number, name in enumerate([*sides, *manifest.context]):
            rules += self._row_rules(name, may_be_none=name in manifest.context)
            self._connection.execute(f"CREATE TABLE seen_{number} (row BIGINT, count BIGINT)")
            counted = f"SELECT {identifier(name)}, count(*) FROM part WHERE {WEIGHT} > 0 GROUP BY 1"
            store.append(f"INSERT INTO seen_{number} {counted}")
        if "train" not in manifest.splits or not manifest.splits["train"].rows:
            problems.add(f"{self._folder.uri}: train has no interaction; expected at least one")
        for split, described in manifest.interactions().items():
            before = problems.count
            self._progress.phase(f"check {split}", described.rows, "row")
            for file in described.files:
                self._check(file, schema, rules, store if split == "train" else ())
            if split == "train" and problems.count == before:
                self._counted = {name: f"seen_{n}" for n, name in enumerate([*sides, *manifest.context])}

    def feature(self, entity: str, name: str) -> None:
        """Check that the pairs of the feature ``name`` of ``entity`` can be read, and count the events of values."""
        before = self._problems.count
        self._connection.execute(f"CREATE OR REPLACE TABLE pairs ({ROW} BIGINT, {VALUE} BIGINT)")
        self._progress.phase(f"check {name}", self._manifest.features[entity][name].pairs, "row")
        with self._problems.collect_errors():
            for _, row_N, value_N in iter_pairs(self._folder, self._manifest, entity, name):
                execute_on(self._connection, pa.table([row_N, value_N], schema=SCHEMA), "INSERT INTO pairs FROM part")
                self._progress.advance(len(row_N))
        for owner, column in ((entity, ROW), (name, VALUE)):
            vacant = f"SELECT min({column}) FROM pairs WHERE {self._is_vacant(owner, column)}"
            if (row := fetch_one(self._connection, vacant)[0]) is not None:
                self._problems.add(
                    f"{self._folder.uri}/{FEATURES}/{entity}/{name}: has pairs of row {row}, a vacant row of {owner}; "
                    "delete them"
                )
        if entity in self._counted and self._problems.count == before:
            self._counted[name] = f"seen_{list(self._manifest.entities).index(name)}_values"
            self._connection.execute(
                f"CREATE TABLE {self._counted[name]} AS SELECT {VALUE} AS row, sum(count)::BIGINT AS count FROM pairs "
                f"JOIN {self._counted[entity]} USING (row) GROUP BY 1"
            )

    def content(self, entity: str, name: str) -> None:
        """Check that the content column ``name`` of ``entity`` can be read."""
        with self._problems.collect_errors():
            for _ in iter_content(self._folder, self._manifest, entity, name):
                pass

    def vocabulary(self, name: str) -> None:
        """Check the rows, IDs, and counts of the entity ``name``."""
        entity, before = self._manifest.entities[name], self._problems.count
        where = f"{self._folder.uri}/{VOCABULARY}/{name}"
        optional = entity.has_earlier_count, entity.has_last_seen
        schema = vocabulary_schema(entity.id_type, entity.has_names, True, *optional)
        id_type = SQL_TYPES[entity.id_type]
        self._connection.execute(f"CREATE OR REPLACE TABLE ids (row BIGINT, id {id_type}, count BIGINT)")
        self._progress.phase(f"check {name}", entity.rows, "row")
        first = 0
        for file in entity.files:
            rules = self._vocabulary_rules(name, first)
            self._check(file, schema, rules, ["INSERT INTO ids SELECT row, id, count FROM part"])
            first += file.rows
        self._check_pending(name)
        for text, first_row, last, times in execute(
            self._connection,
            "SELECT id, min(row), max(row), count(*) FROM ids WHERE id IS NOT NULL GROUP BY id HAVING count(*) > 1 "
            f"ORDER BY 2 LIMIT {MAX_LISTED + 1}",
        ):
            self._problems.add(f"{where}: the id '{text}' has {times} rows, {first_row} and {last}; expected one")
        if name in self._counted and self._problems.count == before:
            self._check_counts(name, where)

    def _vocabulary_rules(self, name: str, first: int) -> list[Rule]:
        entity = self._manifest.entities[name]
        expected = f"expected 0, 1, 2 … through all files, here from {first} on"
        is_vacant = self._is_vacant(name, "row")
        rules = [
            Rule(f"row <> {first} + place", "row", f"column 'row' is {{}}; {expected}"),
            Rule(f"id IS NULL AND NOT {is_vacant}", "row", "row {} has no id"),
            Rule(f"id IS NOT NULL AND {is_vacant}", "row", "row {} is vacant, but has an id"),
        ]
        if entity.id_type == "string":
            rules.append(Rule("id = ''", "row", "row {} has an empty id"))
        if entity.has_last_seen:
            index, last = "lineage_index", len(self._manifest.lineage)
            outside = f"{index} NOT BETWEEN 0 AND {last}"
            rules.append(Rule(outside, index, f"column '{index}' is {{}}; expected 0 to {last}"))
        return rules

    def _check_counts(self, name: str, where: str) -> None:
        """Check that the table ``ids`` has the counts that were found in train."""
        wrong, row, count, found = fetch_one(
            self._connection,
            "SELECT count(*), min(row), arg_min(count, row), arg_min(found, row) FROM (SELECT row, i.count, "
            f"coalesce(s.count, 0) AS found FROM ids i LEFT JOIN (SELECT row, sum(count) AS count FROM "
            f"{self._counted[name]} GROUP BY row) s USING (row)) WHERE count <> found",
        )
        if isinstance(wrong, int) and wrong:
            self._problems.add(
                f"{where}, row {row}: the count is {count}, but train has {found:,} interactions of positive weight"
                f"{_others(wrong, 'vocabulary')}"
            )

    def _check_pending(self, name: str) -> None:
        """Check that pending IDs occur once and have no row; the table ``ids`` holds those that have one."""
        entity = self._manifest.entities[name]
        self._connection.execute(f"CREATE OR REPLACE TABLE pending (id {SQL_TYPES[entity.id_type]})")
        rules = [Rule("count < 1", "count", "the count is {}; expected at least 1")]
        for file in entity.pending:
            self._check(file, pending_schema(entity.id_type), rules, ["INSERT INTO pending SELECT id FROM part"])
        for problem, ids in (
            ("is pending, but has a row", "SELECT id FROM pending SEMI JOIN ids USING (id)"),
            ("is pending twice", "SELECT id FROM pending GROUP BY id HAVING count(*) > 1"),
        ):
            for (text,) in execute(self._connection, f"{ids} ORDER BY id LIMIT {MAX_LISTED + 1}"):
                self._problems.add(f"{self._folder.uri}/{PENDING}/{name}: the id '{text}' {problem}")

    def _row_rules(self, name: str, *, may_be_none: bool) -> list[Rule]:
        """Return the rules that the column of the entity ``name`` holds its rows, or ``NO_ROW``, and none is vacant."""
        last, value = self._manifest.entities[name].rows - 1, identifier(name)
        allowed, found = f" AND {value} <> {NO_ROW}" if may_be_none else "", f"column '{name}' is {{}}"
        outside = f"{value} NOT BETWEEN 0 AND {last}{allowed}"
        return [
            Rule(outside, value, f"{found}, but the vocabulary has rows 0 to {last}"),
            Rule(self._is_vacant(name, value), value, f"{found}, a vacant row; delete its interactions"),
        ]

    def _is_vacant(self, name: str, value: str) -> str:
        vacant = self._manifest.entities[name].vacant_rows
        return f"{value} IN (SELECT row FROM vacant WHERE entity = '{name}')" if vacant else "false"

    def _check(self, file: DataFile, schema: pa.Schema, rules: Sequence[Rule], store: Sequence[str]) -> None:
        """Check that ``file`` has the columns of ``schema`` and its rows keep the ``rules``; then ``store`` each part.

        ``part`` is the part, and ``place`` the place of a row in the file.
        """
        nulls = [
            Rule(f"{identifier(field.name)} IS NULL", "NULL", f"column '{field.name}' is null; expected none")
            for field in schema
            if not field.nullable
        ]
        with self._problems.collect_errors():
            if not self._has_columns(file, schema):
                return
            place = 0
            for index in range(len(file.row_groups)):
                if not file.row_groups[index]:
                    continue
                where = f"{self._files.uri(file)}, row group {index}"
                table = self._files.read(file, index, schema.names)
                place_N = np.arange(place, place + table.num_rows)
                self._connection.register("part", table.append_column("place", pa.array(place_N)))
                if not self._violations(nulls, where, place):
                    self._violations(rules, where, place)
                    for statement in store:
                        self._connection.execute(statement)
                place += table.num_rows
                self._progress.advance(table.num_rows)

    def _violations(self, rules: Sequence[Rule], where: str, first: int) -> int:
        """Add a problem for each rule that rows of ``part`` break; return how many there are."""
        broken = 0
        for rule in (rule for rule in rules if rule.violation != "false"):
            bad, place, value = fetch_one(
                self._connection,
                f"SELECT count(*), min(place), arg_min({rule.value}, place) FROM part WHERE {rule.violation}",
            )
            if isinstance(bad, int) and isinstance(place, int):
                problem = rule.problem.format(value)
                self._problems.add(f"{where}, row {place - first}: {problem}{_others(bad, 'row group')}")
                broken += 1
        return broken

    def _has_columns(self, file: DataFile, expected: pa.Schema) -> bool:
        self._files.check_footer(file)
        schema, before = self._files.footer(file).schema.to_arrow_schema(), self._problems.count
        for name, data_type in zip(expected.names, expected.types, strict=True):
            times, where = schema.names.count(name), self._files.uri(file)
            if times != 1:
                columns = "no column" if times == 0 else f"{times} columns"
                self._problems.add(f"{where}: has {columns} '{name}'; its columns are {format_names(schema.names)}")
                continue
            found = schema.field(name).type
            if found != data_type and not (pa.types.is_large_string(found) and data_type == pa.string()):
                self._problems.add(f"{where}: column '{name}' has the type {found}; expected {data_type}: cast it")
        return self._problems.count == before


def _others(count: int, place: str) -> str:
    return f" (and {count - 1:,} more in this {place})" if count > 1 else ""


@dataclass(frozen=True)
class ValidationReport:
    """The result of a validation.

    Attributes:
        manifest: The manifest of the dataset; None if it cannot be read.
        problems: What is wrong.
    """

    manifest: DatasetManifest | None
    problems: Problems


def validate(options: ValidateOptions, progress: ProgressReporter) -> ValidationReport:
    """Validate the dataset.

    Raises:
        InputError: the folder cannot be read.
        StorageUnavailableError: storage stopped answering.
    """
    folder, problems = Folder(options.data), Problems()
    if folder.path is not None and folder.path.is_file():
        how = command("prepare", events=options.data, out="DATA")
        raise InputError(f"{options.data}: is a file; expected the folder of a dataset, as {how} writes it")
    try:
        manifest = read_manifest(folder)
    except InputError as error:
        problems.add(error.worded(as_typed))
        return ValidationReport(None, problems)
    with (
        temporary_folder("validate") as work,
        working_database(work, memory_bytes(options.memory), None) as connection,
    ):
        checks = DatasetChecks(folder, manifest, problems, connection, progress)
        checks.splits()
        for entity, features in manifest.features.items():
            for name in features:
                checks.feature(entity, name)
        for entity, columns in manifest.content.items():
            for name in columns:
                checks.content(entity, name)
        for name in manifest.entities:
            checks.vocabulary(name)
    return ValidationReport(manifest, problems)
