# ruff: noqa: S608  (what is put into SQL is quoted by `identifier` and `literal`, or is a number of this program)
"""Columns of an entity from separate files: features, such as the artist of a track, and content, such as its tempo.

    types = read_columns(connection, plans, work, "auto", base, progress)   # the tables given_KEY (id as text, value)
    report = join_column(connection, plan, types["artist"], base)           # the table joined_KEY (row, value)
    ...                                 # of a feature its vocabulary, of the query that ``counted_values_sql`` returns
    feature = write_feature(connection, plan, staged)
    content = write_content(connection, plan, base, staged)

A value of a feature is an ID of the feature's own entity, and an ID of the file may have several: rows, or a list. A
value of content is a number, or a list of as many numbers in every row: Arrow lists, or ``[0.1, 0.2]`` in text. Nulls,
empty text, and NaN as a single number are missing values. With a base dataset (``extend.py``), IDs that the files have
no value for keep the values that they have there, and content its scaling, which models were trained with.

Shapes: N values of a batch, D numbers of a value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import duckdb
import numpy as np
import pyarrow as pa

from crossfade.base.arrays import FloatArray
from crossfade.base.errors import InputError, Option, OptionError
from crossfade.trainer.data.column_names import MAX_CONTENT_WIDTH
from crossfade.trainer.data.features import (
    ROW,
    SCHEMA,
    VALUE,
    content_group_rows,
    content_schema,
    content_values,
    iter_content,
    iter_pairs,
)
from crossfade.trainer.data.manifest import CONTENT, FEATURES, Content, Feature
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.prepare.database import count_rows, execute, execute_on, fetch_count, fetch_one
from crossfade.trainer.prepare.event_values import INTEGER_TEXT
from crossfade.trainer.prepare.extend import SQL_TYPES, BaseDataset
from crossfade.trainer.prepare.fetch import fetch_files
from crossfade.trainer.prepare.id_encoder import IdType
from crossfade.trainer.prepare.input_files import RawFile, Source
from crossfade.trainer.prepare.option_values import FeatureFile
from crossfade.trainer.prepare.options import IdChoice, Side
from crossfade.trainer.prepare.raw_files import KIND_NAMES, Kind, close_raw, open_columns, read_errors
from crossfade.trainer.prepare.staging import PartWriter, Staged, row_group_rows, write_relation
from crossfade.trainer.prepare.vocabulary_tables import VocabularyKey

_BATCH_ROWS = 1 << 14
_NUMBERS = "FLOAT[]"


@dataclass(frozen=True)
class ColumnPlan:
    """One feature, or one column of content, to prepare.

    Attributes:
        kind: Which of the two it is.
        number: Its position among all of its kind.
        name: Its name; for a feature, also the name of the entity of its values.
        entity: The entity that has it.
        side: The side of the interactions on which that entity is.
        source: What its files are; None for one that only the base dataset has.
        files: The files found for ``source``.
    """

    kind: Literal["feature", "content"]
    number: int
    name: str
    entity: str
    side: Side
    source: FeatureFile | None
    files: Sequence[Source] = ()

    @property
    def key(self) -> VocabularyKey:
        """The suffix of its tables in the working database."""
        return f"{self.kind}_{self.number}"

    @property
    def option(self) -> str:
        """The option that names its files."""
        return "features" if self.kind == "feature" else "content"


@dataclass(frozen=True)
class ColumnReport:
    """The number of rows of the entity that have a value, and of IDs of the files that occur in no event."""

    filled_rows: int
    ignored_ids: int


def plan_columns(
    kind: Literal["feature", "content"],
    given: Sequence[FeatureFile],
    files: Sequence[Sequence[Source]],
    sides: Mapping[str, Side],
    in_base: Iterable[tuple[str, str]],
) -> list[ColumnPlan]:
    """Plan the columns that are ``given``, with their ``files``, and then those that only the base dataset has.

    ``in_base`` are the names of those in the base dataset, each with its entity.
    """
    named = [(name, file, found) for file, found in zip(given, files, strict=True) for name in file.columns]
    plans = [
        ColumnPlan(kind, number, name, file.entity, sides[file.entity], file, found)
        for number, (name, file, found) in enumerate(named)
    ]
    carried = [(name, entity) for name, entity in in_base if name not in {name for name, _, _ in named}]
    return plans + [
        ColumnPlan(kind, number, name, entity, sides[entity], None)
        for number, (name, entity) in enumerate(carried, start=len(plans))
    ]


def read_columns(
    connection: duckdb.DuckDBPyConnection,
    plans: Sequence[ColumnPlan],
    work: Path,
    id_type: IdChoice,
    base: BaseDataset | None,
    progress: ProgressReporter,
) -> dict[str, IdType]:
    """Create the table ``given_KEY`` of each column with files; return the types of the values of features.

    Values become integers if all of them are, unless ``id_type`` is 'string', or a file or ``base`` has strings.

    Raises:
        InputError: a file cannot be read, lacks a column, or has values of another kind; or lists of content differ in
            length.
    """
    types: dict[str, IdType] = {}
    with_files = [(plan, plan.source) for plan in plans if plan.source is not None]
    if with_files:
        progress.phase(
            "read features and content", sum(file.bytes for plan, _ in with_files for file in plan.files), "B"
        )
    for plan, of in with_files:
        column, is_feature = of.columns[plan.name], plan.kind == "feature"
        in_base = base.manifest.entities.get(plan.name) if base else None
        as_text = id_type == "string" or (in_base is not None and in_base.id_type == "string")
        connection.execute(f"CREATE TABLE read (id VARCHAR, value {'VARCHAR' if is_feature else _NUMBERS})")
        with fetch_files(plan.files, work, [of.id_column, column]) as local_files:
            for source, file in zip(plan.files, local_files, strict=True):
                if is_feature:
                    as_text |= _read_ids(connection, file, of.id_column, column) == "string"
                else:
                    _read_numbers(connection, file, of.id_column, column)
                progress.advance(source.bytes)
        value = "value"
        if is_feature:
            as_text = (
                as_text or count_rows(connection, f"read WHERE NOT coalesce({INTEGER_TEXT.format('value')}, false)") > 0
            )
            types[plan.name] = "string" if as_text else "int64"
            value = f"CAST(value AS {SQL_TYPES[types[plan.name]]}) AS value"
        connection.execute(f"CREATE TABLE given_{plan.key} AS SELECT DISTINCT id, {value} FROM read; DROP TABLE read")
        if not is_feature:
            _check_numbers(connection, plan, of)
    return types


def _read_ids(connection: duckdb.DuckDBPyConnection, file: RawFile, id_column: str, column: str) -> Kind:
    """Append the values of a feature in one file to the table ``read``; return of which kind they are."""
    kind = open_columns(connection, file, {"id": id_column, "value": column}, lists=("value",))["value"]
    if kind in ("number", "datetime"):
        raise InputError(
            f"{file}: column '{column}' holds {KIND_NAMES[kind]}; expected integers or strings: cast it, or name "
            "another column"
        )
    with read_errors(file):
        filled = " AND ".join(f"{name} IS NOT NULL AND CAST({name} AS VARCHAR) <> ''" for name in ("id", "value"))
        connection.execute(
            f"INSERT INTO read SELECT CAST(id AS VARCHAR), CAST(value AS VARCHAR) FROM raw WHERE {filled}"
        )
    close_raw(connection)
    return kind


def _read_numbers(connection: duckdb.DuckDBPyConnection, file: RawFile, id_column: str, column: str) -> None:
    """Append the values of content in one file to the table ``read``."""
    columns = {"id": id_column, "value": column}
    kind = open_columns(connection, file, columns, whole_lists=("value",))["value"]
    if kind == "datetime":
        raise InputError(
            f"{file}: column '{column}' holds {KIND_NAMES[kind]}; expected numbers, or lists of numbers: cast it, or "
            "name another column"
        )
    missing, numbers = "isnan(TRY_CAST(value AS DOUBLE))", "[TRY_CAST(value AS FLOAT)]"
    if str(connection.sql("SELECT value FROM raw LIMIT 0").types[0]).endswith("]"):
        missing, numbers = "len(value) = 0", f"TRY_CAST(value AS {_NUMBERS})"
    elif kind in ("text", "string"):
        missing = f"value IN ('', '[]') OR {missing}"
        numbers = f"CASE WHEN value LIKE '[%' THEN TRY_CAST(value AS {_NUMBERS}) ELSE {numbers} END"
    with read_errors(file):
        connection.execute(
            f"CREATE TABLE piece AS SELECT position, CAST(id AS VARCHAR) AS id, {numbers} AS value FROM raw "
            f"WHERE id IS NOT NULL AND CAST(id AS VARCHAR) <> '' AND NOT coalesce({missing}, value IS NULL)"
        )
    bad = "value IS NULL OR list_count(value) < len(value) OR NOT list_bool_and([isfinite(x) FOR x IN value])"
    for place, value in execute(
        connection,
        "SELECT position + 1, left(CAST(value AS VARCHAR), 40) FROM raw "
        f"WHERE position = (SELECT min(position) FROM piece WHERE {bad})",
    ):
        raise InputError(
            f"{file}, row {place}: column '{column}' has '{value}'; expected a number, or a list of numbers, all finite"
        )
    close_raw(connection)
    connection.execute("INSERT INTO read SELECT id, value FROM piece; DROP TABLE piece")


def _check_numbers(connection: duckdb.DuckDBPyConnection, plan: ColumnPlan, source: FeatureFile) -> None:
    """Check that the files of a column of content have values, all of one length, and one of each ID."""
    where = (Option("content", f"{plan.entity}={source.path}"), f": column '{source.columns[plan.name]}'")
    widths = [width for (width,) in execute(connection, f"SELECT DISTINCT len(value) FROM given_{plan.key} ORDER BY 1")]
    if not widths:
        raise InputError(where, " has no value; leave it out")
    if len(widths) > 1 or int(str(widths[0])) > MAX_CONTENT_WIDTH:
        raise InputError(
            where,
            f" has lists of {' and '.join(map(str, widths[:2]))} numbers; expected lists of one length, at most "
            f"{MAX_CONTENT_WIDTH}",
        )
    twice = f"SELECT min(id) FROM (SELECT id FROM given_{plan.key} GROUP BY id HAVING count(*) > 1)"
    if (text := fetch_one(connection, twice)[0]) is not None:
        raise InputError(where, f" has two different values of the id '{text}'; expected one value of each id")


def join_column(
    connection: duckdb.DuckDBPyConnection, plan: ColumnPlan, id_type: IdType | None, base: BaseDataset | None
) -> ColumnReport:
    """Create the table ``joined_KEY`` (row of the entity, value); ``id_type`` is the type of a feature's values.

    Rows that get no value keep their values in ``base``, whose vocabulary of a feature is in ``base_KEY``.

    Raises:
        InputError: the files have a value for none of the IDs, or numbers of another length than in ``base``.
    """
    key, ignored = plan.key, 0
    value_type = _NUMBERS if id_type is None else SQL_TYPES[id_type]
    connection.execute(f"CREATE TABLE joined_{key} (row BIGINT, value {value_type})")
    if plan.source is not None:
        # Compared as text, like names: text files have no types, and an int64 has only one decimal representation.
        connection.execute(
            f"INSERT INTO joined_{key} SELECT v.row, g.value FROM given_{key} g "
            f"JOIN vocabulary_{plan.side} v ON CAST(v.id AS VARCHAR) = g.id"
        )
        given = fetch_count(connection, f"SELECT count(DISTINCT id) FROM given_{key}")
        ignored = given - fetch_count(connection, f"SELECT count(DISTINCT row) FROM joined_{key}")
        if ignored == given:
            raise OptionError(
                plan.option,
                found=f"{plan.entity}={plan.source.path}",
                problem=f"has a value of '{plan.name}' for none of the ids of the events (column "
                f"'{plan.source.id_column}' holds {given} ids with one)",
                expected="ids of the same entity: check the columns",
            )
        connection.execute(f"DROP TABLE given_{key}")
    if base is not None:
        _carry(connection, base, plan)
    return ColumnReport(fetch_count(connection, f"SELECT count(DISTINCT row) FROM joined_{key}"), ignored)


def _carry(connection: duckdb.DuckDBPyConnection, base: BaseDataset, plan: ColumnPlan) -> None:
    """Add the values of the base dataset, except of rows that have new values or belong to another ID now."""
    key, side, manifest = plan.key, plan.side, base.manifest
    old = manifest.content_of(plan.entity).get(plan.name)
    if (old is None) if plan.kind == "content" else plan.name not in manifest.features_of(plan.entity):
        return
    connection.execute(f"CREATE TABLE base_values AS SELECT row, value FROM joined_{key} LIMIT 0")
    if old is None:
        insert = f"INSERT INTO base_values SELECT part.row, b.id FROM part JOIN base_{key} b ON b.row = part.value"
        for _, row_N, value_N in iter_pairs(base.folder, manifest, plan.entity, plan.name):
            execute_on(connection, pa.table([row_N, value_N], schema=SCHEMA), f"{insert} WHERE b.id IS NOT NULL")
    else:
        width = fetch_one(connection, f"SELECT max(len(value)) FROM joined_{key}")[0]
        if width not in (None, old.width):
            raise OptionError(
                "content",
                found=f"{plan.entity}=…",
                problem=f"'{plan.name}' has {width} numbers, but {old.width} in the base dataset",
                fix="give the column another name: NAME=COLUMN",
            )
        for _, row_N, value_ND in iter_content(base.folder, manifest, plan.entity, plan.name):
            lists = pa.FixedSizeListArray.from_arrays(pa.array(value_ND.ravel()), value_ND.shape[1])
            execute_on(connection, pa.table({ROW: row_N, VALUE: lists}), "INSERT INTO base_values FROM part")
    connection.execute(
        f"INSERT INTO joined_{key} SELECT b.row, b.value FROM base_values b JOIN base_{side} old USING (row) "
        f"JOIN vocabulary_{side} v ON v.row = b.row AND v.id = old.id "
        f"WHERE b.row NOT IN (SELECT row FROM joined_{key}); DROP TABLE base_values"
    )


def counted_values_sql(plan: ColumnPlan) -> str:
    """Return a query for each value of a feature that some row has, with its interactions, for ``build_vocabulary``."""
    return (
        "SELECT NULL::BIGINT AS number, p.value AS id, CAST(sum(v.count) AS BIGINT) AS count "
        f"FROM joined_{plan.key} p JOIN vocabulary_{plan.side} v ON v.row = p.row GROUP BY p.value"
    )


def catalog_ids_sql(plans: Sequence[ColumnPlan], side: Side, id_type: IdType) -> str:
    """Return a query for each ID in the files of ``plans`` that has no interaction, for ``build_vocabulary``.

    Its count is 0, and it has no number, so that it comes after all IDs that occur in events.
    """
    files = " UNION ALL ".join(f"SELECT id FROM given_{plan.key}" for plan in plans)
    typed = given = f"SELECT id FROM ({files}) GROUP BY id"
    if id_type == "int64":
        typed = f"SELECT CAST(id AS BIGINT) AS id FROM ({given}) WHERE {INTEGER_TEXT.format('id')}"
    in_events = f"SELECT id FROM ids_{side} SEMI JOIN counts_{side} USING (number)"
    return f"SELECT NULL::BIGINT AS number, id, 0 AS count FROM ({typed}) ANTI JOIN ({in_events}) USING (id)"


def write_feature(connection: duckdb.DuckDBPyConnection, plan: ColumnPlan, staged: Staged) -> Feature:
    """Write ``joined_KEY`` as pairs of a row of the entity and a row of ``vocabulary_KEY``."""
    key = plan.key
    rows = count_rows(connection, f"joined_{key}")
    values = f"joined_{key} p JOIN vocabulary_{key} v ON v.id = p.value"
    pairs = connection.sql(f"SELECT p.row AS row, v.row AS value FROM {values} ORDER BY 1, 2")
    return Feature(files=write_relation(staged, f"{FEATURES}/{plan.entity}/{plan.name}", SCHEMA, pairs, rows))


def write_content(
    connection: duckdb.DuckDBPyConnection, plan: ColumnPlan, base: BaseDataset | None, staged: Staged
) -> Content:
    """Write the numbers in ``joined_KEY``, with the scaling of the column of ``base``, if it has one."""
    rows, width = fetch_one(connection, f"SELECT count(*), max(len(value)) FROM joined_{plan.key}")
    assert isinstance(rows, int)
    assert isinstance(width, int)
    schema, moments = content_schema(width), _Moments()
    group_rows = content_group_rows(row_group_rows(rows), width)
    ordered = connection.sql(f"SELECT row, value FROM joined_{plan.key} ORDER BY row")
    with PartWriter(staged, f"{CONTENT}/{plan.entity}/{plan.name}", schema, group_rows) as writer:
        for batch in ordered.to_arrow_reader(_BATCH_ROWS):
            if batch.num_rows:
                value_ND = content_values(pa.chunked_array([batch.column(1)]), width, plan.name)
                moments.add(value_ND)
                lists = pa.FixedSizeListArray.from_arrays(pa.array(value_ND.ravel()), type=schema.field(VALUE).type)
                writer.write(pa.RecordBatch.from_arrays([batch.column(0), lists], schema=schema))
        files = writer.close()
    old = base.manifest.content_of(plan.entity).get(plan.name) if base else None
    mean, std = (old.mean, old.std) if old is not None else moments.scaling(width)
    return Content(width=width, mean=mean, std=std, files=files)


@dataclass
class _Moments:
    """Sums of the values of a column, each added after the one before, so that they do not depend on batches."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, value_ND: FloatArray) -> None:
        """Add the values of some rows."""
        flat_N = value_ND.astype(np.float64).ravel()
        self.count += len(flat_N)
        self.total = float(np.cumsum(np.concatenate([[self.total], flat_N]))[-1])
        self.squares = float(np.cumsum(np.concatenate([[self.squares], flat_N * flat_N]))[-1])

    def scaling(self, width: int) -> tuple[float, float]:
        """Return what is subtracted from values, and what they are divided by."""
        mean = self.total / self.count if width == 1 else 0.0
        variance = self.squares / self.count - mean * mean
        # Numbers that are all equal leave only rounding errors.
        return mean, float(np.sqrt(variance)) if variance > 1e-12 * (self.squares / self.count) else 1.0
