"""Read vectors from a checkpoint: rows of its tables, or what towers and dense layers make of them.

vectors = CheckpointVectors(checkpoint, towers, scratch)
vectors.vectors("track", np.arange(65_536))
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.kvstore.checkpoint.checkpoint import Checkpoint
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.embeddings.files import GROUP_ROWS
from crossfade.trainer.model.towers import Towers


class CheckpointVectors:
    """Provides the vectors of a checkpoint.

    A table that is read from front to back in blocks of ``GROUP_ROWS`` is verified by its CRC-32 at the end. Other rows
    are read by themselves, once the files that have them have been read and verified.

    The embeddings of features and histories are accessed in random order, so their tables are first copied to unnamed
    files in ``scratch``, which the operating system pages.
    """

    def __init__(self, checkpoint: Checkpoint, towers: Towers, scratch: Path) -> None:
        """Read from ``checkpoint`` and combine by ``towers``."""
        self._checkpoint = checkpoint
        self._towers = towers
        self._scratch = scratch
        self._copies: dict[str, FloatArray] = {}
        self._next_row: dict[str, int] = {}

    def _prepare(self, entity: str) -> None:
        """Copy the tables of the features of ``entity`` and of its histories, before its first use."""
        of, history = self._towers.of(entity), self._towers.history_table(entity)
        for table in [*(of.tower.features if of else ()), *([history] if history else [])]:
            if table.name not in self._copies:
                self._copies[table.name] = self._copy(table)

    def _copy(self, table: TableSpec) -> FloatArray:
        with tempfile.TemporaryFile(dir=self._scratch) as file:
            copy = np.memmap(file, dtype=np.float32, mode="w+", shape=(table.rows, table.dim))
        for start in range(0, table.rows, GROUP_ROWS):
            stop = min(start + GROUP_ROWS, table.rows)
            copy[start:stop] = self._checkpoint.weights(table.name, start, stop)
        return copy

    def vectors(self, entity: str, rows_N: IntArray) -> FloatArray:
        """Return the vectors of ``rows_N``, int64, sorted and unique: float32 (N, D).

        Raises:
            CheckpointError: a file is corrupt or unreadable.
        """
        self._prepare(entity)
        return self._towers.add_history(entity, rows_N, self._row_vectors, self._copied)

    def _copied(self, table: str, rows_N: IntArray) -> FloatArray:
        return np.asarray(self._copies[table][rows_N])

    def _row_vectors(self, entity: str, rows_N: IntArray) -> FloatArray:
        of = self._towers.of(entity)
        if of is None:
            return self._towers.dense.apply(entity, self._weights(entity, rows_N))
        inputs = of.inputs(rows_N)
        block = {name: self._copies[name][bag.values.rows_A] for name, bag in inputs.bags.items()}
        if of.tower.id_table is not None:
            block[entity] = self._weights(entity, rows_N)[inputs.uses_id_A]
        return self._towers.vectors_of(entity, inputs, block)

    def _weights(self, table: str, rows_N: IntArray) -> FloatArray:
        if not len(rows_N):
            return self._checkpoint.weights(table, 0, 0)
        start, stop = int(rows_N[0]), int(rows_N[-1]) + 1
        is_block = stop == min(start + GROUP_ROWS, self._checkpoint.rows(table)) and stop - start == len(rows_N)
        if is_block and start in (0, self._next_row.get(table)):
            self._next_row[table] = stop
            return self._checkpoint.weights(table, start, stop)
        return self._checkpoint.read_rows(table, rows_N)
