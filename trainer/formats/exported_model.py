"""What every format reads: the rows of a trained model in blocks, with their IDs, names, and vectors.

    exported = ExportedModel(model, tables, now, reporter)
    for block in exported.trained_blocks("artist"):
        block.rows.column("id"), block.vectors_ND

Memory is that of a block. Blocks run from the first row to the last, so that checksums are verified; untrained rows are
counted on the way.

Shapes: N rows of a block, D columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import pyarrow as pa

from crossfade.base.arrays import BoolArray, FloatArray
from crossfade.base.errors import InputError
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.embeddings.files import GROUP_ROWS
from crossfade.trainer.recommend.trained_model import TrainedModel


@dataclass(frozen=True)
class ExportedTable:
    """An exported table: columns and rows of its vectors, and how many rows are not trained.

    Attributes:
        name: the entity.
        rows: the rows that were written.
        dim: the columns of a vector.
        untrained: rows without an ID or a trained vector; None if they were not counted.
    """

    name: str
    rows: int
    dim: int
    untrained: int | None = None


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a table.

    Attributes:
        rows: ``row``, ``id``, and ``name`` if the dataset has names; the ID of a vacant row is null.
        vectors_ND: their vectors, float32.
        trained_N: which have an ID and a trained vector.
    """

    rows: pa.Table
    vectors_ND: FloatArray
    trained_N: BoolArray


@dataclass
class ExportedModel:
    """A trained model during the export of ``tables``."""

    model: TrainedModel
    tables: Sequence[TableSpec]
    date: datetime
    reporter: ProgressReporter
    _untrained: dict[str, int] = field(default_factory=dict)

    def blocks(self, table: TableSpec) -> Iterator[Block]:
        """Yield the rows of ``table``.

        Raises:
            CheckpointError: the checkpoint is corrupt or cannot be read.
            InputError: the model has no vectors of the table, or the dataset is corrupt.
        """
        vocabulary = self.model.vocabulary(table.name)
        # Features have a trained vector in every row.
        is_trained = table in (self.model.spec.query, self.model.spec.item)
        trained_R = self.model.trained_rows(table.name) if is_trained else np.ones(table.rows, np.bool_)
        self.reporter.phase(table.name, table.rows, "row")
        self._untrained[table.name] = 0
        for first in range(0, table.rows, GROUP_ROWS):
            last = min(first + GROUP_ROWS, table.rows)
            rows = vocabulary.read(first, last)
            vectors_ND = self.model.vectors.vectors(table.name, np.arange(first, last, dtype=np.int64))
            # Names of different row groups may differ in whether they can be null, which a Parquet file cannot.
            rows = pa.table({name: rows.column(name) for name in vocabulary.columns})
            trained_N = trained_R[first:last] & np.array(rows.column("id").is_valid())
            self._untrained[table.name] += int(np.count_nonzero(~trained_N))
            yield Block(rows, vectors_ND, trained_N)
            self.reporter.advance(last - first)

    def trained_blocks(self, entity: str) -> Iterator[Block]:
        """Yield the rows of ``entity`` that have an ID and a trained vector; at least one must."""
        [table] = [each for each in self.tables if each.name == entity]
        for block in self.blocks(table):
            kept_N = block.trained_N
            if kept_N.any():
                yield Block(block.rows.filter(pa.array(kept_N)), block.vectors_ND[kept_N], kept_N[kept_N])
        if self._untrained[entity] == table.rows:
            raise InputError(f"{self.model.uri}: no row of '{entity}' has a trained vector")

    def exported_tables(self, *, complete: bool) -> list[ExportedTable]:
        """Return what was exported: all rows if ``complete``, otherwise the trained ones."""
        exported = []
        for table in self.tables:
            untrained = self._untrained.get(table.name)
            rows = table.rows - (0 if complete or untrained is None else untrained)
            exported.append(ExportedTable(table.name, rows, table.dim, untrained))
        return exported
