"""The servers' and the scheduler's side of ``dist_sync``: a main of our own in place of MXNet's.

MXNet's stock server unpickles whatever the network sends. This one takes JSON commands, and updates rows in place on
the store's own memory with the kernels of ``optimizers.py``. An error in either ends the process at once with the
error reported: the store itself would swallow it, and the workers would take the step for done.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NoReturn

import numpy as np

from kvstore.arrays import FloatArray, IntArray
from kvstore.checkpoint.format import TableShard
from kvstore.checkpoint.reader import Checkpoint, open_checkpoint
from kvstore.checkpoint.snapshot import Snapshot, compile_kernels
from kvstore.errors import CheckpointError, StoreError
from kvstore.layout import ALL_REDUCE_KEY, STATUS_KEY, TableLayout, make_layout
from kvstore.local import init_rows_at
from kvstore.memory import advise_huge_pages, release_pages
from kvstore.mxnet.commands import _encode_status
from kvstore.mxnet.imports import dense_view, import_mxnet, row_sparse_ids
from kvstore.optimizers import LazyOptimizer, OptimizerSpec, make_optimizer
from kvstore.philox import init_rows
from kvstore.stats import UpdateStats
from kvstore.store import TableSpec

_MESSAGE_LENGTH = 600


class _KeyShard:
    """One server's rows of one key: its weights on the store's memory, and their optimizer."""

    def __init__(self, weight: Any, layout: TableLayout, key: int, server: int, optimizer: OptimizerSpec) -> None:
        table = layout.table
        if weight.shape[1] != table.dim or len(row_sparse_ids(weight)) != layout.shard_rows:
            raise StoreError(
                f"key {key}: the store holds {weight.shape} where {(layout.shard_rows, table.dim)} was laid out"
            )
        self._store_reference = weight
        self._layout = layout
        self.number = layout.shard_of(key, server)
        self.table, self.dim = table.name, table.dim
        self.weights_ND: FloatArray = dense_view(weight, (layout.shard_rows, table.dim), np.float32)
        # MXNet's zeros lie on small pages: they go, and what is written next comes on huge ones.
        advise_huge_pages(self.weights_ND)
        release_pages(self.weights_ND)
        self.optimizer: LazyOptimizer = make_optimizer(optimizer, layout.shard_rows, table.dim)

    def fill(self, seed: int, first_row: int) -> None:
        """Give the table's rows from ``first_row`` on their initial values, as far as they are here."""
        table = self._layout.table
        rows_N = self._layout.rows_of(self.number)
        rows_N = rows_N[np.searchsorted(rows_N, first_row) :]
        if len(rows_N):
            init_rows(self.weights_ND[-len(rows_N) :], rows_N, seed=seed, table=table.name, scale=table.scale)

    def reset_rows(self, seed: int, rows_R: IntArray) -> None:
        """Give those of the table's ``rows_R`` that are here their initial values and fresh optimizer state."""
        here_R = rows_R[rows_R % self._layout.shards == self.number]
        places_R = here_R // self._layout.shards
        init_rows_at(self.weights_ND, places_R, here_R, self._layout.table, seed)
        self.optimizer.reset(places_R)

    def as_range(self) -> TableShard:
        """The same rows, weights and state, as a checkpoint takes and gives them."""
        table = self._layout.table
        arrays = {"weights": self.weights_ND, **self.optimizer.state}
        return TableShard(table.name, table.rows, self.number, self._layout.shards, arrays)


