"""Measure what rankings show, apart from hits, compiled; ``beyond_accuracy.py`` has the formulas.

    diversity_QJ = list_diversity(best_place_QK, unit_ED, depth_J)
    novelty_QJ = mean_over_ranks(best_item_QK, self_information_I, depth_J)
    add_exposure(best_item_QK, depth_J, exposure_JI)

Shapes: Q queries, K ranks, J depths, E items with vectors, I items, D columns.
"""

from __future__ import annotations

import numpy as np

from crossfade.kvstore.jit import allocating_kernel, inner_kernel, njit
from crossfade.kvstore.threads import balanced_chunk_size, for_chunks


@allocating_kernel()
def _diversity_of_chunk(begin, end, best_place_QK, unit_ED, depth_J, diversity_QJ):  # type: ignore[no-untyped-def]
    sum_D = np.empty(unit_ED.shape[1])
    for q in range(begin, end):
        sum_D[:] = 0.0
        squares, ranked, j = np.float64(0.0), 0, 0
        for k in range(depth_J[-1]):
            place = best_place_QK[q, k]
            if place >= 0:
                ranked += 1
                for d in range(sum_D.shape[0]):
                    value = np.float64(unit_ED[place, d])
                    sum_D[d] += value
                    squares += value * value
            if k + 1 == depth_J[j]:
                square_of_sum = 0.0
                for d in range(sum_D.shape[0]):
                    square_of_sum += sum_D[d] * sum_D[d]
                pairs = ranked * (ranked - 1)
                diversity_QJ[q, j] = 1.0 - (square_of_sum - squares) / pairs if pairs else np.nan
                j += 1


@njit(cache=True, error_model="numpy")
def list_diversity(best_place_QK, unit_ED, depth_J):  # type: ignore[no-untyped-def]
    """Return the mean of 1 - cosine over the pairs of each ranking at each depth, float64 (Q, J); NaN without a pair.

    The cosines of all pairs add up to (|Σv|² − Σ|v|²) / 2, so no pair is visited.

    Args:
        best_place_QK: each query's ranking, as places in ``unit_ED``, padded with -1.
        unit_ED: vectors of length 1, or 0.
        depth_J: the depths, rising.
    """
    diversity_QJ = np.empty((best_place_QK.shape[0], depth_J.shape[0]))
    arguments = (best_place_QK, unit_ED, depth_J, diversity_QJ)
    for_chunks(_diversity_of_chunk, best_place_QK.shape[0], balanced_chunk_size(best_place_QK.shape[0]), arguments)
    return diversity_QJ


@inner_kernel()
def _means_of_chunk(begin, end, best_item_QK, value_I, depth_J, mean_QJ):  # type: ignore[no-untyped-def]
    for q in range(begin, end):
        total, ranked, j = 0.0, 0, 0
        for k in range(depth_J[-1]):
            if best_item_QK[q, k] >= 0:
                total += value_I[best_item_QK[q, k]]
                ranked += 1
            if k + 1 == depth_J[j]:
                mean_QJ[q, j] = total / ranked if ranked else np.nan
                j += 1


@njit(cache=True, error_model="numpy")
def mean_over_ranks(best_item_QK, value_I, depth_J):  # type: ignore[no-untyped-def]
    """Return the mean of ``value_I`` over each ranking's items at each depth, float64 (Q, J); NaN without an item."""
    mean_QJ = np.empty((best_item_QK.shape[0], depth_J.shape[0]))
    arguments = (best_item_QK, value_I, depth_J, mean_QJ)
    for_chunks(_means_of_chunk, best_item_QK.shape[0], balanced_chunk_size(best_item_QK.shape[0]), arguments)
    return mean_QJ


@njit(cache=True)
def add_exposure(best_item_QK, depth_J, exposure_JI):  # type: ignore[no-untyped-def]
    """Count each item's places in rankings, in the row of the smallest depth that includes the place."""
    for q in range(best_item_QK.shape[0]):
        j = 0
        for k in range(depth_J[-1]):
            if k == depth_J[j]:
                j += 1
            if best_item_QK[q, k] >= 0:
                exposure_JI[j, best_item_QK[q, k]] += 1
