"""Search an index in place of an exact ranking, with the same filters, exclusions and limits per group.

    index = open_index(Path("indexes/lastfm"), model, "artist", "cosine")
    rows_QK, scores_QK = IndexRanker(index, model, candidates).rank(query_QD, excluded, count=10)

Shapes: Q queries, K ranks, J ranks before exclusions, N elements of lists, R rows of the entity, D columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from crossfade.base.arrays import BoolArray, FloatArray, IntArray
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.config.score import ScoreKind
from crossfade.trainer.data.jagged_array import JaggedArray
from crossfade.trainer.embeddings.popularity import with_ones
from crossfade.trainer.model.spec import Score
from crossfade.trainer.recommend.candidates import Candidates
from crossfade.trainer.recommend.faiss_lists import VectorLists
from crossfade.trainer.recommend.index_folder import INDEX_FILE, check_index, read_card
from crossfade.trainer.recommend.ranker import Ranker
from crossfade.trainer.recommend.trained_model import TrainedModel

MEASURED_DEPTH = 100
"""The depth that the number of lists to scan was chosen for."""
_CHUNK_QUERIES = 1024
_CHUNK_RANKS = 1 << 20
"""Ranks of all queries of a chunk, unless a single query has more."""
_PROBE_FACTOR = 4
"""How many times as many lists are scanned for queries whose lists had too few rows."""


@dataclass(frozen=True)
class VectorIndex:
    """An opened index.

    Attributes:
        lists: the vectors.
        probes: the lists that a search scans.
        indexed_R: which rows of the entity it has, bool (R,).
    """

    lists: VectorLists
    probes: int
    indexed_R: BoolArray


def open_index(folder: Path, model: TrainedModel, entity: str, metric: ScoreKind) -> VectorIndex:
    """Open the index in ``folder``, which must have the vectors of ``entity`` in ``model`` and search by ``metric``.

    Raises:
        InputError: there is none, it is another one, or it cannot be read.
        MissingExtraError: FAISS is not installed.
    """
    return open_built_index(folder, check_index(read_card(folder), folder, model.compared_by(metric), entity, metric))


def open_built_index(folder: Path, indexed_R: BoolArray) -> VectorIndex:
    """Open the index in ``folder``, which has been built with the vectors of ``indexed_R``, bool (R,), without checks.

    Raises:
        InputError: there is none, or it cannot be read.
        MissingExtraError: FAISS is not installed.
    """
    card = read_card(folder)
    return VectorIndex(VectorLists.read(folder / INDEX_FILE, card.metric), card.probes, indexed_R)


class IndexRanker(Ranker):
    """Ranks by an index.

    Filters and deep rankings scan more lists, so that recall does not fall with them. Where the scanned lists have too
    few candidates for a query, more are scanned, in the end all of them.
    """

    def __init__(
        self, index: VectorIndex, model: TrainedModel, table: TableSpec, score: Score, candidates: Candidates
    ) -> None:
        """Rank the ``candidates`` of ``table`` that ``index`` has.

        An index for a ``score`` with offsets has the vectors of ``model.ranking_model()``.
        """
        candidates = replace(candidates, kept_R=candidates.kept_R & index.indexed_R)
        super().__init__(model.vectors, table, score, candidates)
        self._index = index
        is_filtered = self._num_candidates < np.count_nonzero(index.indexed_R)
        self._kept_R = candidates.kept_R if is_filtered else None

    def _rank(self, query_QD: FloatArray, excluded: JaggedArray, count: int) -> tuple[IntArray, FloatArray]:
        rows_QK = np.full((len(query_QD), count), -1, np.int64)
        scores_QK = np.full((len(query_QD), count), -np.inf, np.float32)
        if not self._num_candidates or not count:
            return rows_QK, scores_QK
        if self._score.offset_I is not None:
            query_QD = with_ones(query_QD, self._score)
        # Queries of about as many exclusions are searched together, to a depth that no other query changes.
        depth_Q = np.minimum(count + _rounded_up(excluded.counts_L), self._num_candidates)
        for depth in np.unique(depth_Q):
            chunk = max(1, min(_CHUNK_QUERIES, _CHUNK_RANKS // int(depth)))
            of_depth_Q = np.flatnonzero(depth_Q == depth)
            for first in range(0, len(of_depth_Q), chunk):
                queries_Q, probes = of_depth_Q[first : first + chunk], self._probes(int(depth))
                while len(queries_Q):
                    asked_QD, lists = query_QD[queries_Q], self._index.lists
                    best = lists.search(asked_QD, int(depth), probes, self._kept_R)
                    complete_Q = best[0][:, -1] >= 0
                    best = without_excluded(*best, excluded.take(queries_Q), count, len(self._index.indexed_R))
                    rows_QK[queries_Q], scores_QK[queries_Q] = best
                    complete_Q |= (best[0][:, -1] >= 0) | (probes >= lists.lists)
                    queries_Q, probes = queries_Q[~complete_Q], probes * _PROBE_FACTOR
        return rows_QK, scores_QK

    def _probes(self, depth: int) -> int:
        """Return the lists to scan for ``depth`` rows: those of the card are for 100 rows of all that it has."""
        share = np.count_nonzero(self._index.indexed_R) / self._num_candidates
        return int(min(self._index.probes * share * max(1.0, depth / MEASURED_DEPTH), self._index.lists.lists))


def _rounded_up(count_Q: IntArray) -> IntArray:
    """Round counts up to three binary digits: to few different ones, each at most a quarter more."""
    step_Q: IntArray = 2 ** np.maximum(np.frexp(count_Q)[1].astype(np.int64) - 3, 0)
    return -(-count_Q // step_Q) * step_Q


def without_excluded(
    rows_QJ: IntArray, scores_QJ: FloatArray, excluded: JaggedArray, count: int, rows: int
) -> tuple[IntArray, FloatArray]:
    """Return the ``count`` best of ``rows_QJ`` that are not ``excluded``, padded with row -1 and score -inf."""
    query_N = np.repeat(np.arange(len(rows_QJ)), excluded.counts_L)
    number_QJ = np.arange(len(rows_QJ))[:, None] * rows + rows_QJ
    dropped_QJ = np.isin(number_QJ, query_N * rows + excluded.values_N) | (rows_QJ < 0)
    order_QK = np.argsort(dropped_QJ, axis=1, kind="stable")[:, :count]
    dropped_QK = np.take_along_axis(dropped_QJ, order_QK, axis=1)
    rows_QK = np.where(dropped_QK, -1, np.take_along_axis(rows_QJ, order_QK, axis=1))
    scores_QK = np.where(dropped_QK, np.float32(-np.inf), np.take_along_axis(scores_QJ, order_QK, axis=1))
    padding = (0, 0), (0, count - rows_QK.shape[1])
    return np.pad(rows_QK, padding, constant_values=-1), np.pad(scores_QK, padding, constant_values=-np.inf)
