"""The servers' and the scheduler's side of ``dist_sync``: a main of our own in place of MXNet's.

MXNet's stock server unpickles whatever the network sends. This one takes JSON commands, and updates rows in place on
the store's own memory with the kernels of ``optimizers.py``. An error in either ends the process at once with the
error reported: the store itself would swallow it, and the workers would take the step for done.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, NoReturn

import numpy as np

from kvstore.arrays import FloatArray
from kvstore.errors import StoreError
from kvstore.layout import SUM_KEY, TableLayout, make_layout
from kvstore.mxnet_import import dense_view, import_mxnet, row_sparse_ids
from kvstore.optimizers import LazyOptimizer, OptimizerSpec, make_optimizer
from kvstore.philox import fill_rows
from kvstore.store import TableSpec

COMMAND_HEAD = 0
"""The only head that MXNet hands to a controller; it drops the others silently."""


def create_command(
    tables: Sequence[TableSpec], optimizer: OptimizerSpec, seed: int, servers: int, key_bytes: int
) -> str:
    """The command, JSON, that tells each server which tables it will hold a part of."""
    return json.dumps(
        {
            "command": "create",
            "tables": [asdict(table) for table in tables],
            "optimizer": asdict(optimizer),
            "seed": seed,
            "servers": servers,
            "key_bytes": key_bytes,
        }
    )


class _Shard:
    """One server's rows of one key: its weights on the store's memory, and their optimizer."""

    def __init__(self, weight: Any, layout: TableLayout, key: int, server: int, optimizer: OptimizerSpec, seed: int):
        table = layout.table
        if weight.shape[1] != table.dim or len(row_sparse_ids(weight)) != layout.chunk:
            raise StoreError(
                f"key {key}: the store holds {weight.shape} where {(layout.chunk, table.dim)} was laid out"
            )
        self._store_reference = weight
        self.dim = table.dim
        self.weights_ND: FloatArray = dense_view(weight, (layout.chunk, table.dim), np.float32)
        self.optimizer: LazyOptimizer = make_optimizer(optimizer, layout.chunk, table.dim)
        rows_N = layout.held_rows(key, server)
        fill_rows(self.weights_ND, rows_N, seed=seed, table=table.name, scale=table.scale)


class RowServer:
    """What one server does: on the command ``create`` it learns its tables, on each key's merged push it updates."""

    def __init__(self, store: Any) -> None:
        """Serve the rows of ``store``, a connected ``dist_sync`` handle."""
        self._store = store
        self._layouts: dict[int, TableLayout] = {}
        self._shards: dict[int, _Shard] = {}
        self._optimizer = OptimizerSpec()
        self._seed = 0

    def command(self, body: str) -> None:
        """Obey one JSON command.

        Raises:
            StoreError: it is not one of ours.
        """
        try:
            message = json.loads(body)
        except ValueError as error:
            raise StoreError(f"a command that is not JSON came over the network: {body[:80]!r}") from error
        if not isinstance(message, dict) or message.get("command") != "create":
            raise StoreError(f"an unknown command came over the network: {body[:80]!r}")
        tables = [TableSpec(**table) for table in message["tables"]]
        self._optimizer = OptimizerSpec(**message["optimizer"])
        self._seed = message["seed"]
        for layout in make_layout(tables, message["servers"], message["key_bytes"]):
            self._layouts.update(dict.fromkeys(layout.key_numbers, layout))

    def update(self, key: int, gradient: Any, weight: Any) -> None:
        """Apply the push of a key, summed over the workers, to this server's rows of it.

        The first push of a key, which has no rows, hands over the store's memory: it is filled then.
        """
        gradient.wait_to_read()
        weight.wait_to_read()
        if key == SUM_KEY:
            dense_view(weight, weight.shape, np.float32)[:] = dense_view(gradient, weight.shape, np.float32)
            return
        shard = self._shards.get(key)
        if shard is None:
            shard = _Shard(weight, self._layouts[key], key, self._store.rank, self._optimizer, self._seed)
            self._shards[key] = shard
        ids_A = row_sparse_ids(gradient)
        if len(ids_A):
            shard.optimizer.update(shard.weights_ND, ids_A, dense_view(gradient, (len(ids_A), shard.dim), np.float32))


def run_role(fail: Callable[[BaseException], NoReturn]) -> None:
    """Run the scheduler or a server, as ``DMLC_ROLE`` says, until the workers are done.

    ``fail`` is called with an error in a command or an update; it must report it and end the process, since neither
    may return to MXNet as if it were done.
    """
    mx = import_mxnet()
    store = mx.kv.create("dist_sync")
    server = RowServer(store)

    def update(key: int, gradient: Any, weight: Any) -> None:
        try:
            server.update(key, gradient, weight)
        except BaseException as error:
            fail(error)

    def control(head: int, body: bytes, _handle: Any) -> None:
        try:
            server.command(body.decode("utf-8", errors="replace"))
            # MXNet takes an updater only once its server runs, hence from here.
            store._set_updater(update)
        except BaseException as error:
            fail(error)

    controller = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(control)
    from mxnet.base import _LIB, check_call

    check_call(_LIB.MXKVStoreRunServer(store.handle, controller, None))
