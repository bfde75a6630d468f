# ruff: noqa: S608  (what is put into SQL is quoted by `identifier` and `literal`, or is a number of this program)
"""Features of an entity, from separate files: the artist of a track, its tags, the country of a customer.

    types = read_features(connection, plans, work, "auto", base, progress)      # given_feature_0 (id, value), …
    report = join_feature(connection, plans[0], types["artist"], base)          # pairs_feature_0 (row, id)
    ...                                             # its vocabulary, of the query that ``counted_values_sql`` returns
    feature = write_feature(connection, plans[0], staged)

A value is an ID of the feature's own entity. An ID of the file may occur in several rows, or have a list of values.
With a base dataset (``extend.py``), IDs that the file has no value for keep the values that they have there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import duckdb
import pyarrow as pa

from crossfade.base.errors import InputError, Option, OptionError
from crossfade.trainer.data.features import ROW, SCHEMA, VALUE, iter_pairs
from crossfade.trainer.data.manifest import FEATURES, Feature
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.prepare.database import count_rows, execute_on, fetch_count
from crossfade.trainer.prepare.event_values import INTEGER_TEXT
from crossfade.trainer.prepare.extend import SQL_TYPES, BaseDataset
from crossfade.trainer.prepare.fetch import fetch_files
from crossfade.trainer.prepare.id_encoder import IdType
from crossfade.trainer.prepare.input_files import RawFile, Source
from crossfade.trainer.prepare.option_values import FeatureFile
from crossfade.trainer.prepare.options import IdChoice, Side
from crossfade.trainer.prepare.raw_files import KIND_NAMES, Kind, close_raw, open_columns, read_errors
from crossfade.trainer.prepare.staging import Staged, write_relation
from crossfade.trainer.prepare.vocabulary_tables import VocabularyKey

_AFTER_EVENTS = 2**60
"""Added to the ranks of IDs that are in no event: more than there are IDs, so that they come last."""


@dataclass(frozen=True)
class ColumnPlan:
    """One feature, or one column of content, to prepare.

    Attributes:
        kind: Which of the two it is.
        number: Its position among all of its kind.
        name: Its name, which for a feature is that of the entity of its values.
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
    def given_table(self) -> str:
        """The table of the working database with the IDs and values of its files."""
        return f"given_{self.key}"

    def unmatched(self, given: int) -> OptionError:
        """Return the error that none of the ``given`` IDs of the files with a value is one of the events."""
        assert self.source is not None
        return OptionError(
            "features" if self.kind == "feature" else "content",
            found=f"{self.entity}={self.source.path}",
            problem=f"has a value of '{self.name}' for none of the ids of the events (column "
            f"'{self.source.id_column}' holds {given} ids with one)",
            expected="ids of the same entity: check the columns",
        )


@dataclass(frozen=True)
class FeatureReport:
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


def read_features(
    connection: duckdb.DuckDBPyConnection,
    plans: Sequence[ColumnPlan],
    work: Path,
    id_type: IdChoice,
    base: BaseDataset | None,
    progress: ProgressReporter,
) -> dict[str, IdType]:
    """Create the table ``given_KEY`` (ID as text, value) of each feature with files; return the types of the values.

    Values of text files become integers if all of them are, unless ``id_type`` is 'string' or ``base`` has strings.

    Raises:
        InputError: a file cannot be read, lacks a column, or has values of a type that IDs cannot have; or two files of
            a feature have values of different types.
    """
    types: dict[str, IdType] = {}
    with_files = [plan for plan in plans if plan.source]
    progress.phase("read features", sum(file.bytes for plan in with_files for file in plan.files), "B")
    for plan in with_files:
        assert plan.source is not None
        column = plan.source.columns[plan.name]
        in_base = base.manifest.entities.get(plan.name) if base else None
        as_text = id_type == "string" or (in_base is not None and in_base.id_type == "string")
        found: dict[str, object] = {}
        with fetch_files(plan.files, work, [plan.source.id_column, column]) as local_files:
            for source, file in zip(plan.files, local_files, strict=True):
                found.setdefault(append_feature(connection, plan, file, as_text), file)
                progress.advance(source.bytes)
        types[plan.name] = merge_types(plan.name, column, found)
        value = f"CAST(value AS {SQL_TYPES[types[plan.name]]}) AS value"
        connection.execute(f"CREATE TABLE given_{plan.key} AS SELECT DISTINCT id, {value} FROM text_{plan.key}")
        connection.execute(f"DROP TABLE text_{plan.key}")
    return types


