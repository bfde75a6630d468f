"""Modulo sharding: which key, server and position hold a row of a table.

MXNet splits every key into one contiguous range of rows per server, and a key must stay below 2^31 bytes. A table is
therefore K keys x S servers = P shards of equal size, the last rows of which may be padding. Row r is in shard r mod P,
at offset r // P. Vocabularies are ordered by popularity, so each server gets an equal share of the popular rows, which
are adjacent at the start of a shard, where caches serve them well.

    position of row r within its key:   (shard mod S)·shard_rows + r // P     with shard = r mod P, key = shard // S

    for part in make_layout([table], servers=4)[0].split(rows_A): ...   # part.key, part.positions_A, part.order_A
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from kvstore.arrays import IntArray
from kvstore.store import VALUE_BYTES, TableSpec

DEFAULT_KEY_BYTES = 2**30
MAX_KEY_BYTES = 2**31 - 2**20
ALL_REDUCE_KEY, STATUS_KEY = 0, 1


@dataclass(frozen=True)
class KeyRows:
    """The rows of a request that belong to one key.

    ``order_A`` is the index of each in the request, ``positions_A`` its row within the key. Both are int64, ordered by
    position; positions are sorted and unique if the request was.
    """

    key: int
    order_A: IntArray
    positions_A: IntArray


@dataclass(frozen=True)
class TableLayout:
    """The keys of one table: ``keys`` of them from number ``first_key`` on, each split into ``servers`` shards."""

    table: TableSpec
    servers: int
    first_key: int
    keys: int

    @property
    def num_shards(self) -> int:
        """The number of shards of the table."""
        return self.keys * self.servers

    @property
    def shard_rows(self) -> int:
        """Rows of one shard, padding included."""
        return -(-self.table.rows // self.num_shards)

    @property
    def key_shape(self) -> tuple[int, int]:
        """Rows and columns of one key in MXNet's store."""
        return self.shard_rows * self.servers, self.table.dim

    @property
    def key_numbers(self) -> range:
        """The numbers of this table's keys in MXNet's store."""
        return range(self.first_key, self.first_key + self.keys)

    def split(self, rows_A: IntArray) -> Iterator[KeyRows]:
        """Split a request of sorted, unique rows by key. Every key is yielded, even one without rows."""
        from kvstore.grouping import group_by_shard  # imports numba, which only processes that move rows need

        order_A, positions_A, starts_P = group_by_shard(rows_A, self.num_shards, self.servers, self.shard_rows)
        for index, key in enumerate(self.key_numbers):
            begin, end = starts_P[index * self.servers], starts_P[(index + 1) * self.servers]
            yield KeyRows(key, order_A[begin:end], positions_A[begin:end])

    def shard_of(self, key: int, server: int) -> int:
        """Return the number of the shard of ``key`` that ``server`` holds."""
        return (key - self.first_key) * self.servers + server

    def rows_of(self, shard: int) -> IntArray:
        """Return the table's rows in ``shard``, int64 (shard_rows,), sorted; rows >= ``table.rows`` are padding."""
        return np.arange(self.shard_rows, dtype=np.int64) * self.num_shards + shard


def make_layout(tables: Sequence[TableSpec], servers: int, max_key_bytes: int = DEFAULT_KEY_BYTES) -> list[TableLayout]:
    """Lay out ``tables`` on ``servers`` servers in keys of at most ``max_key_bytes``, or of one row per server.

    The first keys are reserved for all-reduce and for server status. Every worker and server computes the same layout
    from the same arguments.
    """
    assert 0 < max_key_bytes <= MAX_KEY_BYTES
    layouts = []
    next_key = STATUS_KEY + 1
    for table in tables:
        row_bytes = table.dim * VALUE_BYTES
        rows_per_shard = max(1, max_key_bytes // row_bytes // servers)
        keys = -(-table.rows // (rows_per_shard * servers))
        layouts.append(TableLayout(table, servers, next_key, keys))
        next_key += keys
    return layouts
