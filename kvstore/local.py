"""Tables in this process, updated in place: what a run without servers uses, and the reference for one with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from kvstore.arrays import FloatArray, IntArray
from kvstore.checkpoint.format import TableShard
from kvstore.checkpoint.reader import WEIGHTS, open_checkpoint
from kvstore.checkpoint.snapshot import Snapshot, compile_kernels
from kvstore.errors import CheckpointError, StoreError
from kvstore.memory import advise_huge_pages
from kvstore.optimizers import LazyOptimizer, OptimizerSpec, make_optimizer
from kvstore.philox import init_rows
from kvstore.stats import UpdateStats
from kvstore.store import MAX_ALL_REDUCE_LENGTH, NO_RESETS, RowGradient, SaveResult, TableSpec

_FILL_ROWS = 1 << 16


def check_rows(table: TableSpec, rows_A: IntArray) -> None:
    """Refuse sorted rows that lie outside ``table``.

    Raises:
        StoreError: the first or the last of them does.
    """
    if len(rows_A) and (rows_A[0] < 0 or rows_A[-1] >= table.rows):
        raise StoreError(
            f"table '{table.name}': rows {rows_A[0]} to {rows_A[-1]} were asked for, but it has rows 0 to "
            f"{table.rows - 1}; the data and the vocabulary do not belong together"
        )


def init_rows_at(weights_ND: FloatArray, places_R: IntArray, rows_R: IntArray, table: TableSpec, seed: int) -> None:
    """Write the initial values of ``rows_R`` of ``table`` to ``places_R`` of ``weights_ND``, in pieces."""
    for start in range(0, len(rows_R), _FILL_ROWS):
        piece_R = rows_R[start : start + _FILL_ROWS]
        values_RD = np.empty((len(piece_R), table.dim), dtype=np.float32)
        init_rows(values_RD, piece_R, seed=seed, table=table.name, scale=table.scale)
        weights_ND[places_R[start : start + _FILL_ROWS]] = values_RD


class LocalStore:
    """The row store of one process."""

    rank = 0
    workers = 1

    def __init__(self) -> None:
        """An empty store."""
        self._tables: dict[str, TableSpec] = {}
        self._weights: dict[str, FloatArray] = {}
        self._optimizers: dict[str, LazyOptimizer] = {}
        self._snapshot: Snapshot | None = None
        self.work = UpdateStats()

    def create(
        self,
        tables: Sequence[TableSpec],
        optimizer: OptimizerSpec,
        seed: int,
        checkpoint: str | None = None,
        reset_rows: Mapping[str, IntArray] = NO_RESETS,
    ) -> None:
        """Make the tables: rows and state that ``checkpoint`` has from there, the others and ``afresh`` fresh."""
        compile_kernels()
        source = None if checkpoint is None else open_checkpoint(checkpoint)
        if source is not None:
            source.check_fits(tables, optimizer)
        for table in tables:
            weights_ND = np.empty((table.rows, table.dim), dtype=np.float32)
            advise_huge_pages(weights_ND)
            for start in range(source.rows(table.name) if source else 0, table.rows, _FILL_ROWS):
                rows = np.arange(start, min(start + _FILL_ROWS, table.rows), dtype=np.int64)
                init_rows(weights_ND[rows[0] : rows[-1] + 1], rows, seed=seed, table=table.name, scale=table.scale)
            self._tables[table.name] = table
            self._weights[table.name] = weights_ND
            self._optimizers[table.name] = make_optimizer(optimizer, table.rows, table.dim)
        if source is not None:
            source.load(self._ranges())
        for name, rows_R in reset_rows.items():
            check_rows(self._tables[name], rows_R)
            init_rows_at(self._weights[name], rows_R, rows_R, self._tables[name], seed)
            self._optimizers[name].reset(rows_R)
        for held in self._ranges():
            self.work.add_arrays(held.table, held.arrays)

    def _ranges(self) -> list[TableShard]:
        """All that is held: of each table one range, which is the table."""
        return [
            TableShard(name, table.rows, 0, 1, {WEIGHTS: self._weights[name], **self._optimizers[name].state})
            for name, table in self._tables.items()
        ]

    def save(self, to: str) -> None:
        """Begin to write all tables and their state into the checkpoint folder ``to``.

        To be called by a thread that lives as long as the writing takes.

        Raises:
            CheckpointError: it cannot be begun, or the one before is still being written.
        """
        if self._snapshot is not None:
            raise CheckpointError(f"{to}: cannot be written while the checkpoint before it still is")
        self._snapshot = Snapshot(to, 0, 1, self._ranges())

    def poll_save(self) -> SaveResult | None:
        """How the last ``save`` went, or None while it is still under way."""
        assert self._snapshot is not None
        try:
            written = self._snapshot.poll()
        except CheckpointError:
            self._snapshot = None
            raise
        if written is None:
            return None
        pause_seconds, self._snapshot = self._snapshot.pause_seconds, None
        return SaveResult((written.part,), pause_seconds, written.seconds, written.bytes)

    def pull(self, rows: Mapping[str, IntArray]) -> dict[str, FloatArray]:
        """Copies of the named rows."""
        blocks = {}
        for name, rows_A in rows.items():
            table = self._tables[name]
            check_rows(table, rows_A)
            blocks[name] = self._weights[name].take(rows_A, axis=0)
        return blocks

    def push(self, gradients: Mapping[str, RowGradient]) -> None:
        """Apply one step."""
        for name, gradient in gradients.items():
            check_rows(self._tables[name], gradient.rows_A)
        for name, gradient in gradients.items():
            with self.work.timed_update(name, len(gradient.rows_A)):
                if self._snapshot is not None:
                    self._snapshot.before_update(name, 0, gradient.rows_A)
                self._optimizers[name].update(self._weights[name], gradient.rows_A, gradient.values_AD)

    def set_lr_factor(self, factor: float) -> None:
        """Multiply the learning rate by ``factor`` from the next step on."""
        for optimizer in self._optimizers.values():
            optimizer.lr_factor = factor

    def all_reduce(self, values_N: FloatArray) -> FloatArray:
        """The values themselves: there is one worker."""
        assert len(values_N) <= MAX_ALL_REDUCE_LENGTH
        return values_N.astype(np.float64)

    def barrier(self) -> None:
        """Return: there is one worker."""

    def close(self) -> None:
        """Let go of the tables, and of a checkpoint that is still being written."""
        if self._snapshot is not None:
            self._snapshot.close()
            self._snapshot = None
        self._weights.clear()
        self._optimizers.clear()
