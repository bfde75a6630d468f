"""Closed-form losses and derivatives as numba kernels; ``trainer/model/losses.py`` has the formulas.

    loss_B, slope_B = shared_pool_pass(...)         # one pool of negatives for many examples, after a matrix product

Softmax with a pool of which all negatives count has faster kernels, in ``softmax_kernels.py``. The passes over examples
that each have negatives of their own are in ``per_example_kernels.py``.

Shapes: B examples, C negatives of an example, K hard negatives, D columns. Floats are float32.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from crossfade.kvstore.jit import njit
from crossfade.trainer.model.loss_math import ONE, ZERO, dot, exp, largest, log_sigmoid_loss, sum_lanes

BPR, LOGISTIC, SOFTMAX, HINGE, WARP, CCL = range(6)
"""Numbers of the losses. Those from HINGE on have a margin."""
_LOWEST = np.finfo(np.float32).min


class LossParams(NamedTuple):
    """Constants of the losses, float32.

    Attributes:
        margin: m, in units of the scores.
        negative_weight: v, the total weight of the negatives under ccl.
        ranks_per_negative: (N − 1)/C, which scales warp's violations to a rank among all N items.
        max_score: 1/T, the largest cosine score.
    """

    margin: np.float32
    negative_weight: np.float32
    ranks_per_negative: np.float32
    max_score: np.float32


@njit(cache=True, error_model="numpy")
def example_loss(code, score, scores_C, parts_C, item, negatives_C, weight, params):  # type: ignore[no-untyped-def]
    """Return the loss of one example and its derivative by ``score``; overwrite ``scores_C`` with those by the scores.

    It is called, not inlined: compiled into each of the kernels that use it, it took most of their time to compile.

    Args:
        code: the loss, such as BPR.
        score: the score of the example's item.
        scores_C: the scores of its negatives.
        parts_C: scratch memory.
        item: the item's row, to recognize it among the negatives.
        negatives_C: the negatives' rows.
        weight: the example's weight; below 0, negative feedback.
        params: constants of the loss.
    """
    if weight < ZERO:
        return _negative_feedback_loss(code, score, scores_C, parts_C, item, negatives_C, -weight, params)
    if code >= HINGE:
        return _margin_loss(code, score, scores_C, item, negatives_C, weight, params)
    if code == SOFTMAX:
        return _softmax(score, scores_C, item, negatives_C, weight)
    share = weight / np.float32(scores_C.shape[0])
    if code == BPR:
        return _pairs(score, ONE, scores_C, parts_C, item, negatives_C, share)
    positive, pull = log_sigmoid_loss(score)
    others, _ = _pairs(ZERO, ZERO, scores_C, parts_C, item, negatives_C, share)
    return weight * positive + others, -weight * pull


@njit(cache=True, error_model="numpy", inline="always")
def _pairs(score, slope_sign, scores_C, parts_C, item, negatives_C, share):  # type: ignore[no-untyped-def]
    """Return Σ_j share·−log σ(score − s_j) and, times ``slope_sign``, its derivative by ``score``."""
    for c in range(scores_C.shape[0]):
        # Computed for all and then selected: a branch around it would not vectorize.
        part, pull = log_sigmoid_loss(score - scores_C[c])
        counts = share if negatives_C[c] != item else ZERO
        parts_C[c] = counts * part
        scores_C[c] = counts * pull
    return sum_lanes(parts_C), -slope_sign * sum_lanes(scores_C)


@njit(cache=True, error_model="numpy", inline="always")
def _softmax(score, scores_C, item, negatives_C, weight):  # type: ignore[no-untyped-def]
    max_score = max(score, largest(scores_C))
    positive = exp(score - max_score)
    for c in range(scores_C.shape[0]):
        # Computed for all and then selected: a branch around it would not vectorize.
        power = exp(scores_C[c] - max_score)
        scores_C[c] = power if negatives_C[c] != item else ZERO
    total = positive + sum_lanes(scores_C)
    scale = weight / total
    for c in range(scores_C.shape[0]):
        scores_C[c] *= scale
    return weight * (math.log(total) + max_score - score), positive * scale - weight


@njit(cache=True, error_model="numpy")
def _margin_loss(code, score, scores_C, item, negatives_C, weight, params):  # type: ignore[no-untyped-def]
    """Compute ``example_loss`` for the losses with a margin; not inlined, as ``_negative_feedback_loss``."""
    if code == WARP:
        return _warp(score, scores_C, item, negatives_C, weight, params)
    # A negative costs what its score exceeds the floor by: a margin below the item's, or the margin itself.
    floor = params.margin if code == CCL else score - params.margin
    share = weight / np.float32(scores_C.shape[0]) * (params.negative_weight if code == CCL else ONE)
    others, _ = _above(floor, scores_C, item, negatives_C, share)
    if code == CCL:
        return weight * (params.max_score - score) + others, -weight
    return others, -sum_lanes(scores_C)


@njit(cache=True, error_model="numpy", inline="always")
def _above(floor, scores_C, item, negatives_C, share):  # type: ignore[no-untyped-def]
    """Return Σ_j share·[s_j − floor]₊ and how many negatives exceed the floor; derivatives replace the scores."""
    total, count = ZERO, 0
    for c in range(scores_C.shape[0]):
        excess = scores_C[c] - floor if negatives_C[c] != item else ZERO
        # Keeps NaN, which would vanish in max(excess, 0).
        scores_C[c] = ZERO if excess <= ZERO else (share if excess > ZERO else excess)
        total += ZERO if excess <= ZERO else share * excess
        count += not excess <= ZERO
    return total, count


@njit(cache=True, error_model="numpy", inline="always")
def _warp(score, scores_C, item, negatives_C, weight, params):  # type: ignore[no-untyped-def]
    best, max_score = 0, _LOWEST
    for c in range(scores_C.shape[0]):
        if negatives_C[c] != item and not scores_C[c] <= max_score:
            best, max_score = c, scores_C[c]
    floor = score - params.margin
    _, violators = _above(floor, scores_C, item, negatives_C, ONE)
    scores_C[:] = ZERO
    if violators == 0:
        return ZERO, ZERO
    cost = weight * np.float32(math.log1p(np.float32(violators) * params.ranks_per_negative))
    cost = cost if max_score > floor else max_score - floor  # NaN: a score is
    scores_C[best] = cost
    return cost * (max_score - floor), -cost


@njit(cache=True, error_model="numpy")
def _kth_highest(scores_C, k):  # type: ignore[no-untyped-def]
    """Return the ``k``-th highest score by quickselect (Hoare 1961), which reorders ``scores_C``.

    Numba compiles ``np.partition``, with its error messages, for longer than the rest of ``hard_negatives_loss``.
    """
    low, high = 0, scores_C.shape[0] - 1
    while low < high:
        pivot = scores_C[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while scores_C[i] > pivot:
                i += 1
            while scores_C[j] < pivot:
                j -= 1
            if i <= j:
                scores_C[i], scores_C[j] = scores_C[j], scores_C[i]
                i += 1
                j -= 1
        if j < k - 1 < i:
            break
        low, high = (low, j) if k - 1 <= j else (i, high)
    return scores_C[k - 1]


@njit(cache=True, error_model="numpy")
def hard_negatives_loss(code, score, scores_C, parts_C, item, negatives_C, weight, params, num_hard):  # type: ignore[no-untyped-def]
    """Compute ``example_loss`` as if only the ``num_hard`` negatives with the highest scores had been drawn.

    The item itself is not among them. The derivatives of the others are 0. Of equal scores, the first count.
    """
    count = scores_C.shape[0]
    for c in range(count):
        parts_C[c] = scores_C[c] if negatives_C[c] != item else _LOWEST
    lowest = _kth_highest(parts_C.copy(), num_hard)
    chosen_K, chosen = np.zeros(num_hard, np.int64), 0
    for c in range(count):
        if parts_C[c] > lowest:
            chosen_K[chosen] = c
            chosen += 1
    for c in range(count):
        if chosen < num_hard and not parts_C[c] > lowest and not parts_C[c] < lowest:
            chosen_K[chosen] = c
            chosen += 1
    scores_K, negatives_K = scores_C[chosen_K], negatives_C[chosen_K]
    result = example_loss(code, score, scores_K, parts_C[:num_hard], item, negatives_K, weight, params)
    scores_C[:] = ZERO
    scores_C[chosen_K] = scores_K
    return result


@njit(cache=True, error_model="numpy")
def _negative_feedback_loss(code, score, scores_C, parts_C, item, negatives_C, cost, params):  # type: ignore[no-untyped-def]
    """Compute ``example_loss`` for an example of weight −``cost``.

    Not inlined, so that it does not affect how the loops for positive weights compile.
    """
    if code == SOFTMAX:
        return _negative_feedback_softmax(score, scores_C, item, negatives_C, cost)
    if code == LOGISTIC:
        scores_C[:] = ZERO
        loss, pull = log_sigmoid_loss(-score)
        return cost * loss, cost * pull
    if code == CCL:
        scores_C[:] = ZERO
        excess = score - params.margin
        return (ZERO, ZERO) if excess <= ZERO else (cost * excess, cost)
    if code >= HINGE:
        return _negative_feedback_hinge(score, scores_C, item, negatives_C, cost, params)
    # A reversed pair is one whose scores, and derivatives, have the other sign.
    for c in range(scores_C.shape[0]):
        scores_C[c] = -scores_C[c]
    share = cost / np.float32(scores_C.shape[0])
    loss, slope = _pairs(-score, ONE, scores_C, parts_C, item, negatives_C, share)
    for c in range(scores_C.shape[0]):
        scores_C[c] = -scores_C[c]
    return loss, -slope


@njit(cache=True, error_model="numpy", inline="always")
def _negative_feedback_hinge(score, scores_C, item, negatives_C, cost, params):  # type: ignore[no-untyped-def]
    for c in range(scores_C.shape[0]):
        scores_C[c] = -scores_C[c]
    share = cost / np.float32(scores_C.shape[0])
    loss, _ = _above(-score - params.margin, scores_C, item, negatives_C, share)
    slope = sum_lanes(scores_C)
    for c in range(scores_C.shape[0]):
        scores_C[c] = -scores_C[c]
    return loss, slope


@njit(cache=True, error_model="numpy", inline="always")
def _negative_feedback_softmax(score, scores_C, item, negatives_C, cost):  # type: ignore[no-untyped-def]
    # The maximum over negatives only: relative to the item's score, which may be far above, all would underflow to 0.
    for c in range(scores_C.shape[0]):
        scores_C[c] = scores_C[c] if negatives_C[c] != item else _LOWEST
    max_score = largest(scores_C)
    for c in range(scores_C.shape[0]):
        power = exp(scores_C[c] - max_score)
        scores_C[c] = power if negatives_C[c] != item else ZERO
    total = sum_lanes(scores_C)
    if total == ZERO:  # No negative is left; otherwise the largest adds 1.
        return ZERO, ZERO
    loss, pull = log_sigmoid_loss(max_score - score + math.log(total))
    scale = -cost * pull / total
    for c in range(scores_C.shape[0]):
        scores_C[c] *= scale
    return cost * loss, cost * pull


@njit(cache=True, error_model="numpy", inline="always")
def _finish_scores(scores_C, query_square, square_C, dot_scale, norm_scale):  # type: ignore[no-untyped-def]
    """Turn dot products with one query into scores, in place."""
    for c in range(scores_C.shape[0]):
        scores_C[c] *= dot_scale
    if norm_scale:
        for c in range(scores_C.shape[0]):
            scores_C[c] -= norm_scale * (query_square + square_C[c])


@njit(cache=True, error_model="numpy", inline="always")
def _score(query_D, query_square, item_D, dot_scale, norm_scale):  # type: ignore[no-untyped-def]
    score = dot_scale * dot(query_D, item_D)
    if norm_scale:
        score -= norm_scale * (query_square + dot(item_D, item_D))
    return score


@njit(cache=True, error_model="numpy", nogil=True)
def shared_pool_pass(  # type: ignore[no-untyped-def]
    scores_BC, query_BD, item_BD, item_B, query_B, weight_B, negative_C, query_C, square_C, log_q_C,
    code, params, num_hard, dot_scale, norm_scale
):  # fmt: skip
    """Return losses and their derivatives by the items' scores; dot products become derivatives by score, in place.

    Args:
        scores_BC: dot products of a tile of queries with the pool.
        query_BD: vectors of the examples' queries.
        item_BD: vectors of their items.
        item_B: rows of their items.
        query_B: rows of their queries.
        weight_B: their weights.
        negative_C: rows of the pool.
        query_C: for in-batch negatives, the row of the query that each is a positive of, or -1; empty: none is
            in-batch. A query's own positives do not count as its negatives.
        square_C: squared norms of the pool's vectors.
        log_q_C: subtracted from the scores of the negatives (logQ correction); empty: nothing.
        code: the loss.
        params: its constants.
        num_hard: how many negatives count; None: all, which compiles to simpler code.
        dot_scale: factor of dot products in a score.
        norm_scale: factor of squared norms in a score.
    """
    loss_B, slope_B = np.empty(weight_B.shape[0], np.float32), np.empty(weight_B.shape[0], np.float32)
    parts_C = np.empty(scores_BC.shape[1], np.float32)
    counted_C = negative_C.copy() if query_C.shape[0] else negative_C
    for b in range(weight_B.shape[0]):
        query_square = dot(query_BD[b], query_BD[b]) if norm_scale else ZERO
        score = _score(query_BD[b], query_square, item_BD[b], dot_scale, norm_scale)
        _finish_scores(scores_BC[b], query_square, square_C, dot_scale, norm_scale)
        if log_q_C.shape[0]:
            for c in range(scores_BC.shape[1]):
                scores_BC[b, c] -= log_q_C[c]
        for c in range(query_C.shape[0]):
            counted_C[c] = item_B[b] if query_C[c] == query_B[b] else negative_C[c]
        if num_hard is not None:
            loss_B[b], slope_B[b] = hard_negatives_loss(
                code, score, scores_BC[b], parts_C, item_B[b], counted_C, weight_B[b], params, num_hard
            )
        else:
            loss_B[b], slope_B[b] = example_loss(
                code, score, scores_BC[b], parts_C, item_B[b], counted_C, weight_B[b], params
            )
    return loss_B, slope_B
