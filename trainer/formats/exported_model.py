"""What every format reads: the rows of a trained model in blocks, with their IDs, names, and vectors.

    exported = ExportedModel(model, tables, names, now, reporter)
    for block in exported.blocks(table):
        trained = block.trained()
        trained.rows.column("id"), trained.vectors_ND

Memory is that of a block. Blocks run from the first row to the last, so that checksums are verified; what is counted on
the way is known afterwards.

Shapes: N rows of a block, D columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crossfade.base.arrays import BoolArray, FloatArray
from crossfade.base.errors import InputError
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.data.manifest import data_fingerprint
from crossfade.trainer.data.reporter import NullReporter, ProgressReporter
from crossfade.trainer.data.vocabulary import Vocabulary, equal_values
from crossfade.trainer.embeddings.files import GROUP_ROWS
from crossfade.trainer.embeddings.model_card import ExportedTable
from crossfade.trainer.recommend.trained_model import TrainedModel

_TEXT_VALUES = 1 << 20
"""Values that are converted to text at a time."""


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

    def trained(self) -> Block:
        """Return the rows that have an ID and a trained vector."""
        return self if self.trained_N.all() else self.take(self.trained_N)

    def take(self, kept_N: BoolArray) -> Block:
        """Return the rows ``kept_N``."""
        return Block(self.rows.filter(pa.array(kept_N)), self.vectors_ND[kept_N], self.trained_N[kept_N])

    def part(self, first: int, count: int) -> Block:
        """Return up to ``count`` rows from ``first`` on."""
        kept = slice(first, first + count)
        return Block(self.rows.slice(first, count), self.vectors_ND[kept], self.trained_N[kept])

    def pieces(self) -> Iterator[Block]:
        """Divide it into blocks that are small enough to be converted to text."""
        size = max(1, _TEXT_VALUES // self.vectors_ND.shape[1])
        for first in range(0, len(self.vectors_ND), size):
            yield self.part(first, size)

    def vector_texts(self) -> pa.Array:
        """Return each vector as text, [0.1,-2,3e-05], which reads back as the same float32 values."""
        rows, dim = self.vectors_ND.shape
        values = pa.array(np.ascontiguousarray(self.vectors_ND).ravel()).cast(pa.string())
        offsets_N1 = pa.array(np.arange(rows + 1, dtype=np.int32) * dim)
        joined = pc.binary_join(pa.ListArray.from_arrays(offsets_N1, values), ",")
        return pc.binary_join_element_wise("[", joined, "]", "")

    def records(self) -> Iterator[tuple[Any, str | None, str]]:
        """Yield the ID, the name, and the vector as text of each row."""
        ids, texts = self.rows.column("id").to_pylist(), self.vector_texts().to_pylist()
        names = self.rows.column("name").to_pylist() if "name" in self.rows.column_names else [None] * len(ids)
        yield from zip(ids, names, texts, strict=True)


@dataclass(frozen=True)
class Changes:
    """What has changed in a block since an earlier model.

    Attributes:
        block: the rows that are new, or have another vector or name.
        deleted: the IDs of rows that are gone.
    """

    block: Block
    deleted: pa.Array


@dataclass
class ExportedModel:
    """A trained model during the export of ``tables``; ``names`` has what they are called in databases.

    With ``since``, an earlier model whose tables have the same columns, only changes are exported.
    """

    model: TrainedModel
    tables: Sequence[TableSpec]
    names: dict[str, str]
    date: datetime
    reporter: ProgressReporter
    since: TrainedModel | None = None
    example_ids: dict[str, Any] = field(default_factory=dict)
    _untrained: dict[str, int] = field(default_factory=dict)
    _changes: dict[str, tuple[int, int]] = field(default_factory=dict)

    def blocks(self, table: TableSpec) -> Iterator[Block]:
        """Yield the rows of ``table``.

        Raises:
            CheckpointError: the checkpoint is corrupt or cannot be read.
            InputError: the model has no vectors of the table, or the dataset is corrupt.
        """
        vocabulary = self.model.vocabulary(table.name)
        trained_R = self.trained_rows(table)
        self.reporter.phase(table.name, table.rows, "row")
        untrained = 0
        for first in range(0, table.rows, GROUP_ROWS):
            last = min(first + GROUP_ROWS, table.rows)
            block = self._block(table, vocabulary, trained_R[first:last], first, last)
            untrained += int(np.count_nonzero(~block.trained_N))
            if table.name not in self.example_ids and block.trained_N.any():
                self.example_ids[table.name] = block.rows.column("id")[int(block.trained_N.argmax())].as_py()
            yield block
            self.reporter.advance(last - first)
        self._untrained[table.name] = untrained

    def trained_rows(self, table: TableSpec) -> BoolArray:
        """Return which rows of ``table`` have a trained vector, if they have an ID; of features, all do."""
        is_trained = table in (self.model.spec.query, self.model.spec.item)
        return self.model.trained_rows(table) if is_trained else np.ones(table.rows, np.bool_)

    def trained_blocks(self, table: TableSpec) -> Iterator[Block]:
        """Yield the rows of ``table`` that have an ID and a trained vector; at least one must."""
        for block in self.blocks(table):
            trained = block.trained()
            if len(trained.vectors_ND):
                yield trained
        if self._untrained[table.name] == table.rows:
            raise InputError(f"{self.model.uri}: no row of '{table.name}' has a trained vector")

    def changes(self, table: TableSpec, *, complete: bool) -> Iterator[Changes]:
        """Yield what has changed in ``table``: of all rows with an ID if ``complete``, otherwise of the trained ones.

        An ID may be deleted in one row, and have another one: delete it before the rows of ``block`` are written.
        """
        assert self.since is not None
        before = ExportedModel(self.since, [], {}, self.date, NullReporter())
        earlier = next(each for each in self.since.spec.vectors if each.name == table.name)
        changed = deleted = 0
        for now, was in zip_longest(self.blocks(table), before.blocks(earlier)):
            found = _compare(now or was.part(0, 0), was or now.part(0, 0), complete=complete)
            changed, deleted = changed + len(found.block.vectors_ND), deleted + len(found.deleted)
            yield found
        self._changes[table.name] = changed, deleted

    def _block(self, table: TableSpec, vocabulary: Vocabulary, trained_N: BoolArray, first: int, last: int) -> Block:
        rows = vocabulary.read(first, last, vocabulary.columns)
        vectors_ND = self.model.vectors.vectors(table.name, np.arange(first, last, dtype=np.int64))
        # Names of different row groups may differ in whether they can be null, which a Parquet file cannot.
        rows = pa.table({name: rows.column(name) for name in vocabulary.columns})
        return Block(rows, vectors_ND, trained_N & np.array(rows.column("id").is_valid()))

    def count(self, table: TableSpec, untrained: int) -> None:
        """Record the untrained rows of ``table``, for a format that does not use ``blocks``."""
        self._untrained[table.name] = untrained

    def example_tables(self) -> tuple[TableSpec, TableSpec]:
        """Return the tables of an example: what is ranked, items if they are exported, and for rows of which table."""
        query, item = self.model.spec.query, self.model.spec.item
        ranked = item if item in self.tables else self.tables[0]
        return ranked, query if ranked == item and query in self.tables else ranked

    def exported_tables(self, *, complete: bool) -> list[ExportedTable]:
        """Return what was exported: all rows if ``complete``, otherwise the trained ones."""
        exported = []
        for table in self.tables:
            untrained = self._untrained.get(table.name)
            rows, deleted = table.rows - (0 if complete or untrained is None else untrained), None
            if table.name in self._changes:
                rows, deleted = self._changes[table.name]
            exported.append(ExportedTable(table.name, rows, table.dim, untrained, deleted))
        return exported


def _compare(now: Block, was: Block, *, complete: bool) -> Changes:
    """Compare blocks whose first row is the same."""
    count = min(len(now.vectors_ND), len(was.vectors_ND))
    counts_N, counted_N = (np.array(b.rows.column("id").is_valid()) if complete else b.trained_N for b in (now, was))
    has_id_N = counted_N[:count] & counts_N[:count]
    has_id_N &= equal_values(now.rows.column("id")[:count], was.rows.column("id")[:count])
    is_same = has_id_N & (now.vectors_ND[:count] == was.vectors_ND[:count]).all(axis=1)
    if "name" in now.rows.column_names:
        is_same &= equal_values(now.rows.column("name")[:count], was.rows.column("name")[:count])
    changed_N, deleted_N = counts_N.copy(), counted_N.copy()
    changed_N[:count] &= ~is_same
    deleted_N[:count] &= ~has_id_N
    deleted = was.rows.column("id").filter(pa.array(deleted_N)).combine_chunks()
    return Changes(now.take(changed_N), deleted)


def identity(model: TrainedModel) -> tuple[str, str]:
    """Return the fingerprints of the dataset and the vectors; two models share both only if they are the same."""
    digest = hashlib.sha256(model.fingerprint.encode()).hexdigest()
    return f"{data_fingerprint(model.data):08x}", digest[:16]


def write_script(path: Path, text: str) -> None:
    """Write an executable script, which loads an export, to ``path``."""
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
