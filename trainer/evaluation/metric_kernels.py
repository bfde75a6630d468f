"""Sum ranking metrics over queries, compiled; ``ranking.py`` has the formulas.

    sums_JM = sum_hit_metrics(best_item_QK, starts_Q1, truth_N, depth_J, gain_K, ideal_K).sum(axis=0)

Sums run over blocks of queries of a fixed size first, so that they do not depend on the number of threads.

Shapes: Q queries, K ranks, J depths, B blocks of queries, M metrics, N items of all lists, I items.
"""

from __future__ import annotations

import numpy as np

from kvstore.jit import njit, prange

_QUERIES_OF_BLOCK = 1024


@njit(cache=True, parallel=True)
def sum_hit_metrics(best_item_QK, starts_Q1, truth_N, depth_J, gain_K, ideal_K):  # type: ignore[no-untyped-def]
    """Return recall, ndcg, map, mrr and hit rate at each depth, summed over each block of queries: float64 (B, J, M).

    Args:
        best_item_QK: each query's ranking, padded with -1.
        starts_Q1: where each query's held-out items start in ``truth_N``; each has some.
        truth_N: held-out items, sorted within each query.
        depth_J: the depths, rising.
        gain_K: gain of a hit at each rank.
        ideal_K: the gain of hits at all ranks up to each.
    """
    queries = best_item_QK.shape[0]
    sums_BJM = np.zeros((-(-queries // _QUERIES_OF_BLOCK), depth_J.shape[0], 5))
    for b in prange(sums_BJM.shape[0]):
        for q in range(b * _QUERIES_OF_BLOCK, min((b + 1) * _QUERIES_OF_BLOCK, queries)):
            truth = truth_N[starts_Q1[q] : starts_Q1[q + 1]]
            hits, first, gain, precision, j = 0, 0, 0.0, 0.0, 0
            for k in range(depth_J[-1]):
                place = np.searchsorted(truth, best_item_QK[q, k])
                if place < truth.shape[0] and truth[place] == best_item_QK[q, k]:
                    hits += 1
                    first = first if first else k + 1
                    gain += gain_K[k]
                    precision += hits / (k + 1)
                if k + 1 == depth_J[j]:
                    max_hits = min(depth_J[j], truth.shape[0])
                    sums_BJM[b, j, 0] += hits / truth.shape[0]
                    sums_BJM[b, j, 1] += gain / ideal_K[max_hits - 1]
                    sums_BJM[b, j, 2] += precision / max_hits
                    sums_BJM[b, j, 3] += 1 / first if first else 0.0
                    sums_BJM[b, j, 4] += 1.0 if first else 0.0
                    j += 1
    return sums_BJM


@njit(cache=True, parallel=True)
def sum_popularity(best_item_QK, counts_I, depth_J):  # type: ignore[no-untyped-def]
    """Return the mean count of each ranking's items at each depth, summed over each block: float64 (B, J)."""
    queries = best_item_QK.shape[0]
    sums_BJ = np.zeros((-(-queries // _QUERIES_OF_BLOCK), depth_J.shape[0]))
    for b in prange(sums_BJ.shape[0]):
        for q in range(b * _QUERIES_OF_BLOCK, min((b + 1) * _QUERIES_OF_BLOCK, queries)):
            total, ranked, j = 0, 0, 0
            for k in range(depth_J[-1]):
                if best_item_QK[q, k] >= 0:
                    total += counts_I[best_item_QK[q, k]]
                    ranked += 1
                if k + 1 == depth_J[j]:
                    sums_BJ[b, j] += total / max(ranked, 1)
                    j += 1
    return sums_BJ


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
