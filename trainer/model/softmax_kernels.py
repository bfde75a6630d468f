"""Softmax losses of tiles of scores, with explicit vector code: two passes over a row of scores, in the cache.

    pool_softmax_pass(tile, ...)            # a tile of examples that share a pool of negatives
    all_items_softmax_pass(tile, ...)       # a tile of queries against all items

Before, a tile has dot products; afterwards, powers E = exp(score − largest score of the row). The derivative of a loss
by a score is the power times the example's factor. Rather than in another pass over the tile, factors are multiplied
into the queries' vectors and, by the caller, into the product of powers and items. A term that is the same for all
scores of an example cancels, so the query's squared norm is left out of scores, and has no gradient.

Powers of negatives that do not count are set to 0. They are found in the lists of uses of the example's item and query,
rather than by comparing every negative.

Shapes: T examples of a tile, C negatives of a pool, B examples, N uses or examples, A active rows, D columns.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from crossfade.base.arrays import FloatArray
from crossfade.kvstore.elements import lower_bound
from crossfade.kvstore.jit import njit
from crossfade.kvstore.lanes import (
    add,
    dot_lanes,
    largest_of,
    load_first,
    maximum,
    multiply,
    multiply_add,
    power_of_two,
    splat,
    store,
    store_first,
    subtract,
    sum_of,
)
from crossfade.kvstore.vector_ir import LANES
from crossfade.trainer.model.kernel_arguments import ScoreScales, TopK, Uses
from crossfade.trainer.model.loss_math import ONE, ZERO, exp, log_sigmoid_loss
from crossfade.trainer.model.top_k_kernels import kept_scores, kth_score, scores_at, weight_above

_LOWEST = np.float32(-np.inf)
_STEP = 4 * LANES
_LOG2_E, _LN2_HIGH, _LN2_LOW = np.float32(1.4426950408889634), np.float32(0.693359375), np.float32(-2.12194440e-4)
_C0, _C1, _C2, _C3, _C4, _C5 = (
    np.float32(c)
    for c in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
)
_SHIFT, _LOWEST_EXPONENT = np.float32(1.5 * 2**23), np.float32(-87.0)


class Tile(NamedTuple):
    """Examples, or queries, whose scores are in the cache together.

    Attributes:
        first: the first of them.
        query_TD: vectors of their queries, which a softmax pass multiplies by factors.
        scores_TC: dot products with the pool's vectors, which a pass turns into derivatives by score, over factors.
    """

    first: int
    query_TD: FloatArray
    scores_TC: FloatArray


class Pool(NamedTuple):
    """The negatives of examples: drawn ones, then in-batch ones.

    Attributes:
        examples: number of examples of the batch.
        drawn: number of drawn negatives.
        first_in_batch: the first of the examples whose items are in-batch negatives.
        end_in_batch: their end.
        offset_C: subtracted from the scores of the pool.
        top_k: which examples weigh more, where the pool is all items.
    """

    examples: int
    drawn: int
    first_in_batch: int
    end_in_batch: int
    offset_C: FloatArray
    top_k: TopK


class ExampleResults(NamedTuple):
    """What a pass fills.

    Attributes:
        loss_B: losses.
        slope_B: derivatives by the score of the example's own item.
        factor_B: factors of the powers.
    """

    loss_B: FloatArray
    slope_B: FloatArray
    factor_B: FloatArray


@njit(cache=True, error_model="numpy", inline="always")
def _exp_lanes(x):  # type: ignore[no-untyped-def]
    """Return e^x of each lane, which is at most 0; below −87, e^−87. The formula is that of ``loss_math.exp``."""
    x = maximum(splat(_LOWEST_EXPONENT), x)
    shifted = multiply_add(x, splat(_LOG2_E), splat(_SHIFT))
    n = subtract(shifted, splat(_SHIFT))
    r = multiply_add(n, splat(-_LN2_HIGH), x)
    r = multiply_add(n, splat(-_LN2_LOW), r)
    p = multiply_add(splat(_C0), r, splat(_C1))
    p = multiply_add(p, r, splat(_C2))
    p = multiply_add(p, r, splat(_C3))
    p = multiply_add(p, r, splat(_C4))
    p = multiply_add(p, r, splat(_C5))
    p = add(multiply_add(multiply(p, r), r, r), splat(ONE))
    return multiply(p, power_of_two(shifted))


@njit(cache=True, error_model="numpy", inline="always")
def _rest_of_scores(row_C, offset_C, c, scale):  # type: ignore[no-untyped-def]
    rest = row_C.shape[0] - c
    return subtract(multiply(load_first(row_C, c, rest, _LOWEST), scale), load_first(offset_C, c, rest, ZERO))


@njit(cache=True, error_model="numpy")
def _largest(row_C, offset_C, dot_scale):  # type: ignore[no-untyped-def]
    """Return the largest score, −inf if there is none."""
    scale = splat(dot_scale)
    w = x = y = z = splat(_LOWEST)
    c, count = 0, row_C.shape[0]
    while c + _STEP <= count:
        w = maximum(w, scores_at(row_C, offset_C, c, scale))
        x = maximum(x, scores_at(row_C, offset_C, c + LANES, scale))
        y = maximum(y, scores_at(row_C, offset_C, c + 2 * LANES, scale))
        z = maximum(z, scores_at(row_C, offset_C, c + 3 * LANES, scale))
        c += _STEP
    while c + LANES <= count:
        w = maximum(w, scores_at(row_C, offset_C, c, scale))
        c += LANES
    if c < count:
        x = maximum(x, _rest_of_scores(row_C, offset_C, c, scale))
    return largest_of(maximum(maximum(w, x), maximum(y, z)))


@njit(cache=True, error_model="numpy", inline="always")
def _store_power(row_C, offset_C, c, scale, largest):  # type: ignore[no-untyped-def]
    power = _exp_lanes(subtract(scores_at(row_C, offset_C, c, scale), largest))
    store(row_C, c, power)
    return power


@njit(cache=True, error_model="numpy")
def store_powers(row_C, offset_C, dot_scale, largest_score):  # type: ignore[no-untyped-def]
    """Replace dot products by the powers of scores less the largest, and return the sum of the powers."""
    scale, largest = splat(dot_scale), splat(largest_score)
    w = x = y = z = splat(ZERO)
    c, count = 0, row_C.shape[0]
    while c + _STEP <= count:
        w = add(w, _store_power(row_C, offset_C, c, scale, largest))
        x = add(x, _store_power(row_C, offset_C, c + LANES, scale, largest))
        y = add(y, _store_power(row_C, offset_C, c + 2 * LANES, scale, largest))
        z = add(z, _store_power(row_C, offset_C, c + 3 * LANES, scale, largest))
        c += _STEP
    while c + LANES <= count:
        w = add(w, _store_power(row_C, offset_C, c, scale, largest))
        c += LANES
    if c < count:
        power = _exp_lanes(subtract(_rest_of_scores(row_C, offset_C, c, scale), largest))
        store_first(row_C, c, count - c, power)
        x = add(x, load_first(row_C, c, count - c, ZERO))
    return sum_of(add(add(w, x), add(y, z)))


@njit(cache=True, error_model="numpy", inline="always")
def _fill(row_C, value, uses_N, first_use, first_place, end_use):  # type: ignore[no-untyped-def]
    """Set the places of the uses of a row, sorted, from ``first_use`` to ``end_use``, to ``value``."""
    n = lower_bound(uses_N, first_use)
    while n < uses_N.shape[0] and uses_N[n] < end_use:
        row_C[first_place + uses_N[n] - first_use] = value
        n += 1


@njit(cache=True, error_model="numpy", inline="always")
def _fill_uncounted(row_C, value, item_uses_N, query_uses_N, pool):  # type: ignore[no-untyped-def]
    """Set the places of negatives that do not count for an example to ``value``."""
    _fill(row_C, value, item_uses_N, pool.examples, 0, pool.examples + pool.drawn)
    if pool.end_in_batch > pool.first_in_batch:
        _fill(row_C, value, item_uses_N, pool.first_in_batch, pool.drawn, pool.end_in_batch)
        _fill(row_C, value, query_uses_N, pool.first_in_batch, pool.drawn, pool.end_in_batch)


@njit(cache=True, error_model="numpy", nogil=True)
def pool_softmax_pass(tile, item_AD, item_uses: Uses, query_uses, weight_B, pool, scales: ScoreScales, results):  # type: ignore[no-untyped-def]
    """Compute the losses of a tile of examples; dot products become powers, and queries are multiplied by factors.

    Args:
        tile: the ``Tile``.
        item_AD: vectors of the active items.
        item_uses: the ``Uses`` of the items.
        query_uses: the same of the queries.
        weight_B: the examples' weights.
        pool: the ``Pool``.
        scales: the ``ScoreScales``.
        results: the ``ExampleResults``.
    """
    first, query_TD, scores_TC = tile
    item_index_N, item_order_N, item_starts_A1 = item_uses
    query_index_N, query_order_N, query_starts_A1 = query_uses
    loss_B, slope_B, factor_B = results
    offset_C, kept_N = pool.offset_C, np.empty(kept_scores(pool.top_k.k), np.float32)
    for t in range(scores_TC.shape[0]):
        b, row_C, query_D = first + t, scores_TC[t], query_TD[t]
        item, query = item_index_N[b], query_index_N[b]
        item_D = item_AD[item]
        score = scales.dot * dot_lanes(query_D, item_D)
        if scales.norm:
            score -= scales.norm * dot_lanes(item_D, item_D)
        item_uses_N = item_order_N[item_starts_A1[item] : item_starts_A1[item + 1]]
        query_uses_N = query_order_N[query_starts_A1[query] : query_starts_A1[query + 1]]
        weight = weight_B[b]
        if pool.top_k.k and weight > ZERO:
            above = score - kth_score(row_C, offset_C, scales.dot, pool.top_k.k, kept_N)
            weight = weight_above(weight, pool.top_k, above)
        _fill_uncounted(row_C, _LOWEST, item_uses_N, query_uses_N, pool)
        loss_B[b], slope_B[b], factor_B[b] = _example(row_C, offset_C, scales.dot, score, weight)
        _fill_uncounted(row_C, ZERO, item_uses_N, query_uses_N, pool)
        for d in range(query_D.shape[0]):
            query_D[d] *= factor_B[b]


@njit(cache=True, error_model="numpy", inline="always")
def _example(row_C, offset_C, dot_scale, score, weight):  # type: ignore[no-untyped-def]
    """Return the loss of an example, its derivative by the item's score, and the factor of the powers."""
    largest = _largest(row_C, offset_C, dot_scale)
    if weight < ZERO:
        # The maximum over negatives only: relative to the item's score, which may be far above, all would be 0.
        if largest == _LOWEST:  # No negative is left, or scores are NaN, and so are the results.
            nothing = ZERO * store_powers(row_C, offset_C, dot_scale, ZERO)
            return nothing, nothing, nothing
        total = store_powers(row_C, offset_C, dot_scale, largest)
        loss, pull = log_sigmoid_loss(np.float32(largest - score + math.log(total)))
        return -weight * loss, -weight * pull, weight * pull / total
    largest = max(largest, score)
    positive = exp(score - largest)
    total = positive + store_powers(row_C, offset_C, dot_scale, largest)
    factor = weight / total
    return weight * (np.float32(math.log(total)) + largest - score), positive * factor - weight, factor


