"""Modulo sharding: which key, server and position hold a row of a table.

A table is P shards of equal size, the last rows of which may be padding. Each shard is a key of MXNet's store, which
one server holds: a key must stay below 2^31 bytes, and each key costs a message in each pull and push, so there are as
few as that limit and the number of servers allow. Row r is in shard r mod P, at position r // P. Vocabularies are
ordered by popularity, so each server gets an equal share of the popular rows, which are adjacent at the start of a
shard, where caches serve them well.

MXNet could split each key over all servers instead. A table of K keys would then take K·S messages.

    for part in make_layout([table], servers=4)[0].split(rows_A): ...   # part.key, part.positions_A, part.order_A
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from crossfade.base.arrays import IntArray
from crossfade.kvstore.store import VALUE_BYTES, TableSpec

DEFAULT_KEY_BYTES = 2**30
MAX_KEY_BYTES = 2**31 - 2**20
ALL_REDUCE_KEY = 0
_MXNET_PRIME = 9973
"""MXNet puts key k on server 9973·k mod S, unless it splits the key."""


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
    """The keys of one table: a shard each, numbered from ``first_key`` on, the same number on each server."""

    table: TableSpec
    servers: int
    first_key: int
    num_shards: int

    @property
    def shard_rows(self) -> int:
        """Rows of one shard, padding included."""
        return -(-self.table.rows // self.num_shards)

    @property
    def key_shape(self) -> tuple[int, int]:
        """Rows and columns of one key in MXNet's store."""
        return self.shard_rows, self.table.dim

    @property
    def keys_per_server(self) -> int:
        """Keys of the table that each server holds."""
        return self.num_shards // self.servers

    @property
    def key_numbers(self) -> range:
        """The numbers of this table's keys in MXNet's store."""
        return range(self.first_key, self.first_key + self.num_shards)

    def split(self, rows_A: IntArray) -> Iterator[KeyRows]:
        """Split a request of sorted, unique rows by key. Every key is yielded, even one without rows."""
        from crossfade.kvstore.grouping import group_by_shard  # imports numba, which only processes that move rows need

        order_A, positions_A, starts_P = group_by_shard(rows_A, self.num_shards)
        for key, (begin, end) in zip(self.key_numbers, pairwise(starts_P), strict=True):
            yield KeyRows(key, order_A[begin:end], positions_A[begin:end])

    def shard_of(self, key: int) -> int:
        """Return the number of the shard that ``key`` is."""
        return key - self.first_key

    def rows_of(self, shard: int) -> IntArray:
        """Return the table's rows in ``shard``, int64 (shard_rows,), sorted; rows >= ``table.rows`` are padding."""
        return np.arange(self.shard_rows, dtype=np.int64) * self.num_shards + shard


def server_of(key: int, servers: int) -> int:
    """Return the server that holds ``key``."""
    return key * _MXNET_PRIME % servers


def status_key(server: int, servers: int) -> int:
    """Return the number of the key in which ``server`` publishes its status; they follow ``ALL_REDUCE_KEY``."""
    return next(key for key in range(1, servers + 1) if server_of(key, servers) == server)


def make_layout(tables: Sequence[TableSpec], servers: int, max_key_bytes: int = DEFAULT_KEY_BYTES) -> list[TableLayout]:
    """Lay out ``tables`` on ``servers`` servers in keys of at most ``max_key_bytes``, or of one row.

    The first keys are reserved for all-reduce and for the status of servers. Every worker and server computes the same
    layout from the same arguments.
    """
    assert 0 < max_key_bytes <= MAX_KEY_BYTES
    assert 0 < servers < _MXNET_PRIME
    layouts = []
    next_key = servers + 1
    for table in tables:
        rows_per_key = max(1, max_key_bytes // (table.dim * VALUE_BYTES))
        keys_per_server = -(-table.rows // (rows_per_key * servers))
        layouts.append(TableLayout(table, servers, next_key, keys_per_server * servers))
        next_key += keys_per_server * servers
    return layouts
