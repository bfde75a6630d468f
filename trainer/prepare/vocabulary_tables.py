# ruff: noqa: S608  (what is put into SQL is quoted by `identifier` and `literal`, or is a number of this program)
"""Vocabularies as tables of the working database: one row per ID, the most frequent first, with its name if given.

rows = build_vocabulary(connection, "item", counted_ids_sql("item"))        # the table vocabulary_item
report = join_names(connection, "item", names_file, names, faults)          # the table names_item
entity = write_vocabulary(connection, "item", staged=staged, entity="track", id_type="int64", has_names=True)
"""

from __future__ import annotations

from dataclasses import dataclass

import duckdb
import pyarrow as pa

from crossfade.base.errors import InputError, Option
from crossfade.trainer.data.manifest import VOCABULARY, Entity
from crossfade.trainer.prepare.database import count_rows
from crossfade.trainer.prepare.faults import Faults
from crossfade.trainer.prepare.id_encoder import IdType
from crossfade.trainer.prepare.input_files import RawFile
from crossfade.trainer.prepare.option_values import NamesFile
from crossfade.trainer.prepare.options import Side
from crossfade.trainer.prepare.raw_files import close_raw, open_columns, read_errors
from crossfade.trainer.prepare.staging import Staged, write_relation

VocabularyKey = str
"""The suffix of the tables of one vocabulary: a ``Side`` or, for a feature, ``feature_N``."""


@dataclass(frozen=True)
class IdPolicy:
    """Which IDs of ``entity`` get a row and which lose theirs (see ``admission.py``).

    Attributes:
        side: The side of the interactions on which the entity is.
        entity: Its name.
        id_type: The type of its IDs.
        admit: The number of events that admits an ID; None if one event does.
        track_last_seen: Whether the vocabulary records when IDs were last seen.
        newest: The newest timestamp of all events; None without timestamps.
        expire_before: Ids last seen before this timestamp lose their row; None if none does.
        lineage_index: The index of the new dataset in its lineage.
    """

    side: Side
    entity: str
    id_type: IdType
    admit: int | None
    track_last_seen: bool
    newest: int | None
    expire_before: int | None
    lineage_index: int


@dataclass(frozen=True)
class NamesReport:
    """The number of IDs that got a name, of IDs of the names file that occur in no event, and of its bad lines."""

    named: int
    ignored: int
    bad_lines: int


def vocabulary_schema(
    id_type: IdType,
    has_names: bool,
    has_vacant_rows: bool = False,
    has_earlier_count: bool = False,
    has_last_seen: bool = False,
) -> pa.Schema:
    """Return the schema of a vocabulary file; the ID is nullable if rows are vacant."""
    fields = [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("id", pa.int64() if id_type == "int64" else pa.string(), nullable=has_vacant_rows),
        pa.field("count", pa.int64(), nullable=False),
    ]
    if has_earlier_count:
        fields.append(pa.field("earlier_count", pa.int64(), nullable=False))
    if has_last_seen:
        fields += [pa.field("last_seen", pa.int64()), pa.field("lineage_index", pa.int64(), nullable=False)]
    return pa.schema([*fields, pa.field("name", pa.string())] if has_names else fields)


def build_vocabulary(
    connection: duckdb.DuckDBPyConnection, key: VocabularyKey, counted: str, policy: IdPolicy | None = None
) -> int:
    """Create the table ``vocabulary_KEY`` from the query ``counted`` and return its number of rows.

    Its columns: row, number, id, count, last_seen and lineage_index. Rows are ordered by count descending; of equal
    counts, IDs of events, which have a number, are first, and then by ID.
    """
    last_seen, join = last_seen_sql(key, policy)
    connection.execute(
        f"CREATE TABLE vocabulary_{key} AS "
        "SELECT row_number() OVER (ORDER BY counted.count DESC, number IS NULL, id) - 1 AS row, number, id, "
        f"counted.count AS count, {last_seen} AS last_seen, 0 AS lineage_index FROM ({counted}) counted{join}"
    )
    return count_rows(connection, f"vocabulary_{key}")