def append_feature(connection: duckdb.DuckDBPyConnection, plan: ColumnPlan, file: RawFile, as_text: bool) -> IdType:
    """Append the pairs of one file to the table ``text_KEY``, of texts; return the type of its values.

    Raises:
        InputError: it cannot be read, or has values of a type that IDs cannot have.
    """
    assert plan.source is not None
    connection.execute(f"CREATE TABLE IF NOT EXISTS text_{plan.key} (id VARCHAR, value VARCHAR)")
    column = plan.source.columns[plan.name]
    columns = {"id": plan.source.id_column, "value": column}
    kept = ("value",) if as_text else ()
    kinds = open_columns(connection, file, columns, lists=("value",), kept_texts=kept)
    with read_errors(file):
        found = _value_type(connection, file, column, kinds["value"], as_text)
        filled = " AND ".join(f"{name} IS NOT NULL AND CAST({name} AS VARCHAR) <> ''" for name in ("id", "value"))
        connection.execute(
            f"INSERT INTO text_{plan.key} SELECT CAST(id AS VARCHAR), CAST(value AS VARCHAR) FROM raw WHERE {filled}"
        )
    close_raw(connection)
    return found


def _value_type(connection: duckdb.DuckDBPyConnection, file: RawFile, column: str, kind: Kind, as_text: bool) -> IdType:
    if kind in ("number", "datetime"):
        raise InputError(
            f"{file}: column '{column}' holds {KIND_NAMES[kind]}; expected integers or strings: cast it, or name "
            "another column"
        )
    if kind == "string" or as_text:
        return "string"
    if kind == "text":
        is_integer = f"coalesce({INTEGER_TEXT.format('value')}, value IS NULL OR value = '')"
        if fetch_count(connection, f"SELECT count(*) FILTER (NOT {is_integer}) FROM raw"):
            return "string"
    return "int64"


def merge_types(name: str, column: str, found: Mapping[str, object]) -> IdType:
    """Return the type of the values of ``name``, of which ``found`` has the first file of each type.

    Raises:
        InputError: there are two.
    """
    if len(found) == 2:
        raise InputError(
            f"{found['string']}: column '{column}' holds strings, but {found['int64']} holds integers there; expected "
            f"one type of '{name}' in all files: make them the same, or read all ids as text with ",
            Option("id_type", "string"),
        )
    return "string" if "string" in found else "int64"


def join_feature(
    connection: duckdb.DuckDBPyConnection, plan: ColumnPlan, id_type: IdType, base: BaseDataset | None
) -> FeatureReport:
    """Create the table ``pairs_KEY`` (row of the entity, ID of the value) with each pair once.

    Rows that get no value keep those of ``base``, whose vocabulary of the feature is in ``base_KEY``.

    Raises:
        InputError: the files have a value for none of the IDs.
    """
    key, side = plan.key, plan.side
    connection.execute(f"CREATE TABLE pairs_{key} (row BIGINT, id {SQL_TYPES[id_type]})")
    ignored = 0
    if plan.source is not None:
        # Compared as text, like names: text files have no types, and an int64 has only one decimal representation.
        connection.execute(
            f"INSERT INTO pairs_{key} SELECT v.row, g.value FROM given_{key} g "
            f"JOIN vocabulary_{side} v ON CAST(v.id AS VARCHAR) = g.id"
        )
        given = fetch_count(connection, f"SELECT count(DISTINCT id) FROM given_{key}")
        joined = fetch_count(connection, f"SELECT count(DISTINCT row) FROM pairs_{key}")
        ignored = given - joined
        if not joined:
            raise plan.unmatched(given)
        connection.execute(f"DROP TABLE given_{key}")
    if base is not None and plan.name in base.manifest.features_of(plan.entity):
        _carry(connection, base, plan)
    return FeatureReport(fetch_count(connection, f"SELECT count(DISTINCT row) FROM pairs_{key}"), ignored)


