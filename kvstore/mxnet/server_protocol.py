"""What workers and servers agree on: which key, server and position hold a row, and the messages between them.

    for part in make_layout([table], servers=4)[0].split(rows_A): ...   # part.key, part.positions_A, part.order_A

A table is P shards of equal size, the last rows of which may be padding. Each shard is a key of MXNet's store, which
one server holds: a key must stay below 2^31 bytes, and each key costs a message in each pull and push, so there are as
few as that limit and the number of servers allow. Row r is in shard r mod P, at position r // P (modulo sharding).
Vocabularies are ordered by popularity, so each server gets an equal share of the popular rows, which are adjacent at
the start of a shard, where caches serve them well. MXNet could split each key over all servers instead. A table of K
keys would then take K·S messages.

Commands are JSON, signed (``signatures.py``), by ``"command"``:

- ``create``: the tables, the optimizer, the seed, the number of servers, the size of keys, a checkpoint or null, and
  the steps taken before
- ``load``: copy rows from that checkpoint
- ``reset``: initialize ``rows`` of ``table``, and zero their optimizer state
- ``assign``: copy the next push of each key of ``table`` into its rows, instead of updating them with it
- ``lr_factor``: multiply the learning rate by ``factor``, above 0 and at most 1, from now on
- ``save``: start writing a checkpoint into ``folder``, which must be below the job's folder of checkpoints
- ``status``: publish the state of the last save in the server's row of the status key

A status is ``{"state": "idle" | "running" | "saved" | "failed"}``, with a ``message`` where it failed, and with the
fields of ``PartResult`` and ``pause_seconds`` where it was saved.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.io.folder import Folder
from crossfade.kvstore.optimizer_spec import OptimizerSpec
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
        # It imports numba, which only processes that move rows need.
        from crossfade.kvstore.shard_grouping import group_by_shard

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


COMMAND_HEAD = 0
"""MXNet passes only this head to a controller; it drops commands with others silently."""
RESET_ROWS = 1 << 13
"""Rows in one reset command, which then takes about 100 kB."""
STATUS_LENGTH = 4096
"""float32 values per server in the status key: the length of a text, then its bytes, one in each value."""


def encode_command(name: str, **fields: Any) -> str:
    """Return the command ``name`` with its fields, as above."""
    return json.dumps({"command": name, **fields})


def create_command(
    tables: Sequence[TableSpec],
    optimizer: OptimizerSpec,
    seed: int,
    servers: int,
    max_key_bytes: int,
    checkpoint: str | None,
    first_step: int = 0,
) -> str:
    """Return the command with the layout of tables, the source of their rows, and the steps taken before."""
    return encode_command(
        "create",
        tables=[asdict(table) for table in tables],
        optimizer=asdict(optimizer),
        seed=seed,
        servers=servers,
        max_key_bytes=max_key_bytes,
        checkpoint=checkpoint,
        first_step=first_step,
    )


def reset_commands(table: str, rows_R: IntArray) -> Iterator[str]:
    """Yield the commands that reset ``rows_R`` of ``table``, at most ``RESET_ROWS`` in each."""
    for start in range(0, len(rows_R), RESET_ROWS):
        yield encode_command("reset", table=table, rows=rows_R[start : start + RESET_ROWS].tolist())


def is_below(folder: str, parent: str) -> bool:
    """Return whether ``folder``, a path or URI, is below the folder ``parent``."""
    inner, outer = Folder(folder), Folder(parent)
    if inner.path is not None and outer.path is not None:
        return Path(outer.path).resolve() in Path(inner.path).resolve().parents
    # Keys of S3 are no paths, but tools that copy them to a file system would follow '..'.
    return inner.uri.startswith(f"{outer.uri.rstrip('/')}/") and ".." not in inner.uri.split("/")


def decode_status(row_N: FloatArray) -> dict[str, Any]:
    """Decode a server's status from its row of the status key, float32 (STATUS_LENGTH,)."""
    text = row_N[1 : 1 + int(row_N[0])].astype(np.uint8).tobytes()
    status: dict[str, Any] = json.loads(text)
    return status


def encode_status(status: dict[str, Any], row_N: FloatArray) -> None:
    """Write ``status`` into a server's row of the status key, in place."""
    text = json.dumps(status).encode("ascii")
    assert len(text) < STATUS_LENGTH
    row_N[0] = len(text)
    row_N[1 : 1 + len(text)] = np.frombuffer(text, dtype=np.uint8)
