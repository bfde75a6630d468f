# ruff: noqa: S608  (what is put into SQL is a name or a number of this program)
"""Encode the IDs of events as numbers, block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import duckdb

from crossfade.trainer.prepare.database import count_rows

IdType = Literal["int64", "string"]
SIDES = ("query", "item")
_BLOCK_ROWS = 4_000_000
_HASH_BITS = 63
_TYPES = {"integer": "BIGINT", "string": "VARCHAR"}


class IdEncoder:
    """Builds the table ``events`` in blocks: a large file is one block, and the rows of small files are buffered.

    The tables ``all_counts_SIDE`` have the ``number`` of each ID and the ``count`` of its positive events in train.

    The number of an ID is a hash of it, so that events need no join with a large table of IDs. Should another ID have
    the same hash, which takes billions of IDs, that is found before the events of their block are encoded: the second
    one gets a negative number, which the table ``others_query`` or ``others_item`` has.

    A block has at least a quarter as many rows as there are IDs, since each block is compared with all of them.

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
        self._known = dict.fromkeys(SIDES, 0)
        self._others = dict.fromkeys(SIDES, 0)
        for side, id_type in zip(SIDES, (query_type, item_type), strict=True):
            connection.execute(f"CREATE TABLE ids_{side} (number BIGINT, id {_TYPES[id_type]})")
            connection.execute(f"CREATE TABLE others_{side} (number BIGINT, id {_TYPES[id_type]})")
            connection.execute(f"CREATE TABLE found_{side} (id {_TYPES[id_type]}, count BIGINT)")
            connection.execute(f"CREATE TABLE all_counts_{side} (number BIGINT, count BIGINT)")
        texts = "".join(f", {name} VARCHAR" for name in context)
        connection.execute(
            f"CREATE TABLE buffered (query_id {_TYPES[query_type]}, item_id {_TYPES[item_type]}, weight FLOAT, "
            f"timestamp BIGINT, split UTINYINT, seq BIGINT{texts})"
        )
        connection.execute(f"CREATE TABLE event_context (seq BIGINT{texts})")
        connection.execute(
            "CREATE TABLE events (query BIGINT, item BIGINT, weight FLOAT, timestamp BIGINT, split UTINYINT, "
            "seq BIGINT)"
        )

    def add(self, events: str, rows: int, ids: Mapping[str, str]) -> None:
        """Append the relation ``events`` of a file with ``rows`` data rows, and with these ``ids`` (queries, by side).

        Each ID comes with the number of its events of positive weight in train.
        Its columns: query_id, item_id, weight, timestamp, split, position (in the file, from 0), and the context's
        columns.
        """
        for side in SIDES:
            self._connection.execute(f"INSERT INTO found_{side} {ids[side]}")
        block = (
            f"SELECT query_id, item_id, weight, timestamp, split, position + {self._rows} AS seq{self._context} "
            f"FROM {events}"
        )
        self._rows += rows
        enough = max(_BLOCK_ROWS, *(known // 4 for known in self._known.values()))
        if rows >= enough:
            self._encode(f"({block})")
            return
        self._connection.execute(f"INSERT INTO buffered {block}")
        self._buffered += rows
        if self._buffered >= enough:
            self._encode_buffered()

    def finish(self) -> None:
        """Encode the events that are still buffered."""
        self._encode_buffered()
        self._connection.execute("DROP TABLE buffered")
        for side in SIDES:
            self._connection.execute(f"DROP TABLE found_{side}; DROP TABLE others_{side}")
            self._connection.execute(
                f"CREATE OR REPLACE TABLE all_counts_{side} AS "
                f"SELECT number, sum(count)::BIGINT AS count FROM all_counts_{side} GROUP BY number"
            )

    def _encode_buffered(self) -> None:
        """Encode the events of small files that wait for more."""
        if self._buffered:
            self._encode("buffered")
            self._empty("buffered")
            self._buffered = 0

    def _encode(self, block: str) -> None:
        numbers, joins = "", ""
        for side in SIDES:
            self._add_ids(side)
            number = _hash_sql(f"{side}_id")
            if self._others[side]:
                joins += f" LEFT JOIN others_{side} ON others_{side}.id = {side}_id"
                number = f"coalesce(others_{side}.number, {number})"
            numbers += f"{number}, "
        self._connection.execute(
            f"INSERT INTO events SELECT {numbers}weight, timestamp, split, seq FROM {block}{joins}"
        )
        if self._context:
            self._connection.execute(f"INSERT INTO event_context SELECT seq{self._context} FROM {block}")

    def _add_ids(self, side: str) -> None:
        """Move new IDs from ``found_SIDE`` to ``ids_SIDE``, and to ``others_SIDE`` if their hash is taken."""
        self._connection.execute(
            f"CREATE TABLE new AS SELECT {_hash_sql('id')} AS number, id "
            f"FROM (SELECT DISTINCT id FROM found_{side}) ANTI JOIN ids_{side} USING (id)"
        )
        self._connection.execute(
            f"INSERT INTO others_{side} SELECT -{self._others[side]} - row_number() OVER (), id FROM new "
            "WHERE number IN (SELECT number FROM new GROUP BY number HAVING count(*) > 1) "
            f"OR number IN (SELECT number FROM ids_{side})"
        )
        self._connection.execute(
            f"INSERT INTO ids_{side} SELECT coalesce(o.number, new.number), id "
            f"FROM new LEFT JOIN others_{side} o USING (id)"
        )
        self._connection.execute("DROP TABLE new")
        self._connection.execute(
            f"INSERT INTO all_counts_{side} SELECT coalesce(o.number, {_hash_sql('id')}), count "
            f"FROM found_{side} LEFT JOIN others_{side} o USING (id)"
        )
        self._empty(f"found_{side}")
        self._known[side] = count_rows(self._connection, f"ids_{side}")
        self._others[side] = count_rows(self._connection, f"others_{side}")

    def _empty(self, table: str) -> None:
        """Delete the rows of ``table``, and what they take: TRUNCATE frees nothing in a database in memory."""
        self._connection.execute(f"CREATE OR REPLACE TABLE {table} AS FROM {table} LIMIT 0")


def _hash_sql(column: str) -> str:
    return f"(hash({column}) >> {64 - _HASH_BITS})::BIGINT"
