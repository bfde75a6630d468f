# ruff: noqa: S608  (what is put into SQL is quoted by `identifier` and `literal`, or is a number of this program)
"""Building vocabularies: one row for each id of an entity, the most frequent first, and its name where one is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import duckdb
import pyarrow as pa

from kvstore.errors import InputError
from trainer.data.manifest import VOCABULARY, Entity
from trainer.prepare.database import execute, fetch_count
from trainer.prepare.events import IdType
from trainer.prepare.input_files import RawFile
from trainer.prepare.part_writer import PartWriter, row_group_rows
from trainer.prepare.raw_files import close_raw, open_columns, read_errors
from trainer.prepare.staging import Staged

Side = Literal["query", "item"]
VocabularyKey = str
"""Whose ids a table of the working database is about: a ``Side`` or, for a feature, ``feature_N``."""


@dataclass(frozen=True)
class IdPolicy:
    """What is watched of the ids of ``entity``, on one side (``admission.py``).

    ``admit`` is the count that gets an id a row, None where one event does. The vocabulary says when ids were last
    seen if it is to be ``seen``. ``newest`` is the time of the last event, None without timestamps, and who was last
    seen before ``expires`` loses its row. ``place`` is that of the new data set in its lineage.
    """

    side: Side
    entity: str
    id_type: IdType
    admit: int | None
    track_last_seen: bool
    newest: int | None
    expires: int | None
    lineage_index: int


@dataclass(frozen=True)
class NamesFile:
    """A Parquet, CSV or TSV file (by its ending) that names ids; where an id occurs twice, its first name counts."""

    path: str | Path
    id_column: str
    name_column: str


@dataclass(frozen=True)
class NamesReport:
    """What became of a names file: ids that got a name, and ids of the file that no event has."""

    named: int
    unknown: int


def vocabulary_schema(
    id_type: IdType, named: bool, forgotten: bool = False, met: bool = False, track_last_seen: bool = False
) -> pa.Schema:
    """The columns of a vocabulary file; ids may be null where rows were ``forgotten``."""
    fields = [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("id", pa.int64() if id_type == "int64" else pa.string(), nullable=forgotten),
        pa.field("count", pa.int64(), nullable=False),
    ]
    if met:
        fields.append(pa.field("met", pa.bool_(), nullable=False))
    if track_last_seen:
        fields += [pa.field("last_seen", pa.int64()), pa.field("since", pa.int64(), nullable=False)]
    return pa.schema([*fields, pa.field("name", pa.string())] if named else fields)


def build_vocabulary(
    connection: duckdb.DuckDBPyConnection, role: VocabularyKey, counted: str, watch: IdPolicy | None = None
) -> int:
    """Make the table ``vocabulary_ROLE`` from the query ``counted``; return its rows.

    Its columns: row, number, id, count, last_seen and since. Rows go by count descending, then by id.
    """
    last_seen, sighted = last_seen_sql(role, watch)
    execute(
        connection,
        f"CREATE TABLE vocabulary_{role} AS "
        "SELECT row_number() OVER (ORDER BY counted.count DESC, place) - 1 AS row, number, id, counted.count AS count, "
        f"{last_seen} AS last_seen, 0 AS since FROM ({counted}) counted{sighted}",
    )
    return fetch_count(connection, f"SELECT count(*) FROM vocabulary_{role}")


def last_seen_sql(role: VocabularyKey, watch: IdPolicy | None) -> tuple[str, str]:
    """SQL of when an id of ``counted``, which had no row before, was last seen, and the join that this needs."""
    if watch is None or not watch.track_last_seen:
        return "NULL::BIGINT", ""
    # Those that are in no event are in the catalogue now.
    return f"coalesce(s.last_seen, {sql_number(watch.newest)})", f" LEFT JOIN sighted_{role} s USING (number, id)"


def sql_number(number: int | None) -> str:
    """``number`` in SQL."""
    return "NULL::BIGINT" if number is None else f"{number}::BIGINT"


def counted_sql(role: Side) -> str:
    """A query for each id of all splits of ``interactions``: number, id, place (its rank by id) and count.

    ``count`` counts what is liked (of positive weight) in train (split 0).
    """
    return (
        "SELECT number, id, place, count "
        f"FROM (SELECT {role} AS number, count(*) FILTER (split = 0 AND weight > 0) AS count FROM interactions "
        f"GROUP BY {role}) JOIN ids_{role} USING (number)"
    )


def join_names(
    connection: duckdb.DuckDBPyConnection, role: VocabularyKey, file: RawFile, names: NamesFile
) -> NamesReport:
    """Make the table ``names_ROLE`` (id, name) of those ids of ``vocabulary_ROLE`` that the file names.

    Raises:
        InputError: the file cannot be read, or knows none of the ids.
    """
    open_columns(connection, file, {"id": names.id_column, "name": names.name_column})
    with read_errors(file):
        # Compared as text: a names file in CSV has no types, and an int64 has one way only to be written.
        execute(
            connection,
            "CREATE TABLE named AS SELECT CAST(id AS VARCHAR) AS id, arg_min(CAST(name AS VARCHAR), position) AS name "
            "FROM raw WHERE id IS NOT NULL AND name IS NOT NULL AND CAST(name AS VARCHAR) <> '' GROUP BY 1",
        )
    close_raw(connection)
    execute(
        connection,
        f"CREATE TABLE names_{role} AS SELECT v.id, n.name FROM vocabulary_{role} v JOIN named n "
        "ON n.id = CAST(v.id AS VARCHAR)",
    )
    found = fetch_count(connection, f"SELECT count(*) FROM names_{role}")
    given = fetch_count(connection, "SELECT count(*) FROM named")
    execute(connection, "DROP TABLE named")
    if not found:
        raise InputError(
            f"{file}: names none of the ids that the events have (column '{names.id_column}' holds {given} ids); "
            "expected ids of the same entity: check the columns in --names"
        )
    return NamesReport(named=found, unknown=given - found)


def write_vocabulary(
    connection: duckdb.DuckDBPyConnection,
    role: VocabularyKey,
    *,
    staged: Staged,
    entity: str,
    id_type: IdType,
    named: bool,
    extended: bool = False,
    track_last_seen: bool = False,
) -> Entity:
    """Write ``vocabulary_ROLE`` and describe it; it has ``met`` if ``extended``, last_seen and since if ``seen``."""
    rows = fetch_count(connection, f"SELECT count(*) FROM vocabulary_{role}")
    free = connection.sql(f"SELECT row FROM vocabulary_{role} WHERE id IS NULL ORDER BY row").fetchnumpy()["row"]
    schema = vocabulary_schema(id_type, named, len(free) > 0, extended, track_last_seen)
    source = f"vocabulary_{role} v" + (f" LEFT JOIN names_{role} n ON n.id = v.id" if named else "")
    columns = (
        "row, v.id AS id, count" + (", met" if extended else "") + (", last_seen, since" if track_last_seen else "")
    )
    columns += ", n.name AS name" if named else ""
    group_rows = row_group_rows(rows)
    with PartWriter(staged, f"{VOCABULARY}/{entity}", schema, group_rows) as writer:
        for batch in connection.sql(f"SELECT {columns} FROM {source} ORDER BY row").to_arrow_reader(group_rows):
            writer.write(batch)
        files = writer.close()
    return Entity(
        rows=rows,
        id_type=id_type,
        has_names=named,
        has_warm=extended,
        has_last_seen=track_last_seen,
        files=files,
        vacant_rows=free.tolist(),
    )
