"""The server's side of ``dist_sync``, in place of the main function of MXNet.

MXNet's stock server unpickles whatever the network sends. This one takes JSON commands that a worker of the job
has signed (``signatures.py``), ignores all others, and updates rows in place in the store's own memory with the
kernels of ``kvstore/optimizers.py``. An error in a command or an update ends the process at once: MXNet would swallow
it, and workers would assume that the step was applied.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any, NoReturn

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.errors import CheckpointError, DivergedError, StoreError
from crossfade.kvstore.checkpoint.checkpoint import Checkpoint, open_checkpoint
from crossfade.kvstore.checkpoint.format import WEIGHTS, TableShard
from crossfade.kvstore.checkpoint.snapshot import Snapshot, compile_kernels
from crossfade.kvstore.memory import advise_huge_pages, release_pages
from crossfade.kvstore.mxnet.imports import dense_view, import_mxnet, row_sparse_ids
from crossfade.kvstore.mxnet.ports import filter_next_listener, private_sockets
from crossfade.kvstore.mxnet.scheduler import Controller, run_until_done
from crossfade.kvstore.mxnet.server_protocol import (
    ALL_REDUCE_KEY,
    TableLayout,
    encode_status,
    is_below,
    make_layout,
    status_key,
)
from crossfade.kvstore.mxnet.signatures import CommandVerifier
from crossfade.kvstore.optimizer_spec import OptimizerSpec
from crossfade.kvstore.optimizers import LazyOptimizer, make_optimizer, name_divergence
from crossfade.kvstore.philox import init_rows, init_rows_at
from crossfade.kvstore.stats import UpdateStats
from crossfade.kvstore.store import TableSpec

_MAX_MESSAGE_LENGTH = 600
_logger = logging.getLogger(__name__)


class _KeyShard:
    """One server's rows of one key: its weights in the store's memory, and their optimizer."""

    def __init__(self, weight: Any, layout: TableLayout, key: int, optimizer: OptimizerSpec) -> None:
        table = layout.table
        if weight.shape[1] != table.dim or len(row_sparse_ids(weight)) != layout.shard_rows:
            raise StoreError(
                f"key {key}: MXNet's array has shape {weight.shape}, expected {(layout.shard_rows, table.dim)}"
            )
        # Keeps the memory that weights_ND points to alive.
        self._store_reference = weight
        self._layout = layout
        self.number = layout.shard_of(key)
        self.table, self.dim = table, table.dim
        self.assigns_next = False
        """Whether the next push replaces rows: those that begin near others at a warm start."""
        self.steps = -1
        """Steps taken since the tables were created. The first push, which creates the key, is none."""
        self.weights_ND: FloatArray = dense_view(weight, (layout.shard_rows, table.dim), np.float32)
        # MXNet's zeros are on small pages. Release them, so that later writes fault in huge ones.
        advise_huge_pages(self.weights_ND)
        release_pages(self.weights_ND)
        self.optimizer: LazyOptimizer = make_optimizer(optimizer, layout.shard_rows, table.dim)

    def init_rows_from(self, seed: int, first_row: int) -> None:
        """Initialize the rows of this shard from the table's ``first_row`` on."""
        rows_N = self._layout.rows_of(self.number)
        rows_N = rows_N[np.searchsorted(rows_N, first_row) :]
        if len(rows_N):
            out_ND = self.weights_ND[-len(rows_N) :]
            init_rows(out_ND, rows_N, seed=seed, table=self.table.name, std=self.table.init_std)

    def reset_rows(self, seed: int, rows_R: IntArray) -> None:
        """Initialize the rows of ``rows_R`` that this shard has, and zero their optimizer state."""
        local_R = rows_R[rows_R % self._layout.num_shards == self.number]
        positions_R = local_R // self._layout.num_shards
        init_rows_at(self.weights_ND, positions_R, local_R, seed=seed, table=self.table.name, std=self.table.init_std)
        self.optimizer.reset(positions_R)

    def assign(self, positions_A: IntArray, values_AD: FloatArray) -> None:
        """Copy ``values_AD`` to the rows at ``positions_A``; the push after this one is a step again."""
        self.weights_ND[positions_A] = values_AD
        self.assigns_next = False

    def row_of(self, position: int) -> int:
        """Return the table's row at ``position`` of this shard."""
        return position * self._layout.num_shards + self.number

    def as_table_shard(self) -> TableShard:
        """Return the same memory, weights and optimizer state, in the form that checkpoints use."""
        arrays = {WEIGHTS: self.weights_ND, **self.optimizer.state}
        return TableShard(self.table.name, self.table.rows, self.number, self._layout.num_shards, arrays)


