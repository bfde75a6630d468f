"""Rank candidates for vectors: exactly, in blocks, with popularity damping and limits per group.

    ranker = Ranker(model.vectors, model.spec.item, model.score, candidates)
    rows_QK, scores_QK = ranker.rank(query_QD, excluded, count=10)

Shapes: Q queries, K ranks, J ranks before limits per group, N elements of lists, R rows of the entity, D columns.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.kvstore.jit import njit
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.data.jagged_array import JaggedArray
from crossfade.trainer.embeddings.files import VectorSource
from crossfade.trainer.model.spec import Score
from crossfade.trainer.recommend.candidates import Candidates
from crossfade.trainer.recommend.top_k import Block, item_blocks, rank_blocks

_VALUE_BYTES, _KEPT_BYTES = 4, 1 << 25
"""Bytes of a float32, and of the vectors of a table whose blocks a ranker keeps."""
_DEPTH_FACTOR = 4
"""How much deeper a ranking becomes when limits per group leave too few rows of it."""


class CountVectors:
    """How often each row occurs, as vectors of one column: their product with 1 ranks by popularity."""

    def __init__(self, count_R: IntArray) -> None:
        self._count_R = count_R

    def vectors(self, entity: str, rows_N: IntArray) -> FloatArray:
        """Return the counts of ``rows_N``: float32 (N, 1)."""
        return self._count_R[rows_N, None].astype(np.float32)


class Ranker:
    """Ranks the candidates of one entity."""

    def __init__(
        self,
        source: VectorSource,
        table: TableSpec,
        score: Score,
        candidates: Candidates,
        damping_R: FloatArray | None = None,
        *,
        keep_vectors: bool = False,
    ) -> None:
        """Compare vectors of ``table``, which ``source`` provides, by ``score``.

        ``damping_R`` is subtracted from the score of each row, float32 (R,). ``keep_vectors``: hold the vectors of a
        table of at most 32 MiB, ready to rank, since that takes longer than to rank a query.
        """
        self.source = source
        self.table = table
        self._score = score
        self._candidates = candidates
        damping_R = np.zeros(table.rows, np.float32) if damping_R is None else damping_R
        self._penalty_R = np.where(candidates.kept_R, damping_R, np.float32(np.inf))
        self._num_candidates = int(np.count_nonzero(candidates.kept_R))
        self._keep_vectors = keep_vectors and table.rows * table.dim * _VALUE_BYTES <= _KEPT_BYTES
        self._kept_blocks: list[Block] | None = None

    def rank(
        self, query_QD: FloatArray, excluded: JaggedArray, count: int, enough: int | None = None
    ) -> tuple[IntArray, FloatArray]:
        """Return the ``count`` best candidates for each query, best first: rows int64 and scores float32 (Q, K).

        Args:
            query_QD: vectors of the queries, float32.
            excluded: the rows left out for each query.
            count: length of a ranking, at most the number of candidates; where fewer are left to a query, it is padded
                with row -1 and score -inf.
            enough: rows from which on a ranking is not deepened because of limits per group; None: ``count``.
        """
        enough = min(enough or count, max(1, self._num_candidates))
        count = min(count, max(1, self._num_candidates))
        if self._candidates.groups is None:
            return self._rank(query_QD, excluded, count)
        rows_QK = np.full((len(query_QD), count), -1, np.int64)
        scores_QK = np.full((len(query_QD), count), -np.inf, np.float32)
        queries_Q, depth = np.arange(len(query_QD)), count
        while len(queries_Q):
            depth = min(depth * _DEPTH_FACTOR, self._num_candidates)
            best = self._rank(query_QD[queries_Q], excluded.take(queries_Q), depth)
            groups = self._candidates.groups
            limits = groups.starts_L1, groups.values_N, self._candidates.max_per_group
            full_Q = _limit_per_group(*best, limits, queries_Q, rows_QK, scores_QK, enough)
            queries_Q = queries_Q[~full_Q] if depth < self._num_candidates else queries_Q[:0]
        return rows_QK, scores_QK

    def _rank(self, query_QD: FloatArray, excluded: JaggedArray, count: int) -> tuple[IntArray, FloatArray]:
        rows_QK, scores_QK = rank_blocks(query_QD, self._score, self._blocks(), excluded, count)
        if self._score.norm_scale:
            # The squared norm of the query, which rankings omit.
            scores_QK -= self._score.norm_scale * np.square(query_QD).sum(axis=1, keepdims=True)
        return rows_QK, scores_QK

    def _blocks(self) -> Iterable[Block]:
        """Return the rows in blocks: new ones or, if the ranker keeps vectors, one block of all, made once."""
        if self._kept_blocks is not None:
            return self._kept_blocks
        vectors = partial(self.source.vectors, self.table.name)
        table = self._score, self.table.rows, vectors, self._penalty_R
        if not self._keep_vectors:
            return item_blocks(*table)
        self._kept_blocks = list(item_blocks(*table, size=self.table.rows))
        return self._kept_blocks


@njit(cache=True)
def _limit_per_group(best_QJ, score_QJ, limits, queries_Q, rows_QK, scores_QK, enough):  # type: ignore[no-untyped-def]
    """Copy the best rows to ``rows_QK[queries_Q]``, but at most so many rows of a group.

    ``limits`` are where the groups of each row start, the groups, and the most rows of one.

    Returns:
        Which queries have ``enough`` rows, or no more candidates, bool (Q,).
    """
    starts_R1, values_N, max_per_group = limits
    count = rows_QK.shape[1]
    full_Q = np.zeros(queries_Q.shape[0], np.bool_)
    for q in range(queries_Q.shape[0]):
        query, kept = queries_Q[q], 0
        for j in range(best_QJ.shape[1]):
            row = best_QJ[q, j]
            if row < 0 or kept == count:
                full_Q[q] = True
                break
            allowed = True
            for value in values_N[starts_R1[row] : starts_R1[row + 1]]:
                members = 0
                for k in range(kept):
                    other = rows_QK[query, k]
                    for member in values_N[starts_R1[other] : starts_R1[other + 1]]:
                        members += member == value
                allowed = allowed and members < max_per_group
            if allowed:
                rows_QK[query, kept], scores_QK[query, kept] = row, score_QJ[q, j]
                kept += 1
        full_Q[q] = full_Q[q] or kept >= enough
    return full_Q
