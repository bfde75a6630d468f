"""The worker's side of ``dist_sync``: pull and push active rows of tables that servers hold.

``MXNetStore`` is the store; a ``WorkerKey`` is one key of a table as a worker uses it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.kvstore.mxnet.imports import (
    dense_view,
    free_store,
    import_mxnet,
    int64_array,
    row_sparse_from,
    row_sparse_zeros,
)
from crossfade.kvstore.mxnet.ports import filter_next_listener, private_sockets
from crossfade.kvstore.mxnet.server_protocol import (
    ALL_REDUCE_KEY,
    COMMAND_HEAD,
    DEFAULT_KEY_BYTES,
    STATUS_LENGTH,
    TableLayout,
    create_command,
    decode_status,
    encode_command,
    make_layout,
    reset_commands,
    status_key,
)
from crossfade.kvstore.mxnet.signatures import CommandSigner
from crossfade.kvstore.optimizer_spec import OptimizerSpec
from crossfade.kvstore.sharded.kernels import gather_rows, scatter_rows
from crossfade.kvstore.store import (
    MAX_ALL_REDUCE_LENGTH,
    NO_RESETS,
    RowGradient,
    SaveResult,
    TableSpec,
    check_rows,
)

SPLIT_VARIABLE = "MXNET_KVSTORE_BIGARRAY_BOUND"
SPLIT_NEVER = str(2**31 - 1)
"""Makes MXNet keep each key on one server, however large, as ``server_protocol.py`` assumes."""
MAX_KEYS_CREATED_TOGETHER = 4
"""Bounds the memory of rank 0 at the start: 20 bytes a row of each of these keys, for IDs and messages."""


class MXNetStore:
    """The row store of one worker of a distributed job. Methods are as in ``RowStore``.

    The process's ``DMLC_*`` environment has the address of the scheduler. Each key of each table is pushed in every
    step, even without rows, since servers update a key once all workers have pushed it.
    """

    def __init__(self, secret: str, hosts: Sequence[str], max_key_bytes: int = DEFAULT_KEY_BYTES) -> None:
        """Join the job, and sign commands with ``secret``; return when all its processes have joined.

        Others may connect from ``hosts``; none: from anywhere.

        Raises:
            MissingExtraError: MXNet is not installed.
        """
        os.environ[SPLIT_VARIABLE] = SPLIT_NEVER
        self._mx = import_mxnet()
        filter_next_listener(hosts)
        with private_sockets():
            self._store: Any = self._mx.kv.create("dist_sync")
        self._signer = CommandSigner(secret)
        self._max_key_bytes = max_key_bytes
        self._layouts: dict[str, TableLayout] = {}
        self._keys: dict[int, WorkerKey] = {}
        self._lr_factor = 1.0
        self.first_step = 0
        self._servers = int(os.environ["DMLC_NUM_SERVER"])
        self.rank: int = self._store.rank
        self.workers: int = self._store.num_workers

    def create(
        self,
        tables: Sequence[TableSpec],
        optimizer: OptimizerSpec,
        seed: int,
        checkpoint: str | None = None,
        reset_rows: Mapping[str, IntArray] = NO_RESETS,
    ) -> None:
        """Create the tables on the servers, which initialize rows in place and load the rows of ``checkpoint``.

        Few keys are created at a time, on different servers, since MXNet copies the rows of a key several times then.
        """
        sizes = self._servers, self._max_key_bytes
        self._command(create_command(tables, optimizer, seed, *sizes, checkpoint, self.first_step))
        self.barrier()
        self._store.init(ALL_REDUCE_KEY, self._mx.nd.zeros((self.workers, 3, MAX_ALL_REDUCE_LENGTH)))
        self.all_reduce(np.zeros(1))
        for server in range(self._servers):
            self._store.init(status_key(server, self._servers), self._mx.nd.zeros(STATUS_LENGTH))
            self._store.push(status_key(server, self._servers), self._mx.nd.zeros(STATUS_LENGTH))
        for layout in make_layout(tables, self._servers, self._max_key_bytes):
            self._layouts[layout.table.name] = layout
            together = min(self._servers, MAX_KEYS_CREATED_TOGETHER)
            for start in range(0, layout.num_shards, together):
                self._create_keys(layout, layout.key_numbers[start : start + together])
        self.barrier()
        if checkpoint is not None:
            self._command(encode_command("load"))
            self.barrier()
        if reset_rows:
            self._reset_rows(reset_rows)

    def _create_keys(self, layout: TableLayout, keys: Sequence[int]) -> None:
        """Create keys of zeros, which servers replace.

        MXNet initializes a key with the array of rank 0 only, and keeps that array alive until the key's first push,
        which ``WorkerKey`` does; a pull before then overwrites it.
        """
        stored = self.rank == 0
        self._store.init(list(keys), [row_sparse_zeros(layout.key_shape, stored=stored) for _ in keys])
        for key in keys:
            self._keys[key] = WorkerKey(self._store, key, layout.key_shape)
        self._mx.nd.waitall()

    def _reset_rows(self, reset_rows: Mapping[str, IntArray]) -> None:
        for name, rows_R in reset_rows.items():
            check_rows(self._layouts[name].table, rows_R)
            for command in reset_commands(name, rows_R):
                self._command(command)
        self.barrier()

    def assign(self, table: str, rows_A: IntArray, values_AD: FloatArray) -> None:
        """Replace the values of rows: servers copy the next push to the table's keys instead of applying it.

        As in ``set_lr_factor``, servers cannot apply that push before the command: this worker has not pushed yet.
        """
        if self.rank == 0:
            self._mx.nd.waitall()
            self._command(encode_command("assign", table=table))
            self.push({table: RowGradient(rows_A, values_AD)})
        else:
            self.push({table: RowGradient(rows_A[:0], values_AD[:0])})

    def _command(self, body: str) -> None:
        """Send a command from rank 0 to all servers; return when all have executed it."""
        if self.rank == 0:
            self._store._send_command_to_servers(COMMAND_HEAD, self._signer.sign(body))

    def save(self, folder: str) -> None:
        """Start writing all tables and optimizer state into the checkpoint folder ``folder``.

        Servers acknowledge this worker's push once they have applied it with those of all workers, and no key of the
        next step can be complete without this worker. So servers hold exactly the state after this step.
        """
        assert self.rank == 0
        self._mx.nd.waitall()
        self._command(encode_command("save", folder=folder))

    def poll_save(self) -> SaveResult | None:
        """Return the result of the last ``save``, or None while it is in progress."""
        assert self.rank == 0
        self._command(encode_command("status"))
        rows = [self._mx.nd.zeros(STATUS_LENGTH) for _ in range(self._servers)]
        for server, row in enumerate(rows):
            self._store.pull(status_key(server, self._servers), out=row)
        return SaveResult.of([decode_status(row.asnumpy()) for row in rows], "server")

    def pull(self, rows: Mapping[str, IntArray]) -> dict[str, FloatArray]:
        """Copy the requested rows. All keys are requested before the first answer is awaited."""
        blocks, requests = {}, []
        for name, rows_A in rows.items():
            layout = self._layouts[name]
            check_rows(layout.table, rows_A)
            blocks[name] = np.empty((len(rows_A), layout.table.dim), dtype=np.float32)
            for part in layout.split(rows_A):
                if len(part.positions_A):
                    self._keys[part.key].request(part.positions_A)
                    requests.append((blocks[name], part))
        for block_AD, part in requests:
            self._keys[part.key].receive(block_AD, part.order_A)
        return blocks

    def push(self, gradients: Mapping[str, RowGradient]) -> None:
        """Send one step. Servers apply it when all workers have sent theirs; the next pull waits for that."""
        for name, gradient in gradients.items():
            layout = self._layouts[name]
            check_rows(layout.table, gradient.rows_A)
            values_AD = np.ascontiguousarray(gradient.values_AD)
            for part in layout.split(gradient.rows_A):
                self._keys[part.key].push(part.positions_A, values_AD, part.order_A)

    def set_lr_factor(self, factor: float) -> None:
        """Multiply the learning rate by ``factor`` from the next step on.

        As in ``save``, servers have applied this worker's last push and cannot apply the next step until this worker
        pushes.
        """
        if self.rank == 0 and factor != self._lr_factor:
            self._mx.nd.waitall()
            self._command(encode_command("lr_factor", factor=factor))
        self._lr_factor = factor

    def all_reduce(self, values_N: FloatArray) -> FloatArray:
        """Sum ``values_N`` over all workers, in float64 and in the order of ranks.

        MXNet's servers crash on a float64 key. So each worker writes its values, each as three float32 that add up to
        it, into its own slice; the store's sum over workers gathers the slices.
        """
        assert len(values_N) <= MAX_ALL_REDUCE_LENGTH
        parts = np.zeros((self.workers, 3, MAX_ALL_REDUCE_LENGTH), dtype=np.float32)
        remainder_N = np.zeros(MAX_ALL_REDUCE_LENGTH)
        remainder_N[: len(values_N)] = values_N
        for part_N in parts[self.rank]:
            part_N[:] = remainder_N
            remainder_N -= part_N
        self._store.push(ALL_REDUCE_KEY, self._mx.nd.array(parts))
        gathered = self._mx.nd.zeros(parts.shape)
        self._store.pull(ALL_REDUCE_KEY, out=gathered)
        total: FloatArray = gathered.asnumpy().astype(np.float64).sum(axis=1)[:, : len(values_N)].sum(axis=0)
        return total

    def barrier(self) -> None:
        """Return when every worker has called it."""
        self._mx.nd.waitall()
        self._store._barrier()

    def close(self) -> None:
        """Leave the job: the servers stop when all workers have left. The store cannot be used any more."""
        self.barrier()
        self._keys.clear()
        store, self._store = self._store, None
        free_store(store)


_NONE = np.empty(0, np.int64)


class WorkerKey:
    """Pulls and pushes rows of one key with a single array.

    A step pushes the rows that it pulled, so the array that received them already has their IDs and the memory for
    their gradients. MXNet has a buffer for each key, too: it copies what is pushed into it, and what is pulled from it.
    """

    def __init__(self, store: Any, number: int, shape: tuple[int, int]) -> None:
        """Use key ``number`` of ``shape`` in ``store``, where it has just been initialized: push no rows."""
        self._store, self._number, self._shape = store, number, shape
        self._array = row_sparse_zeros(shape, stored=False)
        self._pulled_A: IntArray = _NONE
        store.push(number, self._array)

    def request(self, positions_A: IntArray) -> None:
        """Request rows, int64 (A,), sorted and unique, and at least one. MXNet waits for the key's last push first."""
        self._pulled_A = positions_A
        self._store.row_sparse_pull(self._number, out=self._array, row_ids=int64_array(positions_A))

    def receive(self, out_RD: FloatArray, order_A: IntArray) -> None:
        """Wait for the rows of the last request, and copy them into ``out_RD[order_A]``."""
        scatter_rows(out_RD, order_A, self._view())

    def _view(self) -> FloatArray:
        self._array.wait_to_read()
        view: FloatArray = dense_view(self._array, (len(self._pulled_A), self._shape[1]), np.float32)
        return view

    def push(self, positions_A: IntArray, values_RD: FloatArray, order_A: IntArray) -> None:
        """Push ``values_RD[order_A]`` as the gradients of ``positions_A``, int64, sorted and unique."""
        if len(positions_A) and np.array_equal(positions_A, self._pulled_A):
            gather_rows(self._view(), values_RD, order_A)
        else:
            self._array = row_sparse_from(positions_A, values_RD, order_A, self._shape)
        # The push still reads the array when this returns.
        self._pulled_A = _NONE
        self._store.push(self._number, self._array)