class RowServer:
    """Executes commands, and applies each key's merged push to this server's rows."""

    def __init__(self, store: Any, verifier: CommandVerifier, checkpoints: str) -> None:
        """Serve the rows of ``store``, a connected ``dist_sync`` handle.

        Args:
            store: the handle.
            verifier: rejects commands that no worker of this job has sent.
            checkpoints: the job's folder of checkpoints, the only one into which tables are saved.
        """
        self.stats = UpdateStats()
        self.verifier = verifier
        self._store, self._checkpoints = store, checkpoints
        self._layouts: dict[int, TableLayout] = {}
        self._shards: dict[int, _KeyShard] = {}
        self._optimizer = OptimizerSpec()
        self._seed = 0
        self._first_step = 0
        self._servers = 0
        self._checkpoint: Checkpoint | None = None
        self._snapshot: Snapshot | None = None
        self._status: dict[str, Any] = {"state": "idle"}
        self._status_row: tuple[Any, FloatArray] | None = None
        self._commands = {
            "create": self._create,
            "load": self._load,
            "reset": self._reset_rows,
            "assign": self._assign_next,
            "lr_factor": self._set_lr_factor,
            "save": self._save,
            "status": self._publish_status,
        }

    def command(self, body: str) -> None:
        """Execute one JSON command, which has been verified.

        Raises:
            StoreError: it is not a command of ``server_protocol.py``, or not one that the job can send.
            CheckpointError: the checkpoint to load is corrupt, or incompatible with the tables.
        """
        try:
            message = json.loads(body)
        except ValueError as error:
            raise StoreError(f"received a command that is not JSON: {body[:80]!r}") from error
        if not isinstance(message, dict) or message.get("command") not in self._commands:
            raise StoreError(f"received an unknown command: {body[:80]!r}")
        self._commands[message["command"]](message)

    def _create(self, message: dict[str, Any]) -> None:
        compile_kernels()
        tables = [TableSpec(**table) for table in message["tables"]]
        self._optimizer = OptimizerSpec(**message["optimizer"])
        self._seed = message["seed"]
        self._first_step = message["first_step"]
        self._servers = message["servers"]
        for layout in make_layout(tables, self._servers, message["max_key_bytes"]):
            self._layouts.update(dict.fromkeys(layout.key_numbers, layout))
        if message["checkpoint"] is not None:
            self._checkpoint = open_checkpoint(message["checkpoint"])
            self._checkpoint.check_fits(tables, self._optimizer)
        _logger.info("holding shards of %s", ", ".join(table.name for table in tables))

    def _load(self, _message: dict[str, Any]) -> None:
        assert self._checkpoint is not None
        self._checkpoint.load(self._table_shards())
        _logger.info("loaded the rows of this server from %s", self._checkpoint.uri)

    def _table_shards(self) -> list[TableShard]:
        return [shard.as_table_shard() for shard in self._shards.values()]

    def _reset_rows(self, message: dict[str, Any]) -> None:
        rows_R = np.array(message["rows"], dtype=np.int64)
        for shard in self._shards.values():
            if shard.table.name == message["table"]:
                shard.reset_rows(self._seed, rows_R)

    def _assign_next(self, message: dict[str, Any]) -> None:
        for shard in self._shards.values():
            if shard.table.name == message["table"]:
                shard.assigns_next = True

    def _set_lr_factor(self, message: dict[str, Any]) -> None:
        factor = float(message["factor"])
        if not 0 < factor <= 1:  # nor NaN
            raise StoreError(f"received the LR factor {factor}; every schedule is above 0 and at most 1")
        for shard in self._shards.values():
            shard.optimizer.lr_factor = factor

    def _save(self, message: dict[str, Any]) -> None:
        """Start writing this server's rows. A failure is reported by status: training continues without the save."""
        if not is_below(message["folder"], self._checkpoints):
            raise StoreError(f"received a save to {message['folder']}, which is not below {self._checkpoints}")
        self._snapshot = Snapshot(message["folder"], self._store.rank, self._servers, self._table_shards())
        self._status = {"state": "running"}

    def _publish_status(self, _message: dict[str, Any]) -> None:
        """Write the status of the save into the status key, from which workers pull it."""
        assert self._status_row is not None
        if self._snapshot is not None:
            self._poll(self._snapshot)
        encode_status(self._status, self._status_row[1])

    def _poll(self, snapshot: Snapshot) -> None:
        try:
            written = snapshot.poll()
        except CheckpointError as error:
            self._status = {"state": "failed", "message": str(error)[:_MAX_MESSAGE_LENGTH]}
            _logger.warning("the save failed: %s", error)
        else:
            if written is None:
                return
            self._status = {"state": "saved", "pause_seconds": snapshot.pause_seconds, **asdict(written)}
            _logger.info("wrote %s: %d bytes in %.1f s", written.part.name, written.bytes, written.seconds)
        snapshot.close()
        self._snapshot = None

    def update(self, key: int, gradient: Any, weight: Any) -> None:
        """Apply a key's push, summed over the workers, to this server's rows of it.

        The first push of a key, which has no rows, provides the store's memory: rows that no checkpoint has are
        initialized then.
        """
        gradient.wait_to_read()
        weight.wait_to_read()
        if key == ALL_REDUCE_KEY:
            dense_view(weight, weight.shape, np.float32)[:] = dense_view(gradient, weight.shape, np.float32)
            return
        if key not in self._layouts:
            if key == status_key(self.rank, self._servers):
                self._status_row = weight, dense_view(weight, weight.shape, np.float32)
            return
        shard = self._shards.get(key) or self._add_shard(key, weight)
        ids_A = row_sparse_ids(gradient)
        if shard.assigns_next:
            shard.assign(ids_A, dense_view(gradient, (len(ids_A), shard.dim), np.float32))
            return
        shard.steps += 1
        if len(ids_A) == 0:
            return
        with self.stats.timed_update(shard.table.name, len(ids_A)):
            if self._snapshot is not None:
                self._snapshot.before_update(shard.table.name, shard.number, ids_A)
            gradient_AD = dense_view(gradient, (len(ids_A), shard.dim), np.float32)
            try:
                with name_divergence(shard.table.name, shard.row_of):
                    shard.optimizer.update(shard.weights_ND, ids_A, gradient_AD)
            except DivergedError as error:
                raise DivergedError(f"step {self._first_step + shard.steps}: ", error.args, row=error.row) from error

    def _add_shard(self, key: int, weight: Any) -> _KeyShard:
        layout = self._layouts[key]
        shard = self._shards[key] = _KeyShard(weight, layout, key, self._optimizer)
        shard.init_rows_from(self._seed, self._checkpoint.rows(layout.table.name) if self._checkpoint else 0)
        self.stats.add_arrays(shard.table.name, shard.as_table_shard().arrays)
        return shard

    @property
    def rank(self) -> int:
        """The server's number. It is valid once all processes have joined, as they have when a command arrives."""
        return int(self._store.rank)

    def close(self) -> None:
        """Abandon a save that is in progress."""
        if self._snapshot is not None:
            self._snapshot.close()