def last_seen_sql(key: VocabularyKey, policy: IdPolicy | None) -> tuple[str, str]:
    """Return SQL for when a new ID of ``counted`` was last seen, and the join that the expression needs."""
    if policy is None or not policy.track_last_seen:
        return "NULL::BIGINT", ""
    # Ids without events, which have no number, come from the catalog, which is current.
    seen = f"(SELECT id AS seen_id, last_seen FROM seen_{key})"
    return (
        f"coalesce(s.last_seen, {sql_number(policy.newest)})",
        f" LEFT JOIN {seen} s ON seen_id = id AND number IS NOT NULL",
    )


def sql_number(number: int | None) -> str:
    """Return ``number`` as an SQL literal."""
    return f"CAST({'NULL' if number is None else number} AS BIGINT)"


def counted_ids_sql(side: Side) -> str:
    """Return a query for each ID of ``interactions``: number, id, and count in train."""
    return f"SELECT number, id, count FROM counts_{side} JOIN ids_{side} USING (number)"


def join_names(
    connection: duckdb.DuckDBPyConnection, key: VocabularyKey, file: RawFile, names: NamesFile, faults: Faults
) -> NamesReport:
    """Create the table ``names_KEY`` (id, name) of the IDs of ``vocabulary_KEY`` that ``file`` has a name for.

    ``faults`` gets the lines that cannot be read, and rejects them or has them left out.

    Raises:
        InputError: the file cannot be read, or has a name for none of the IDs.
    """
    open_columns(connection, file, {"id": names.id_column, "name": names.name_column}, on_fault=faults.add_line)
    with read_errors(file):
        lines = count_rows(connection, "raw") + faults.count()
        # Compared as text: CSV files have no types, and an int64 has only one decimal representation.
        connection.execute(
            "CREATE TABLE given AS SELECT CAST(id AS VARCHAR) AS id, arg_min(CAST(name AS VARCHAR), position) AS name "
            "FROM raw WHERE id IS NOT NULL AND name IS NOT NULL AND CAST(name AS VARCHAR) <> '' GROUP BY 1"
        )
    close_raw(connection)
    faults.check(lines)
    connection.execute(
        f"CREATE TABLE names_{key} AS SELECT v.id, g.name FROM vocabulary_{key} v JOIN given g "
        "ON g.id = CAST(v.id AS VARCHAR)"
    )
    named, given = (count_rows(connection, table) for table in (f"names_{key}", "given"))
    connection.execute("DROP TABLE given")
    if not named:
        raise InputError(
            f"{file}: has a name for none of the ids of the events (column '{names.id_column}' holds {given} ids); "
            "expected ids of the same entity: check the columns in ",
            Option("names"),
        )
    return NamesReport(named=named, ignored=given - named, bad_lines=faults.count())


def write_vocabulary(
    connection: duckdb.DuckDBPyConnection,
    key: VocabularyKey,
    *,
    staged: Staged,
    entity: str,
    id_type: IdType,
    has_names: bool,
    has_earlier_count: bool = False,
    has_last_seen: bool = False,
) -> Entity:
    """Write the table ``vocabulary_KEY`` as files of ``entity`` and return their manifest entry.

    ``has_earlier_count`` adds the column earlier_count, ``has_last_seen`` the columns last_seen and lineage_index,
    ``has_names`` the names of the table ``names_KEY``.
    """
    rows = count_rows(connection, f"vocabulary_{key}")
    vacant = connection.sql(f"SELECT row FROM vocabulary_{key} WHERE id IS NULL ORDER BY row").fetchnumpy()["row"]
    schema = vocabulary_schema(id_type, has_names, len(vacant) > 0, has_earlier_count, has_last_seen)
    source = f"vocabulary_{key} v" + (f" LEFT JOIN names_{key} n ON n.id = v.id" if has_names else "")
    expressions = {"id": "v.id AS id", "name": "n.name AS name"}
    columns = ", ".join(expressions.get(name, name) for name in schema.names)
    ordered = connection.sql(f"SELECT {columns} FROM {source} ORDER BY row")
    return Entity(
        rows=rows,
        id_type=id_type,
        has_names=has_names,
        has_earlier_count=has_earlier_count,
        has_last_seen=has_last_seen,
        files=write_relation(staged, f"{VOCABULARY}/{entity}", schema, ordered, rows),
        vacant_rows=vacant.tolist(),
    )
