"""Ranking metrics of each query, compiled; ``ranking.py`` has the formulas.

    metrics_QJM = hit_metrics_per_query(best_item_QK, truth)

Shapes: Q queries, K ranks, J depths, M metrics, N items of all lists, I items.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.kvstore.elements import lower_bound
from crossfade.kvstore.jit import inner_kernel, njit
from crossfade.kvstore.threads import balanced_chunk_size, for_chunks

METRICS = 5
"""Recall, ndcg, map, mrr and hit rate, in this order."""


class Truth(NamedTuple):
    """What rankings are compared with.

    Attributes:
        starts_Q1: where each query's held-out items start in ``items_N``; each has some.
        items_N: held-out items, sorted within each query.
        depth_J: the depths, rising.
        gain_K: gain of a hit at each rank.
        ideal_K: the gain of hits at all ranks up to each.
    """

    starts_Q1: IntArray
    items_N: IntArray
    depth_J: IntArray
    gain_K: FloatArray
    ideal_K: FloatArray


@inner_kernel()
def _measure_hits(best_item_K, truth, q, metrics_JM):  # type: ignore[no-untyped-def]
    """Write recall, ndcg, map, mrr and hit rate of query ``q`` at each depth."""
    starts_Q1, items_N, depth_J, gain_K, ideal_K = truth
    truth_N = items_N[starts_Q1[q] : starts_Q1[q + 1]]
    hits, first, gain, precision, j = 0, 0, 0.0, 0.0, 0
    for k in range(depth_J[-1]):
        place = lower_bound(truth_N, best_item_K[k])
        if place < truth_N.shape[0] and truth_N[place] == best_item_K[k]:
            hits += 1
            first = first if first else k + 1
            gain += gain_K[k]
            precision += hits / (k + 1)
        if k + 1 == depth_J[j]:
            max_hits = min(depth_J[j], truth_N.shape[0])
            metrics_JM[j, 0] = hits / truth_N.shape[0]
            metrics_JM[j, 1] = gain / ideal_K[max_hits - 1]
            metrics_JM[j, 2] = precision / max_hits
            metrics_JM[j, 3] = 1 / first if first else 0.0
            metrics_JM[j, 4] = 1.0 if first else 0.0
            j += 1


@inner_kernel()
def _measure_chunk(begin, end, best_item_QK, truth, metrics_QJM):  # type: ignore[no-untyped-def]
    for q in range(begin, end):
        _measure_hits(best_item_QK[q], truth, q, metrics_QJM[q])


@njit(cache=True, error_model="numpy")
def hit_metrics_per_query(best_item_QK, truth):  # type: ignore[no-untyped-def]
    """Return recall, ndcg, map, mrr and hit rate of each query at each depth, float64 (Q, J, M).

    ``best_item_QK`` has each query's ranking, padded with -1.
    """
    metrics_QJM = np.empty((best_item_QK.shape[0], truth.depth_J.shape[0], METRICS))
    size = balanced_chunk_size(best_item_QK.shape[0])
    for_chunks(_measure_chunk, best_item_QK.shape[0], size, (best_item_QK, truth, metrics_QJM))
    return metrics_QJM


@inner_kernel()
def _mean_counts_of_chunk(begin, end, best_item_QK, counts_I, depth_J, means_QJ):  # type: ignore[no-untyped-def]
    for q in range(begin, end):
        total, ranked, j = 0, 0, 0
        for k in range(depth_J[-1]):
            if best_item_QK[q, k] >= 0:
                total += counts_I[best_item_QK[q, k]]
                ranked += 1
            if k + 1 == depth_J[j]:
                means_QJ[q, j] = total / max(ranked, 1)
                j += 1


@njit(cache=True, error_model="numpy")
def mean_counts(best_item_QK, counts_I, depth_J):  # type: ignore[no-untyped-def]
    """Return the mean count of each ranking's items at each depth, float64 (Q, J)."""
    means_QJ = np.empty((best_item_QK.shape[0], depth_J.shape[0]))
    size = balanced_chunk_size(best_item_QK.shape[0])
    for_chunks(_mean_counts_of_chunk, best_item_QK.shape[0], size, (best_item_QK, counts_I, depth_J, means_QJ))
    return means_QJ


@njit(cache=True)
def mark_seen(best_item_QK, depth_J, seen_JI):  # type: ignore[no-untyped-def]
    """Mark the items of rankings of each depth in ``seen_JI``."""
    for q in range(best_item_QK.shape[0]):
        j = 0
        for k in range(depth_J[-1]):
            if k == depth_J[j]:
                j += 1
            # Marked at the smallest depth only; deeper rankings contain it as well.
            if best_item_QK[q, k] >= 0:
                seen_JI[j, best_item_QK[q, k]] = True
