"""Measure rankings query by query: their hits and what they show (``ranking.py`` and ``beyond_accuracy.py``).

Shapes: Q queries, K ranks, J depths, M metrics, N held-out items of all queries, I items, E items with vectors, D
columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from crossfade.base.arrays import BoolArray, FloatArray, IntArray
from crossfade.trainer.data.jagged_array import JaggedArray

QUERY_METRICS = ("recall", "ndcg", "map", "mrr", "hit_rate")
_MAX_RANKS = 1 << 20
"""Ranks whose hits are in memory together, as arrays of eight bytes."""
_MAX_VALUES = 1 << 21
"""Values of ranked items' vectors, likewise."""


def hit_metrics(best_item_QK: IntArray, truth: JaggedArray, depths: Sequence[int]) -> FloatArray:
    """Return ``QUERY_METRICS`` of each query at each of ``depths``, which rise: float64 (Q, J, M).

    ``best_item_QK`` has each query's ranking, padded with -1; each query has a held-out item in ``truth``.
    """
    depth_J, queries = np.array(depths), len(best_item_QK)
    parts = [np.empty((0, len(depths), len(QUERY_METRICS)))]
    step = max(1, _MAX_RANKS // depths[-1])
    for first in range(0, queries, step):
        end = min(first + step, queries)
        parts.append(_hit_metrics(best_item_QK[first:end, : depths[-1]], truth.take(np.arange(first, end)), depth_J))
    return np.concatenate(parts)


def _hit_metrics(best_item_QK: IntArray, truth: JaggedArray, depth_J: IntArray) -> FloatArray:
    hit_QK, size_Q1 = _hits(best_item_QK, truth), truth.counts_L[:, np.newaxis]
    count_QK, rank_K = np.cumsum(hit_QK, axis=1), np.arange(1, depth_J[-1] + 1)
    gain_K = 1.0 / np.log2(rank_K + 1)
    most_QJ = np.minimum(depth_J, size_Q1)
    count_QJ, gain_QJ, precision_QJ = (
        sum_QK[:, depth_J - 1]
        for sum_QK in (
            count_QK,
            np.cumsum(hit_QK * gain_K, axis=1),
            np.cumsum(hit_QK * (count_QK / rank_K), axis=1),
        )
    )
    has_hit_QJ, first_Q1 = count_QJ > 0, hit_QK.argmax(axis=1)[:, np.newaxis] + 1
    ideal_QJ = np.cumsum(gain_K)[most_QJ - 1]
    metrics = (count_QJ / size_Q1, gain_QJ / ideal_QJ, precision_QJ / most_QJ, has_hit_QJ / first_Q1, has_hit_QJ)
    return np.stack(metrics, axis=2)


def _hits(best_item_QK: IntArray, truth: JaggedArray) -> BoolArray:
    """Return which ranked items are held out for their query."""
    items = max(best_item_QK.max(initial=0), truth.values_N.max(initial=0)) + 1
    number_Q = np.arange(len(best_item_QK))
    pair_N = np.repeat(number_Q, truth.counts_L) * items + truth.values_N
    pair_QK = number_Q[:, np.newaxis] * items + best_item_QK
    place_QK = np.minimum(np.searchsorted(pair_N, pair_QK), len(pair_N) - 1)
    hit_QK: BoolArray = (best_item_QK >= 0) & (pair_N[place_QK] == pair_QK)
    return hit_QK


def mean_over_ranks(best_item_QK: IntArray, value_I: IntArray | FloatArray, depths: Sequence[int]) -> FloatArray:
    """Return the mean of ``value_I`` over each ranking's items at each depth, float64 (Q, J); NaN without an item."""
    is_ranked_QK, last_J = best_item_QK >= 0, np.array(depths) - 1
    total_QJ = np.cumsum(np.where(is_ranked_QK, value_I[best_item_QK], 0), axis=1)[:, last_J]
    with np.errstate(invalid="ignore"):
        mean_QJ: FloatArray = total_QJ / np.cumsum(is_ranked_QK, axis=1)[:, last_J]
    return mean_QJ


def list_diversity(best_place_QK: IntArray, unit_ED: FloatArray, depths: Sequence[int]) -> FloatArray:
    """Return the mean of 1 - cosine over the pairs of each ranking at each depth, float64 (Q, J); NaN without a pair.

    The cosines of all pairs add up to (|Σv|² − Σ|v|²) / 2, so no pair is visited.

    Args:
        best_place_QK: each query's ranking, as places in ``unit_ED``, padded with -1.
        unit_ED: vectors of length 1, or 0.
        depths: the depths, rising.
    """
    if not len(unit_ED):  # nothing is ranked
        return np.full((len(best_place_QK), len(depths)), np.nan)
    parts, step = [np.empty((0, len(depths)))], max(1, _MAX_VALUES // (depths[-1] * unit_ED.shape[1]))
    for first in range(0, len(best_place_QK), step):
        parts.append(_diversity(best_place_QK[first : first + step], unit_ED, np.array(depths)))
    return np.concatenate(parts)


def _diversity(best_place_QK: IntArray, unit_ED: FloatArray, depth_J: IntArray) -> FloatArray:
    is_ranked_QK, dim = best_place_QK >= 0, unit_ED.shape[1]
    vector_QKD = np.where(is_ranked_QK[:, :, np.newaxis], unit_ED[best_place_QK], 0.0).astype(np.float64)
    sum_QJD = np.cumsum(vector_QKD, axis=1)[:, depth_J - 1]
    # Added one by one, so that a mean has the same bits with any processor.
    square_of_sum_QJ = np.cumsum(np.square(sum_QJD), axis=2)[:, :, -1]
    squares_QJ = np.cumsum(np.square(vector_QKD).reshape(len(vector_QKD), -1), axis=1)[:, depth_J * dim - 1]
    ranked_QJ = np.cumsum(is_ranked_QK, axis=1)[:, depth_J - 1]
    with np.errstate(invalid="ignore"):
        diversity_QJ: FloatArray = 1.0 - (square_of_sum_QJ - squares_QJ) / (ranked_QJ * (ranked_QJ - 1))
    return diversity_QJ


def shown_at(best_item_QK: IntArray, depths: Sequence[int]) -> Iterator[IntArray]:
    """Yield, for each depth, the items that rankings show from the depth before it on, repeated: int64 (N,)."""
    for first, end in pairwise([0, *depths]):
        shown_QK = best_item_QK[:, first:end]
        yield shown_QK[shown_QK >= 0]
