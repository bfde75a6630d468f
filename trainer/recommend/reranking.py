"""Re-rank the best items of a query: less popular ones, and more different ones.

    reranking = Reranking.of(RerankingOptions.of(diversity=0.3), job)
    rows_QK, scores_QK = reranking.choose(rows_QC, scores_QC, 10, source, model.item)

With s the model's score of an item, T the model's temperature, and c its interactions of positive weight in train:

- damping: s' = s − α·T·log(1 + c). For a softmax model, s/T estimates log p(item | query) up to a constant, so that
  α = 1 ranks by p(item | query) / p(item), the lift, and 0 < α < 1 lies between. An item without a count has s' = s.
- diversity: of the best C items, each place of the list takes the one with the largest
  (1 − δ)·s'/T − δ·max cos(item, item listed already)      (maximal marginal relevance; Carbonell and Goldstein,
  SIGIR 1998, with scores in units of the temperature, so that δ means the same for all scores and models)

Ties take the better item. Scores that are returned are s', whatever the place. The ranking of all items subtracts the
damping. The cost of diversity is K·C·D operations for each query.

Shapes: Q queries, K ranks, C candidates of a query, R rows of the items, N rows, E rows with vectors, D columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.kvstore.jit import allocating_kernel, njit
from crossfade.kvstore.lanes import exact_dot
from crossfade.kvstore.store import TableSpec
from crossfade.kvstore.threads import balanced_chunk_size, for_chunks
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.config.sections import resolved
from crossfade.trainer.embeddings.files import VectorSource
from crossfade.trainer.recommend.options import RerankingOptions
from crossfade.trainer.recommend.top_k import unit_rows

_MAX_VALUES = 1 << 26
"""Values of candidates' vectors that are in memory together."""


@dataclass(frozen=True)
class Reranking:
    """What options ask for, of a model.

    Attributes:
        options: say how.
        temperature: the temperature of the model's loss.
    """

    options: RerankingOptions
    temperature: float

    @classmethod
    def of(cls, options: RerankingOptions, job: JobConfig) -> Reranking:
        """Return what ``options`` ask for, of the model that ``job`` has trained."""
        return cls(options, resolved(job.model.temperature))

    def damping(self, counts_R: IntArray) -> FloatArray:
        """Return α·T·log(1 + c) of items with ``counts_R`` interactions in train, float32 (R,)."""
        scale = self.options.popularity_damping * self.temperature
        damping_R: FloatArray = (scale * np.log1p(counts_R)).astype(np.float32)
        return damping_R

    def choose(
        self,
        rows_QC: IntArray,
        scores_QC: FloatArray,
        count: int,
        source: VectorSource,
        table: TableSpec,
    ) -> tuple[IntArray, FloatArray]:
        """Choose ``count`` of the candidates of each query: rows int64 and scores float32 (Q, K), K at most C.

        Args:
            rows_QC: the best rows of each query, int64, padded with -1, of which there are ``options.depth(count)``.
            scores_QC: their scores, float32.
            count: length of a list.
            source: vectors of ``table``.
            table: the items.
        """
        queries, candidates = rows_QC.shape
        chosen_QK = np.empty((queries, min(count, candidates)), np.int64)
        weights = (1 - self.options.diversity) / self.temperature, self.options.diversity
        step = queries or 1
        if table.rows * table.dim > _MAX_VALUES:
            step = max(1, _MAX_VALUES // (candidates * table.dim))
        for first in range(0, queries, step):
            part = slice(first, first + step)
            row_E = np.unique(rows_QC[part][rows_QC[part] >= 0])
            unit_ED = unit_rows(source.vectors(table.name, row_E))
            place_QC = np.where(rows_QC[part] >= 0, np.searchsorted(row_E, rows_QC[part]), -1)
            _choose(place_QC, scores_QC[part], unit_ED, weights, chosen_QK[part])
        rows_QK = np.where(chosen_QK >= 0, np.take_along_axis(rows_QC, chosen_QK, axis=1), -1)
        scores_QK = np.where(chosen_QK >= 0, np.take_along_axis(scores_QC, chosen_QK, axis=1), np.float32(-np.inf))
        return rows_QK, scores_QK


@allocating_kernel()
def _choose_for_chunk(begin, end, place_QC, scores_QC, unit_ED, weights, chosen_QK):  # type: ignore[no-untyped-def]
    relevance, redundancy = weights
    nearest_C = np.empty(place_QC.shape[1])
    is_left_C = np.empty(place_QC.shape[1], np.bool_)
    for q in range(begin, end):
        for c in range(place_QC.shape[1]):
            nearest_C[c] = -1.0
            is_left_C[c] = place_QC[q, c] >= 0
        for k in range(chosen_QK.shape[1]):
            chosen, best = -1, -np.inf
            for c in range(place_QC.shape[1]):
                if not is_left_C[c]:
                    continue
                value = relevance * scores_QC[q, c] - redundancy * nearest_C[c]
                if chosen < 0 or value > best:
                    chosen, best = c, value
            chosen_QK[q, k] = chosen
            if chosen < 0:
                continue
            is_left_C[chosen] = False
            for c in range(place_QC.shape[1]):
                if is_left_C[c]:
                    cosine = exact_dot(unit_ED[place_QC[q, chosen]], unit_ED[place_QC[q, c]])
                    nearest_C[c] = max(nearest_C[c], cosine)


@njit(cache=True, nogil=True)
def _choose(place_QC, scores_QC, unit_ED, weights, chosen_QK):  # type: ignore[no-untyped-def]
    """Write the candidates that each place of a list takes, int64, -1 where none is left.

    Args:
        place_QC: candidates of each query, as places in ``unit_ED``, padded with -1.
        scores_QC: their scores.
        unit_ED: vectors of length 1, or 0.
        weights: of the score, and of the largest cosine with a candidate chosen before.
        chosen_QK: is filled.
    """
    arguments = (place_QC, scores_QC, unit_ED, weights, chosen_QK)
    for_chunks(_choose_for_chunk, place_QC.shape[0], balanced_chunk_size(place_QC.shape[0]), arguments)
