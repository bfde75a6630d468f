"""Closed-form losses and derivatives as numba kernels; ``trainer/model/losses.py`` has the formulas.

    loss_B, slope_B = shared_pool_pass(...)         # one pool of negatives for many examples, after a matrix product

Softmax with a pool has faster kernels, in ``softmax_kernels.py``. The passes over examples that each have negatives of
their own are in ``per_example_kernels.py``.

Shapes: B examples, C negatives of an example, D columns. Floats are float32.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from crossfade.base.arrays import FloatArray
from crossfade.kvstore.jit import njit
from crossfade.trainer.model.kernel_arguments import ScoreScales
from crossfade.trainer.model.loss_math import ZERO, dot, exp, largest, log_sigmoid_loss, sum_lanes

BPR, LOGISTIC, SOFTMAX, WARP = range(4)
"""Numbers of the losses."""
_LOWEST = np.finfo(np.float32).min


class Objective(NamedTuple):
    """What a step minimizes.

    Attributes:
        code: the loss, such as BPR.
        margin: m of warp, in units of the scores.
        other_items: N − 1, all items but the example's own, among which warp estimates a rank.
        scales: the score.
    """

    code: int
    margin: np.float32
    other_items: int
    scales: ScoreScales


@njit(cache=True, error_model="numpy")
def example_loss(objective, score, scores_C, parts_C, item, negatives_C, weight):  # type: ignore[no-untyped-def]
    """Return the loss of one example and its derivative by ``score``; overwrite ``scores_C`` with those by the scores.

    It is called, not inlined: compiled into each of the kernels that use it, it took most of their time to compile.

    Args:
        objective: the ``Objective``.
        score: the score of the example's item.
        scores_C: the scores of its negatives.
        parts_C: scratch memory.
        item: the item's row, to recognize it among the negatives.
        negatives_C: the negatives' rows.
        weight: the example's weight; below 0, negative feedback.
    """
    if weight < ZERO:
        return _negative_feedback_loss(objective, score, scores_C, parts_C, item, negatives_C, -weight)
    if objective.code == SOFTMAX:
        return _softmax(score, scores_C, item, negatives_C, weight)
    if objective.code == WARP:
        return _warp(objective, score, scores_C, item, negatives_C, weight)
    compared = score if objective.code == BPR else ZERO
    loss, slope = _pairs(compared, scores_C, parts_C, item, negatives_C, weight / np.float32(scores_C.shape[0]))
    if objective.code == BPR:
        return loss, slope
    positive, pull = log_sigmoid_loss(score)
    return weight * positive + loss, -weight * pull


@njit(cache=True, error_model="numpy", inline="always")
def _pairs(score, scores_C, parts_C, item, negatives_C, share):  # type: ignore[no-untyped-def]
    """Return Σ_j share·−log σ(score − s_j), and its derivative by ``score``."""
    for c in range(scores_C.shape[0]):
        # Computed for all and then selected: a branch around it would not vectorize.
        part, pull = log_sigmoid_loss(score - scores_C[c])
        counts = share if negatives_C[c] != item else ZERO
        parts_C[c] = counts * part
        scores_C[c] = counts * pull
    return sum_lanes(parts_C), -sum_lanes(scores_C)


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
def _warp(objective, score, scores_C, item, negatives_C, weight):  # type: ignore[no-untyped-def]
    """Compute ``example_loss`` for warp; not inlined, as ``_negative_feedback_loss``."""
    floor, violators, best, max_score = score - objective.margin, 0, 0, _LOWEST
    for c in range(scores_C.shape[0]):
        if negatives_C[c] != item and not scores_C[c] <= floor:
            violators += 1
            if not scores_C[c] <= max_score:
                best, max_score = c, scores_C[c]
    scores_C[:] = ZERO
    if violators == 0:
        return ZERO, ZERO
    ranks_per_negative = np.float32(objective.other_items / scores_C.shape[0])
    cost = weight * np.float32(math.log1p(np.float32(violators) * ranks_per_negative))
    cost = cost if max_score > floor else max_score - floor  # NaN: a score is
    scores_C[best] = cost
    return cost * (max_score - floor), -cost


@njit(cache=True, error_model="numpy", inline="always")
def _hinges(floor, scores_C, item, negatives_C, share):  # type: ignore[no-untyped-def]
    """Return Σ_j share·[s_j − floor]₊ and its derivative by ``floor``; derivatives by the scores replace them."""
    total = ZERO
    for c in range(scores_C.shape[0]):
        excess = scores_C[c] - floor if negatives_C[c] != item else ZERO
        excess = ZERO if excess <= ZERO else excess  # keeps NaN, which would vanish in max(excess, 0)
        scores_C[c] = share if excess > ZERO else excess
        total += share * excess
    return total, -sum_lanes(scores_C)


@njit(cache=True, error_model="numpy")
def _negative_feedback_loss(  # type: ignore[no-untyped-def]
    objective, score, scores_C, parts_C, item, negatives_C, cost
):
    """Compute ``example_loss`` for an example of weight −``cost``.

    Not inlined, so that it does not affect how the loops for positive weights compile.
    """
    if objective.code == SOFTMAX:
        return _negative_feedback_softmax(score, scores_C, item, negatives_C, cost)
    if objective.code == LOGISTIC:
        scores_C[:] = ZERO
        loss, pull = log_sigmoid_loss(-score)
        return cost * loss, cost * pull
    # A reversed pair is one whose scores, and derivatives, have the other sign.
    for c in range(scores_C.shape[0]):
        scores_C[c] = -scores_C[c]
    share = cost / np.float32(scores_C.shape[0])
    if objective.code == WARP:
        loss, slope = _hinges(-score - objective.margin, scores_C, item, negatives_C, share)
    else:
        loss, slope = _pairs(-score, scores_C, parts_C, item, negatives_C, share)
    for c in range(scores_C.shape[0]):
        scores_C[c] = -scores_C[c]
    return loss, -slope


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
def _finish_scores(scores_C, query_square, square_C, scales):  # type: ignore[no-untyped-def]
    """Turn dot products with one query into scores, in place."""
    for c in range(scores_C.shape[0]):
        scores_C[c] *= scales.dot
    if scales.norm:
        for c in range(scores_C.shape[0]):
            scores_C[c] -= scales.norm * (query_square + square_C[c])


@njit(cache=True, error_model="numpy", inline="always")
def _score(query_D, query_square, item_D, scales):  # type: ignore[no-untyped-def]
    score = scales.dot * dot(query_D, item_D)
    if scales.norm:
        score -= scales.norm * (query_square + dot(item_D, item_D))
    return score


class PoolExamples(NamedTuple):
    """Examples of a tile.

    Attributes:
        query_BD: vectors of their queries.
        item_BD: vectors of their items.
        query_B: rows of their queries.
        item_B: rows of their items.
        weight_B: their weights.
    """

    query_BD: FloatArray
    item_BD: FloatArray
    query_B: NDArray[np.int32]
    item_B: NDArray[np.int32]
    weight_B: FloatArray


class PoolNegatives(NamedTuple):
    """A pool of negatives.

    Attributes:
        row_C: their rows.
        query_C: for in-batch negatives, the row of the query that each is a positive of, or -1; empty: none is
            in-batch. A query's own positives do not count as its negatives.
        square_C: squared norms of their vectors.
    """

    row_C: NDArray[np.int32]
    query_C: NDArray[np.int32]
    square_C: FloatArray


@njit(cache=True, error_model="numpy", nogil=True)
def shared_pool_pass(scores_BC, examples, pool, objective):  # type: ignore[no-untyped-def]
    """Return losses and their derivatives by the items' scores; dot products become derivatives by score, in place.

    Args:
        scores_BC: dot products of a tile of queries with the pool.
        examples: the examples of the tile, ``PoolExamples``.
        pool: their negatives, ``PoolNegatives``.
        objective: the ``Objective``.
    """
    query_BD, item_BD, query_B, item_B, weight_B = examples
    negative_C, query_C, square_C = pool
    scales = objective.scales
    loss_B, slope_B = np.empty(weight_B.shape[0], np.float32), np.empty(weight_B.shape[0], np.float32)
    parts_C = np.empty(scores_BC.shape[1], np.float32)
    counted_C = negative_C.copy() if query_C.shape[0] else negative_C
    for b in range(weight_B.shape[0]):
        query_square = dot(query_BD[b], query_BD[b]) if scales.norm else ZERO
        score = _score(query_BD[b], query_square, item_BD[b], scales)
        _finish_scores(scores_BC[b], query_square, square_C, scales)
        for c in range(query_C.shape[0]):
            counted_C[c] = item_B[b] if query_C[c] == query_B[b] else negative_C[c]
        loss_B[b], slope_B[b] = example_loss(objective, score, scores_BC[b], parts_C, item_B[b], counted_C, weight_B[b])
    return loss_B, slope_B