class RowServer:
    """What one server does: it obeys commands, and on each key's merged push it updates its rows."""

    def __init__(self, store: Any) -> None:
        """Serve the rows of ``store``, a connected ``dist_sync`` handle."""
        self.work = UpdateStats()
        self._store = store
        self._layouts: dict[int, TableLayout] = {}
        self._shards: dict[int, _KeyShard] = {}
        self._optimizer = OptimizerSpec()
        self._seed = 0
        self._servers = 0
        self._checkpoint: Checkpoint | None = None
        self._snapshot: Snapshot | None = None
        self._status: dict[str, Any] = {"state": "idle"}
        self._status_row: tuple[Any, FloatArray] | None = None
        self._commands = {
            "create": self._create,
            "load": self._load,
            "afresh": self._start_afresh,
            "rate": self._set_rate,
            "save": self._save,
            "status": self._publish_status,
        }

    def command(self, body: str) -> None:
        """Obey one JSON command.

        Raises:
            StoreError: it is not one of ours.
            CheckpointError: the checkpoint to start from is damaged, or not one of these tables.
        """
        try:
            message = json.loads(body)
        except ValueError as error:
            raise StoreError(f"a command that is not JSON came over the network: {body[:80]!r}") from error
        if not isinstance(message, dict) or message.get("command") not in self._commands:
            raise StoreError(f"an unknown command came over the network: {body[:80]!r}")
        self._commands[message["command"]](message)

    def _create(self, message: dict[str, Any]) -> None:
        """Learn which tables there will be, and which rows a checkpoint will bring."""
        compile_kernels()
        tables = [TableSpec(**table) for table in message["tables"]]
        self._optimizer = OptimizerSpec(**message["optimizer"])
        self._seed = message["seed"]
        self._servers = message["servers"]
        for layout in make_layout(tables, self._servers, message["key_bytes"]):
            self._layouts.update(dict.fromkeys(layout.key_numbers, layout))
        if message["checkpoint"] is not None:
            self._checkpoint = open_checkpoint(message["checkpoint"])
            self._checkpoint.check_fits(tables, self._optimizer)

    def _load(self, _message: dict[str, Any]) -> None:
        """Take this server's rows and their state from the checkpoint."""
        assert self._checkpoint is not None
        self._checkpoint.load([shard.as_range() for shard in self._shards.values()])

    def _start_afresh(self, message: dict[str, Any]) -> None:
        """Give some rows, as far as they are here, the values and the state of rows that were never updated."""
        rows_R = np.array(message["rows"], dtype=np.int64)
        for shard in self._shards.values():
            if shard.table == message["table"]:
                shard.reset_rows(self._seed, rows_R)

    def _set_rate(self, message: dict[str, Any]) -> None:
        """Multiply the learning rate of the steps to come."""
        for shard in self._shards.values():
            shard.optimizer.lr_factor = float(message["factor"])

    def _save(self, message: dict[str, Any]) -> None:
        """Begin to write this server's rows. A failure is told when asked for: training goes on without it."""
        ranges = [shard.as_range() for shard in self._shards.values()]
        try:
            self._snapshot = Snapshot(message["to"], self._store.rank, self._servers, ranges)
            self._status = {"state": "running"}
        except (CheckpointError, OSError) as error:
            self._status = {"state": "failed", "message": str(error)[:_MESSAGE_LENGTH]}

    def _publish_status(self, _message: dict[str, Any]) -> None:
        """Write how the save goes to where workers can pull it."""
        assert self._status_row is not None
        if self._snapshot is not None:
            self._look_at(self._snapshot)
        _encode_status(self._status, self._status_row[1])

    def _look_at(self, snapshot: Snapshot) -> None:
        try:
            written = snapshot.poll()
        except CheckpointError as error:
            self._status = {"state": "failed", "message": str(error)[:_MESSAGE_LENGTH]}
        else:
            if written is None:
                return
            self._status = {"state": "saved", "pause_seconds": snapshot.pause_seconds, **asdict(written)}
        snapshot.close()
        self._snapshot = None

    def update(self, key: int, gradient: Any, weight: Any) -> None:
        """Apply the push of a key, summed over the workers, to this server's rows of it.

        The first push of a key, which has no rows, hands over the store's memory: rows that no checkpoint brings are
        filled then.
        """
        gradient.wait_to_read()
        weight.wait_to_read()
        if key == ALL_REDUCE_KEY:
            dense_view(weight, weight.shape, np.float32)[:] = dense_view(gradient, weight.shape, np.float32)
            return
        if key == STATUS_KEY:
            self._status_row = weight, dense_view(weight, weight.shape, np.float32).ravel()
            return
        shard = self._shards.get(key)
        if shard is None:
            layout = self._layouts[key]
            shard = self._shards[key] = _KeyShard(weight, layout, key, self._store.rank, self._optimizer)
            shard.fill(self._seed, self._checkpoint.rows(layout.table.name) if self._checkpoint else 0)
            self.work.add_arrays(shard.table, shard.as_range().arrays)
        ids_A = row_sparse_ids(gradient)
        if len(ids_A) == 0:
            return
        with self.work.timed_update(shard.table, len(ids_A)):
            if self._snapshot is not None:
                self._snapshot.before_update(shard.table, shard.number, ids_A)
            shard.optimizer.update(shard.weights_ND, ids_A, dense_view(gradient, (len(ids_A), shard.dim), np.float32))

    @property
    def rank(self) -> int:
        """The server's number. It has one once all of the job have joined, as they have when a command comes."""
        return int(self._store.rank)

    def close(self) -> None:
        """Stop a save that is still under way."""
        if self._snapshot is not None:
            self._snapshot.close()


def run_role(fail: Callable[[BaseException], NoReturn], joined: Callable[[RowServer], None] = lambda _: None) -> None:
    """Run the scheduler or a server, as ``DMLC_ROLE`` says, until the workers are done.

    ``joined`` gets the server when its first command has come; the scheduler gets none.

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

    waiting = [joined]

    def control(head: int, body: bytes, _handle: Any) -> None:
        try:
            while waiting:
                waiting.pop()(server)
            server.command(body.decode("utf-8", errors="replace"))
            # MXNet takes an updater only once its server runs, hence from here.
            store._set_updater(update)
        except BaseException as error:
            fail(error)

    controller = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(control)
    from mxnet.base import _LIB, check_call

    check_call(_LIB.MXKVStoreRunServer(store.handle, controller, None))
    server.close()
