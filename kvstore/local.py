"""Tables in this process, updated in place: what a run without servers uses, and the reference for one with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from kvstore.arrays import FloatArray, IntArray
from kvstore.errors import StoreError
from kvstore.optimizers import LazyOptimizer, OptimizerSpec, make_optimizer
from kvstore.philox import fill_rows
from kvstore.store import SUM_LENGTH, RowGradient, TableSpec

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


class LocalStore:
    """The row store of one process."""

    rank = 0
    workers = 1

    def __init__(self) -> None:
        """An empty store."""
        self._tables: dict[str, TableSpec] = {}
        self._weights: dict[str, FloatArray] = {}
        self._optimizers: dict[str, LazyOptimizer] = {}

    def create(self, tables: Sequence[TableSpec], optimizer: OptimizerSpec, seed: int) -> None:
        """Make the tables and fill them."""
        for table in tables:
            weights_ND = np.empty((table.rows, table.dim), dtype=np.float32)
            for start in range(0, table.rows, _FILL_ROWS):
                rows = np.arange(start, min(start + _FILL_ROWS, table.rows), dtype=np.int64)
                fill_rows(weights_ND[rows[0] : rows[-1] + 1], rows, seed=seed, table=table.name, scale=table.scale)
            self._tables[table.name] = table
            self._weights[table.name] = weights_ND
            self._optimizers[table.name] = make_optimizer(optimizer, table.rows, table.dim)

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
            self._optimizers[name].update(self._weights[name], gradient.rows_A, gradient.values_AD)

    def sum(self, values_N: FloatArray) -> FloatArray:
        """The values themselves: there is one worker."""
        assert len(values_N) <= SUM_LENGTH
        return values_N.astype(np.float64)

    def barrier(self) -> None:
        """Return: there is one worker."""

    def close(self) -> None:
        """Let go of the tables."""
        self._weights.clear()
        self._optimizers.clear()
