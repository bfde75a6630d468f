"""Where a row lies on the servers.

MXNet cuts every key into one contiguous range of rows for each server, and a key must stay below 2^31 bytes. A table
is therefore K keys x S servers = P equal ranges (padded to whole ranges), and rows are dealt to the ranges in turn, as
cards are: row r lies in range r mod P, at offset r // P. Vocabularies are ordered by popularity, so each server gets
its share of the popular rows, and within a range they stay together at its start, where caches like them.

    position in its key of row r:   (range mod S)·chunk + r // P        with range = r mod P, key = range // S
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit

from kvstore.arrays import IntArray
from kvstore.store import VALUE_BYTES, TableSpec

DEFAULT_KEY_BYTES = 2**30
MAX_KEY_BYTES = 2**31 - 2**20
ALL_REDUCE_KEY, STATUS_KEY = 0, 1


@njit(cache=True)
def _group_by_range(rows_A, shards):  # type: ignore[no-untyped-def]
    starts_P = np.zeros(shards + 1, dtype=np.int64)
    for a in range(rows_A.shape[0]):
        starts_P[rows_A[a] % shards + 1] += 1
    for p in range(shards):
        starts_P[p + 1] += starts_P[p]
    next_P = starts_P[:-1].copy()
    order_A = np.empty_like(rows_A)
    for a in range(rows_A.shape[0]):
        p = rows_A[a] % shards
        order_A[next_P[p]] = a
        next_P[p] += 1
    return order_A, starts_P


@dataclass(frozen=True)
class KeyRows:
    """The rows of a request that fall into one key.

    ``order_A`` says where each lies in the request; ``positions_A`` is the row within the key. Both int64, in the
    order of positions, which are sorted and unique where the request was.
    """

    key: int
    order_A: IntArray
    positions_A: IntArray


@dataclass(frozen=True)
class TableLayout:
    """The keys of one table: ``keys`` numbers from ``first_key`` on, each ``servers`` ranges of ``chunk`` rows."""

    table: TableSpec
    servers: int
    first_key: int
    keys: int

    @property
    def shards(self) -> int:
        """How many ranges the table is dealt to."""
        return self.keys * self.servers

    @property
    def shard_rows(self) -> int:
        """Rows of one range, padding included."""
        return -(-self.table.rows // self.shards)

    @property
    def key_shape(self) -> tuple[int, int]:
        """Rows and columns of one key, as the store sees it."""
        return self.shard_rows * self.servers, self.table.dim

    @property
    def key_numbers(self) -> range:
        """The store's numbers of this table's keys."""
        return range(self.first_key, self.first_key + self.keys)

    def split(self, rows_A: IntArray) -> Iterator[KeyRows]:
        """Deal a request of sorted, unique rows to the keys; every key comes, be it with no rows."""
        order_A, starts_P = _group_by_range(rows_A, self.shards)
        range_A = rows_A[order_A] % self.shards
        positions_A = (range_A % self.servers) * self.shard_rows + rows_A[order_A] // self.shards
        for index, key in enumerate(self.key_numbers):
            begin, end = starts_P[index * self.servers], starts_P[(index + 1) * self.servers]
            yield KeyRows(key, order_A[begin:end], positions_A[begin:end])

    def shard_of(self, key: int, server: int) -> int:
        """The range that ``server`` holds of ``key``."""
        return (key - self.first_key) * self.servers + server

    def rows_of(self, number: int) -> IntArray:
        """The table's rows in range ``number``, int64 (chunk,), in order.

        Padding shows as rows at or beyond ``table.rows``.
        """
        return np.arange(self.shard_rows, dtype=np.int64) * self.shards + number


def make_layout(tables: Sequence[TableSpec], servers: int, key_bytes: int = DEFAULT_KEY_BYTES) -> list[TableLayout]:
    """Lay ``tables`` out on ``servers`` servers in keys of at most ``key_bytes`` each, or of one row a server.

    The first keys are kept for sums over workers and for what servers tell. Every worker and server computes the same
    layout from the same arguments.
    """
    assert 0 < key_bytes <= MAX_KEY_BYTES
    layouts = []
    next_key = STATUS_KEY + 1
    for table in tables:
        row_bytes = table.dim * VALUE_BYTES
        rows_per_range = max(1, key_bytes // row_bytes // servers)
        keys = -(-table.rows // (rows_per_range * servers))
        layouts.append(TableLayout(table, servers, next_key, keys))
        next_key += keys
    return layouts
