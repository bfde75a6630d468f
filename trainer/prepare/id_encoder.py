# ruff: noqa: S608  (what is put into SQL is quoted by `identifier` and `literal`, or is a number of this program)
"""Encode IDs as numbers while they are read, so that all later counting, joining and sorting works on integers.

    encoder = IdEncoder(connection, "string", "integer")
    encoder.add("(SELECT … FROM raw)", rows=1000)
    encoder.finish()                                # the tables events, ids_query, ids_item and event_context

The tables ``ids_query`` and ``ids_item`` have ``number`` (from 0, without gaps), ``id`` and ``id_rank`` (the rank of
the ID among all). Numbers depend on the order of reading; nothing that is written may depend on them.
"""

from __future__ import annotations

from collections.abc import Sequence

import duckdb

from crossfade.trainer.prepare.database import execute, fetch_count

SIDES = ("query", "item")
_BLOCK_ROWS = 4_000_000
_TYPES = {"integer": "BIGINT", "string": "VARCHAR"}


class IdEncoder:
    """Builds the table ``events`` in blocks; the events of small files are buffered until there are enough.

    Args:
        connection: The working database, in which the tables are created.
        query_type: The type of the query IDs, 'integer' or 'string'.
        item_type: The type of the item IDs.
        context: The columns of the values of context, as text, which ``event_context`` keeps by ``seq``.
    """

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, query_type: str, item_type: str, context: Sequence[str] = ()
    ) -> None:
        self._connection = connection
        self._context = "".join(f", {name}" for name in context)
        self._buffered = 0
        self._rows = 0
        for side, id_type in zip(SIDES, (query_type, item_type), strict=True):
            execute(connection, f"CREATE TABLE ids_{side} (number BIGINT, id {_TYPES[id_type]})")
        texts = "".join(f", {name} VARCHAR" for name in context)
        execute(
            connection,
            f"CREATE TEMP TABLE buffered (query_id {_TYPES[query_type]}, item_id {_TYPES[item_type]}, weight FLOAT, "
            f"timestamp BIGINT, split UTINYINT, seq BIGINT{texts})",
        )
        execute(connection, f"CREATE TABLE event_context (seq BIGINT{texts})")
        execute(
            connection,
            "CREATE TABLE events "
            "(query BIGINT, item BIGINT, weight FLOAT, timestamp BIGINT, split UTINYINT, seq BIGINT)",
        )

    def add(self, events: str, rows: int) -> None:
        """Append the relation ``events`` of a file with ``rows`` data rows.

        Its columns: query_id, item_id, weight, timestamp, split, position (in the file, from 0), and those of context.
        """
        execute(
            self._connection,
            "INSERT INTO buffered SELECT query_id, item_id, weight, timestamp, split, "
            f"position + {self._rows}{self._context} FROM {events}",
        )
        self._rows += rows
        self._buffered += rows
        if self._buffered >= _BLOCK_ROWS:
            self._encode()

    def finish(self) -> None:
        """Encode the events that are still buffered, and rank the IDs."""
        self._encode()
        execute(self._connection, "DROP TABLE buffered")
        for side in SIDES:
            execute(
                self._connection,
                f"CREATE TABLE ranked AS SELECT number, id, row_number() OVER (ORDER BY id) AS id_rank FROM ids_{side}",
            )
            execute(self._connection, f"DROP TABLE ids_{side}")
            execute(self._connection, f"ALTER TABLE ranked RENAME TO ids_{side}")

    def _encode(self) -> None:
        for side in SIDES:
            known = fetch_count(self._connection, f"SELECT count(*) FROM ids_{side}")
            execute(
                self._connection,
                f"INSERT INTO ids_{side} SELECT {known} + row_number() OVER () - 1, id "
                f"FROM (SELECT DISTINCT {side}_id AS id FROM buffered) new "
                f"WHERE NOT EXISTS (SELECT 1 FROM ids_{side} known WHERE known.id = new.id)",
            )
        execute(
            self._connection,
            "INSERT INTO events SELECT q.number, i.number, weight, timestamp, split, seq FROM buffered "
            "JOIN ids_query q ON q.id = query_id JOIN ids_item i ON i.id = item_id",
        )
        if self._context:
            execute(self._connection, f"INSERT INTO event_context SELECT seq{self._context} FROM buffered")
        execute(self._connection, "TRUNCATE buffered")
        self._buffered = 0
