"""Tables in this process, updated in place: for runs without servers, and as the reference for runs with them.

``LocalStore`` can also hold one shard of each table, as each rank of ``sharded/store.py`` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.errors import CheckpointError, CrossfadeError
from crossfade.kvstore.checkpoint.checkpoint import open_checkpoint
from crossfade.kvstore.checkpoint.format import WEIGHTS, TableShard, shard_rows
from crossfade.kvstore.checkpoint.snapshot import Snapshot, compile_kernels
from crossfade.kvstore.memory import empty_rows
from crossfade.kvstore.optimizer_spec import OptimizerSpec
from crossfade.kvstore.optimizers import KernelOptimizer, LazyOptimizer, make_optimizer, name_divergence
from crossfade.kvstore.philox import init_rows, init_rows_at
from crossfade.kvstore.stats import UpdateStats
from crossfade.kvstore.store import MAX_ALL_REDUCE_LENGTH, NO_RESETS, RowGradient, SaveResult, TableSpec, check_rows

_CHUNK_ROWS = 1 << 16
"""Rows initialized at a time, so that their numbers take little memory."""


class LocalStore:
    """The row store of a single process. Methods are as in ``RowStore``.

    With ``num_shards``, it holds the rows r with r mod ``num_shards`` = ``number`` of each table, and arguments named
    positions number them: position i is row i·num_shards + number.
    """

    rank = 0
    workers = 1
    first_step = 0

    def __init__(self, number: int = 0, num_shards: int = 1) -> None:
        """Hold shard ``number`` of ``num_shards`` of each table."""
        self._number, self._num_shards = number, num_shards
        self._tables: dict[str, TableSpec] = {}
        self._weights: dict[str, FloatArray] = {}
        self._optimizers: dict[str, LazyOptimizer] = {}
        self._snapshot: Snapshot | None = None
        self.stats = UpdateStats()

    def create(
        self,
        tables: Sequence[TableSpec],
        optimizer: OptimizerSpec,
        seed: int,
        checkpoint: str | None = None,
        reset_rows: Mapping[str, IntArray] = NO_RESETS,
    ) -> None:
        """Create the tables: rows come from ``checkpoint`` or are initialized, and ``reset_rows`` always are."""
        compile_kernels()
        source = None if checkpoint is None else open_checkpoint(checkpoint)
        if source is not None:
            source.check_fits(tables, optimizer)
        for table in tables:
            self._tables[table.name] = table
            self._weights[table.name] = self._init_table(table, source.rows(table.name) if source else 0, seed)
            self._optimizers[table.name] = make_optimizer(optimizer, self._rows_here(table.rows), table.dim)
        if source is not None:
            source.load(self.shards())
        for name, rows_R in reset_rows.items():
            table = self._tables[name]
            check_rows(table, rows_R)
            here_R = rows_R[rows_R % self._num_shards == self._number]
            positions_R = here_R // self._num_shards
            init_rows_at(self._weights[name], positions_R, here_R, seed=seed, table=name, std=table.init_std)
            self._optimizers[name].reset(positions_R)
        for shard in self.shards():
            self.stats.add_arrays(shard.table, shard.arrays)

    def _rows_here(self, table_rows: int) -> int:
        """Return how many of the first ``table_rows`` rows of a table are in this shard."""
        return shard_rows(table_rows, self._number, self._num_shards)

    def _init_table(self, table: TableSpec, first_row: int, seed: int) -> FloatArray:
        """Allocate the weights of ``table`` and initialize its rows from ``first_row`` on."""
        rows = self._rows_here(table.rows)
        weights_ND: FloatArray = empty_rows(rows, table.dim)
        for start in range(self._rows_here(first_row), rows, _CHUNK_ROWS):
            stop = min(start + _CHUNK_ROWS, rows)
            rows_R = np.arange(start, stop, dtype=np.int64) * self._num_shards + self._number
            init_rows(weights_ND[start:stop], rows_R, seed=seed, table=table.name, std=table.init_std)
        return weights_ND

    def assign(self, table: str, rows_A: IntArray, values_AD: FloatArray) -> None:
        """Replace the values of rows."""
        check_rows(self._tables[table], rows_A)
        self._weights[table][rows_A] = values_AD

    def shards(self) -> list[TableShard]:
        """Return the shard of each table, weights and optimizer state: the same memory, not a copy."""
        return [
            TableShard(
                name,
                table.rows,
                self._number,
                self._num_shards,
                {WEIGHTS: self._weights[name], **self._optimizers[name].state},
            )
            for name, table in self._tables.items()
        ]

    def save(self, folder: str) -> None:
        """Start writing all tables and their state into the checkpoint folder ``folder``.

        Raises:
            CheckpointError: the previous save is still in progress.
        """
        self.check_not_saving(folder)
        self._snapshot = Snapshot(folder, self._number, self._num_shards, self.shards())

    def check_not_saving(self, folder: str) -> None:
        """Check that no save is in progress, so that another, into ``folder``, may start.

        Raises:
            CheckpointError: one is.
        """
        if self._snapshot is not None:
            raise CheckpointError(f"{folder}: cannot be written while the previous checkpoint is being written")

    def poll_save(self) -> SaveResult | None:
        """Return the result of the last ``save``, or None while it is in progress."""
        assert self._snapshot is not None
        try:
            written = self._snapshot.poll()
        except CrossfadeError:
            self._snapshot = None
            raise
        if written is None:
            return None
        pause_seconds, self._snapshot = self._snapshot.pause_seconds, None
        return SaveResult((written.part,), pause_seconds, written.seconds, written.bytes)

    def pull(self, rows: Mapping[str, IntArray]) -> dict[str, FloatArray]:
        """Copy the requested rows."""
        self.check(rows)
        return {name: self._weights[name].take(rows_A, axis=0) for name, rows_A in rows.items()}

    def push(self, gradients: Mapping[str, RowGradient]) -> None:
        """Apply one step."""
        self.check({name: gradient.rows_A for name, gradient in gradients.items()})
        for name, gradient in gradients.items():
            with self.stats.timed_update(name, len(gradient.rows_A)):
                if self._snapshot is not None:
                    self._snapshot.before_update(name, 0, gradient.rows_A)
                with name_divergence(name):
                    self._optimizers[name].update(self._weights[name], gradient.rows_A, gradient.values_AD)

    def check(self, rows: Mapping[str, IntArray]) -> None:
        """Check that rows, int64 and sorted, lie inside their tables.

        Raises:
            StoreError: a row does not.
        """
        for name, rows_A in rows.items():
            check_rows(self._tables[name], rows_A)

    def weights(self, table: str) -> FloatArray:
        """Return the weights of ``table``, not a copy: kernels read them, and write rows inside ``updating``."""
        return self._weights[table]

    @contextmanager
    def updating(
        self, table: str, positions_A: IntArray, *, counts_rows: bool = True
    ) -> Iterator[tuple[FloatArray, KernelOptimizer]]:
        """Let a kernel update the rows at ``positions_A`` of ``table``, checked, in place, and count them if wanted.

        Yields the weights and the last argument of ``optimizers.update_row``.
        """
        with (
            self.stats.timed_update(table, len(positions_A) if counts_rows else 0),
            name_divergence(table, self._row_of),
        ):
            if self._snapshot is not None:
                self._snapshot.before_update(table, self._number, positions_A)
            yield self._weights[table], self._optimizers[table].for_kernels()

    def _row_of(self, position: int) -> int:
        return position * self._num_shards + self._number

    def set_lr_factor(self, factor: float) -> None:
        """Multiply the learning rate by ``factor`` from the next step on."""
        for optimizer in self._optimizers.values():
            optimizer.lr_factor = factor

    def all_reduce(self, values_N: FloatArray) -> FloatArray:
        """Return the values in float64: there is one worker."""
        assert len(values_N) <= MAX_ALL_REDUCE_LENGTH
        return values_N.astype(np.float64)

    def barrier(self) -> None:
        """Return at once: there is one worker."""

    def close(self) -> None:
        """Release the tables, and abandon a save that is in progress."""
        if self._snapshot is not None:
            self._snapshot.close()
            self._snapshot = None
        self._weights.clear()
        self._optimizers.clear()
