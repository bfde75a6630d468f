"""Neighbor start: what the new rows of a warm start begin with, from the rows that they occur with.

    of_queries, of_items = find_neighbors(reader, groups, new_queries, new_items, progress)
    for part in of_items.parts():
        known_BD = store.pull({"customer": part.known_B})["customer"]
        store.assign("track", *part.start(known_BD))

A new item begins with the direction in which the queries that have interacted with it lie, the sum of their vectors at
length 1; a new query likewise. With cosine scores, that is the unit vector whose scores with them have the largest sum.
Neighbors that are new too do not count: their vectors are random. Few epochs from there reach more than from random
vectors: docs/fresh-models.md has figures.

Shapes: N pairs of a new and a known row, A new and B known rows of a part, D columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from crossfade.base.arrays import BoolArray, FloatArray, IntArray
from crossfade.trainer.data.reader import InteractionReader, RowGroup
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.model.spec import ModelSpec

_MAX_NEIGHBORS = 1 << 10
"""Known rows that a new row begins from, at most: those with the lowest numbers, which are the oldest."""
_PART_PAIRS = 1 << 16
_MAX_INTERACTIONS, MAX_PAIRS = 1 << 28, 1 << 22
"""What one process reads, and keeps of each table, at most. Further new rows begin with random values."""
_MIN_LENGTH = 1e-6


def has_neighbor_start(model: ModelSpec) -> bool:
    """Return whether rows are the vectors that are compared, by their cosine.

    Otherwise, what a row adds to features, content, context, or histories is not a direction among its neighbors, and a
    new row is near its place by these: they are trained.
    """
    has_parts = model.towers or model.dense or model.query_sum is not None
    return model.score.normalized and not has_parts


@dataclass(frozen=True)
class NewRows:
    """The rows of a table from ``first`` on, and ``reset_N`` before it, int64 and sorted."""

    first: int
    rows: int
    reset_N: IntArray

    def __bool__(self) -> bool:
        """Return whether there is one."""
        return self.first < self.rows or len(self.reset_N) > 0

    def contains(self, row_N: IntArray) -> BoolArray:
        """Return which of ``row_N`` are new, bool (N,)."""
        is_new_N = row_N >= self.first
        if len(self.reset_N):
            place_N = np.minimum(np.searchsorted(self.reset_N, row_N), len(self.reset_N) - 1)
            is_new_N |= self.reset_N[place_N] == row_N
        return is_new_N


@dataclass(frozen=True)
class NeighborPart:
    """The pairs of some new rows: each has its place in ``new_A`` and that of its known row in ``known_B``."""

    new_A: IntArray
    known_B: IntArray
    place_in_new_N: IntArray
    place_in_known_N: IntArray

    def start(self, known_BD: FloatArray) -> tuple[IntArray, FloatArray]:
        """Return new rows and what they begin with, float32, from the vectors of the known rows.

        Rows whose neighbors' vectors cancel out are left out.
        """
        length_B1 = np.linalg.norm(known_BD, axis=1, keepdims=True)
        unit_BD = known_BD / np.maximum(length_B1, np.float32(_MIN_LENGTH))
        starts_A = np.flatnonzero(np.diff(self.place_in_new_N, prepend=-1))
        sum_AD = np.add.reduceat(unit_BD[self.place_in_known_N], starts_A)
        length_A = np.linalg.norm(sum_AD, axis=1)
        kept_A = length_A > _MIN_LENGTH
        return self.new_A[kept_A], sum_AD[kept_A] / length_A[kept_A, None]


@dataclass(frozen=True)
class Neighbors:
    """Pairs of a new row of a table and a known row of the other, each once, in order of both, int64 (N,) each.

    A new row has ``_MAX_NEIGHBORS`` pairs at most.
    """

    new_N: IntArray
    known_N: IntArray

    @staticmethod
    def of(pairs: Sequence[tuple[IntArray, IntArray]]) -> Neighbors:
        """Join the pairs, in any order."""
        new_N, known_N = (np.concatenate(rows) for rows in zip(*pairs, strict=True))
        order_N = np.lexsort((known_N, new_N))
        new_N, known_N = new_N[order_N], known_N[order_N]
        is_first_N = (np.diff(new_N, prepend=-1) != 0) | (np.diff(known_N, prepend=-1) != 0)
        new_N, known_N = new_N[is_first_N], known_N[is_first_N]
        kept_N = np.arange(len(new_N)) - np.searchsorted(new_N, new_N) < _MAX_NEIGHBORS
        return Neighbors(new_N[kept_N], known_N[kept_N])

    def bounds(self) -> IntArray:
        """Return where the parts begin, and where the last one ends: all pairs of a new row are in the same part."""
        cut_P = np.append(np.arange(0, len(self.new_N), _PART_PAIRS), len(self.new_N))
        within = cut_P < len(self.new_N)
        cut_P[within] = np.searchsorted(self.new_N, self.new_N[cut_P[within]])
        bounds_P: IntArray = np.unique(cut_P)
        return bounds_P

    def parts(self) -> Iterator[NeighborPart]:
        """Yield the pairs in parts."""
        for start, end in pairwise(self.bounds().tolist()):
            new_A, place_in_new_N = np.unique(self.new_N[start:end], return_inverse=True)
            known_B, place_in_known_N = np.unique(self.known_N[start:end], return_inverse=True)
            yield NeighborPart(new_A, known_B, place_in_new_N, place_in_known_N)


NO_NEIGHBORS = Neighbors(np.empty(0, np.int64), np.empty(0, np.int64))


def find_neighbors(
    reader: InteractionReader,
    groups: Sequence[RowGroup],
    new_queries: NewRows,
    new_items: NewRows,
    progress: ProgressReporter,
) -> tuple[Neighbors, Neighbors]:
    """Find the neighbors of new queries, and those of new items, in the interactions of ``groups``.

    Only interactions with a positive weight count. ``progress`` is advanced at each row group.

    Raises:
        InputError: a file is missing or corrupt.
        StorageUnavailableError: storage does not answer.
    """
    progress.phase("start of new rows", len(groups), "row group")
    of_queries, of_items = [_NO_PAIRS], [_NO_PAIRS]
    read = kept = 0
    for part in reader.map(reader.read, groups):
        liked_N = part.weight_N > 0.0
        query_N, item_N = part.query_N[liked_N], part.item_N[liked_N]
        is_new_query_N, is_new_item_N = new_queries.contains(query_N), new_items.contains(item_N)
        of_query_N, of_item_N = is_new_query_N & ~is_new_item_N, is_new_item_N & ~is_new_query_N
        of_queries.append((query_N[of_query_N], item_N[of_query_N]))
        of_items.append((item_N[of_item_N], query_N[of_item_N]))
        progress.advance(1)
        read, kept = read + len(part), kept + max(np.count_nonzero(of_query_N), np.count_nonzero(of_item_N))
        if read >= _MAX_INTERACTIONS or kept >= MAX_PAIRS:
            break
    return Neighbors.of(of_queries), Neighbors.of(of_items)


_NO_PAIRS = np.empty(0, np.int64), np.empty(0, np.int64)