@njit(cache=True, error_model="numpy", nogil=True)
def all_items_softmax_pass(tile, items, item_B, weight_B, uses: Uses, top_k: TopK, loss_N, factor_A):  # type: ignore[no-untyped-def]
    """Compute softmax losses where all items are negatives, scoring each query once for all its examples.

    Dot products become powers, and queries are multiplied by factors.

    Args:
        tile: the ``Tile``, of queries.
        items: ``offset_C``, subtracted from the scores of the items, and the factor of dot products in a score.
        item_B: the examples' items, by place in the pool.
        weight_B: the examples' weights, none below 0.
        uses: the ``Uses`` of the queries.
        top_k: which examples weigh more.
        loss_N: filled with losses, in the order of ``order_N``.
        factor_A: filled with factors of the powers.
    """
    first, query_TD, scores_TC = tile
    offset_C, dot_scale = items
    _, order_N, starts_A1 = uses
    kept_N = np.empty(kept_scores(top_k.k), np.float32)
    for t in range(scores_TC.shape[0]):
        row_C, query_D, a = scores_TC[t], query_TD[t], first + t
        largest, weight = _largest(row_C, offset_C, dot_scale), ZERO
        gap = largest - kth_score(row_C, offset_C, dot_scale, top_k.k, kept_N) if top_k.k else ZERO
        for n in range(starts_A1[a], starts_A1[a + 1]):
            item = item_B[order_N[n]]
            loss_N[n] = largest - (dot_scale * row_C[item] - offset_C[item])
            weight += weight_above(weight_B[order_N[n]], top_k, gap - loss_N[n])
        total = store_powers(row_C, offset_C, dot_scale, largest)
        log_total = np.float32(math.log(total))
        factor_A[a] = weight / total
        for n in range(starts_A1[a], starts_A1[a + 1]):
            own_weight = weight_above(weight_B[order_N[n]], top_k, gap - loss_N[n])
            loss_N[n] = own_weight * (loss_N[n] + log_total)
            if weight > ZERO:
                # In this order, since total / weight overflows where weights are tiny.
                row_C[item_B[order_N[n]]] -= (own_weight / weight) * total
        for d in range(query_D.shape[0]):
            query_D[d] *= factor_A[a]
