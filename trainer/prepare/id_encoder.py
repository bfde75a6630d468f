# ruff: noqa: S608  (what is put into SQL is quoted by `identifier` and `literal`, or is a number of this program)
"""Ids get numbers as they are read: each is kept once, and whatever is counted, joined or sorted later is an integer.

The tables ``ids_query`` and ``ids_item`` have ``number`` (from 0, without gaps), ``id`` and ``place`` (the rank of the
id among all). Numbers depend on the order of reading; nothing that is written may depend on them.
"""

from __future__ import annotations

import duckdb

from trainer.prepare.database import execute, fetch_count

ROLES = ("query", "item")
_BLOCK_ROWS = 4_000_000
_TYPES = {"integer": "BIGINT", "string": "VARCHAR"}


class IdEncoder:
    """Makes the table ``events`` block by block: small files wait until there are enough of them for one."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, query_type: str, item_type: str) -> None:
        """Make the tables, for ids of the types 'integer' or 'string'."""
        self._connection = connection
        self._waiting = 0
        self._rows = 0
        for role, kind in zip(ROLES, (query_type, item_type), strict=True):
            execute(connection, f"CREATE TABLE ids_{role} (number BIGINT, id {_TYPES[kind]})")
        execute(
            connection,
            f"CREATE TEMP TABLE waiting (query_id {_TYPES[query_type]}, item_id {_TYPES[item_type]}, weight FLOAT, "
            "timestamp BIGINT, split UTINYINT, seq BIGINT)",
        )
        execute(
            connection,
            "CREATE TABLE events "
            "(query BIGINT, item BIGINT, weight FLOAT, timestamp BIGINT, split UTINYINT, seq BIGINT)",
        )

    def add(self, events: str, rows: int) -> None:
        """Append ``events``: query_id, item_id, weight, timestamp, split and position in a file of ``rows``."""
        execute(
            self._connection,
            "INSERT INTO waiting SELECT query_id, item_id, weight, timestamp, split, "
            f"position + {self._rows} FROM {events}",
        )
        self._rows += rows
        self._waiting += rows
        if self._waiting >= _BLOCK_ROWS:
            self._number()

    def finish(self) -> None:
        """Number what still waits, and rank the ids."""
        self._number()
        execute(self._connection, "DROP TABLE waiting")
        for role in ROLES:
            execute(
                self._connection,
                f"CREATE TABLE ranked AS SELECT number, id, row_number() OVER (ORDER BY id) AS place FROM ids_{role}",
            )
            execute(self._connection, f"DROP TABLE ids_{role}")
            execute(self._connection, f"ALTER TABLE ranked RENAME TO ids_{role}")

    def _number(self) -> None:
        for role in ROLES:
            known = fetch_count(self._connection, f"SELECT count(*) FROM ids_{role}")
            execute(
                self._connection,
                f"INSERT INTO ids_{role} SELECT {known} + row_number() OVER () - 1, id "
                f"FROM (SELECT DISTINCT {role}_id AS id FROM waiting) fresh "
                f"WHERE NOT EXISTS (SELECT 1 FROM ids_{role} known WHERE known.id = fresh.id)",
            )
        execute(
            self._connection,
            "INSERT INTO events SELECT q.number, i.number, weight, timestamp, split, seq FROM waiting "
            "JOIN ids_query q ON q.id = query_id JOIN ids_item i ON i.id = item_id",
        )
        execute(self._connection, "TRUNCATE waiting")
        self._waiting = 0