def run_server(
    secret: str,
    hosts: Sequence[str],
    checkpoints: str,
    fail: Callable[[BaseException], NoReturn],
    on_joined: Callable[[RowServer], None],
) -> None:
    """Serve the rows of this process until the workers are done.

    Args:
        secret: what the workers of this generation sign commands with.
        hosts: the addresses from which others may connect; none: any.
        checkpoints: the job's folder of checkpoints.
        fail: called with an error in a command or an update. It must report it and end the process: if it returned,
            MXNet would treat the command or the update as executed.
        on_joined: called with the server when its first command arrives.
    """
    store = import_mxnet().kv.create("dist_sync")
    server = RowServer(store, CommandVerifier(secret), checkpoints)

    def update(key: int, gradient: Any, weight: Any) -> None:
        try:
            server.update(key, gradient, weight)
        except BaseException as error:
            fail(error)

    joining = ExitStack()
    joining.enter_context(private_sockets())
    joining.callback(on_joined, server)
    filter_next_listener(hosts)
    # MXNet accepts an updater only after its server has started, so each command sets it.
    run_until_done(store, controller(server, joining.close, lambda: store._set_updater(update), fail))
    server.close()


def controller(
    server: RowServer, before: Callable[[], None], after: Callable[[], None], fail: Callable[[BaseException], NoReturn]
) -> Controller:
    """Return what executes the commands that reach ``server`` from workers of this job, and ignores all others.

    ``before`` and ``after`` are called around each command. ``fail`` is as in ``run_server``.
    """

    def control(_head: int, body: bytes, _handle: Any) -> None:
        try:
            command = server.verifier.verify(body)
            if command is not None:
                before()
                server.command(command)
                after()
        except BaseException as error:
            fail(error)

    return control