def _carry(connection: duckdb.DuckDBPyConnection, base: BaseDataset, plan: ColumnPlan) -> None:
    """Add the pairs of the base dataset, except of rows that have new values or belong to another ID now."""
    key, side = plan.key, plan.side
    connection.execute("CREATE TABLE base_pairs (row BIGINT, value BIGINT)")
    for _, row_N, value_N in iter_pairs(base.folder, base.manifest, plan.entity, plan.name):
        part = pa.table([row_N, value_N], schema=SCHEMA)
        execute_on(connection, part, f"INSERT INTO base_pairs SELECT {ROW}, {VALUE} FROM part")
    connection.execute(
        f"INSERT INTO pairs_{key} SELECT p.row, b.id FROM base_pairs p JOIN base_{key} b ON b.row = p.value "
        f"JOIN base_{side} old ON old.row = p.row JOIN vocabulary_{side} v ON v.row = p.row AND v.id = old.id "
        f"WHERE b.id IS NOT NULL AND p.row NOT IN (SELECT row FROM pairs_{key})"
    )
    connection.execute("DROP TABLE base_pairs")


def counted_values_sql(plan: ColumnPlan) -> str:
    """Return a query for each value that some row has, with its number of interactions, for ``build_vocabulary``."""
    return (
        "SELECT NULL::BIGINT AS number, p.id AS id, p.id AS id_rank, CAST(sum(v.count) AS BIGINT) AS count "
        f"FROM pairs_{plan.key} p JOIN vocabulary_{plan.side} v ON v.row = p.row GROUP BY p.id"
    )


def catalog_ids_sql(given_tables: Sequence[str], side: Side, id_type: IdType) -> str:
    """Return a query for each ID of ``side`` in ``given_tables`` that has no interaction, for ``build_vocabulary``.

    Its count is 0, and it ranks after all IDs that occur in events.
    """
    given = "SELECT id FROM ({}) GROUP BY id".format(" UNION ALL ".join(f"SELECT id FROM {t}" for t in given_tables))
    typed = given
    if id_type == "int64":
        typed = f"SELECT CAST(id AS BIGINT) AS id FROM ({given}) WHERE {INTEGER_TEXT.format('id')}"
    in_events = f"SELECT id FROM ids_{side} SEMI JOIN counts_{side} USING (number)"
    return (
        f"SELECT NULL::BIGINT AS number, id, {_AFTER_EVENTS} + row_number() OVER (ORDER BY id) AS id_rank, 0 AS count "
        f"FROM ({typed}) ANTI JOIN ({in_events}) USING (id)"
    )


def write_feature(connection: duckdb.DuckDBPyConnection, plan: ColumnPlan, staged: Staged) -> Feature:
    """Write ``pairs_KEY`` as pairs of a row of the entity and a row of ``vocabulary_KEY``."""
    key = plan.key
    rows = count_rows(connection, f"pairs_{key}")
    pairs = connection.sql(
        f"SELECT p.row AS row, v.row AS value FROM pairs_{key} p JOIN vocabulary_{key} v ON v.id = p.id ORDER BY 1, 2"
    )
    return Feature(files=write_relation(staged, f"{FEATURES}/{plan.entity}/{plan.name}", SCHEMA, pairs, rows))
