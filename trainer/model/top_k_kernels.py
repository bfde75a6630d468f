"""Weights of examples at the top of the list (``trainer/model/losses.py`` has the formulas), and K-th highest scores.

    beta = kth_score(row_C, offset_C, dot_scale, k, kept_N)
    weight = weight_above(weight, top_k, score - beta)

``_factor`` is the weight as a function of (s − β)/τ for all kernels. The engines torch and mxnet, which call none of
them, have the same function in ``weight_at_top``.

Shapes: C items, N scores that are kept.
"""

from __future__ import annotations

import numpy as np

from crossfade.kvstore.jit import njit
from crossfade.kvstore.lanes import largest_of, load, maximum, multiply, splat, store, subtract
from crossfade.kvstore.vector_ir import LANES
from crossfade.trainer.model.loss_math import log_sigmoid_loss

_LOWEST = np.float32(-np.inf)
_STEP = 4 * LANES


@njit(cache=True, error_model="numpy", inline="always")
def _factor(x):  # type: ignore[no-untyped-def]
    """Return the factor of an example's weight, 2σ(x): 1 where its item has the K-th highest score, and x is 0."""
    _, chance = log_sigmoid_loss(-x)
    return np.float32(2.0) * chance


@njit(cache=True, error_model="numpy", inline="always")
def weight_above(weight, top_k, above):  # type: ignore[no-untyped-def]
    """Return the weight of an example whose item's score is ``above`` the K-th highest."""
    return weight * _factor(above * top_k.sharpness) if top_k.k else weight


@njit(cache=True, error_model="numpy", inline="always")
def scores_at(row_C, offset_C, c, scale):  # type: ignore[no-untyped-def]
    """Return scores from ``c`` on: dot products times the ``scale``, less offsets."""
    return subtract(multiply(load(row_C, c), scale), load(offset_C, c))


@njit(cache=True, error_model="numpy")
def kth_highest(scores_C, k):  # type: ignore[no-untyped-def]
    """Return the ``k``-th highest score by quickselect (Hoare 1961), which moves the ``k`` highest to the front.

    Numba compiles ``np.partition``, with its error messages, for longer than all that calls it.
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


@njit(cache=True, error_model="numpy", inline="always")
def _four_scores(row_C, offset_C, c, scale):  # type: ignore[no-untyped-def]
    w, x = scores_at(row_C, offset_C, c, scale), scores_at(row_C, offset_C, c + LANES, scale)
    return w, x, scores_at(row_C, offset_C, c + 2 * LANES, scale), scores_at(row_C, offset_C, c + 3 * LANES, scale)


@njit(cache=True, error_model="numpy")
def _floor_of_kth_score(row_C, offset_C, dot_scale, k, out_N):  # type: ignore[no-untyped-def]
    """Return a score that at least ``k`` reach: the ``k``-th highest of the maxima of each of ``_STEP`` lanes.

    About 1.2·k scores exceed it where k is a third of these. -inf if there are fewer lanes than ``k``, or scores.
    """
    count, scale = row_C.shape[0], splat(dot_scale)
    if k > _STEP or count < _STEP:
        return _LOWEST
    w, x, y, z = _four_scores(row_C, offset_C, 0, scale)
    for c in range(_STEP, count - _STEP + 1, _STEP):
        a, b, d, e = _four_scores(row_C, offset_C, c, scale)
        w, x, y, z = maximum(w, a), maximum(x, b), maximum(y, d), maximum(z, e)
    store(out_N, 0, w)
    store(out_N, LANES, x)
    store(out_N, 2 * LANES, y)
    store(out_N, 3 * LANES, z)
    return kth_highest(out_N[:_STEP], k)


@njit(cache=True, error_model="numpy")
def kth_score(row_C, offset_C, dot_scale, k, kept_N):  # type: ignore[no-untyped-def]
    """Return the ``k``-th highest score, or the lowest of fewer; -inf if there is none.

    Scores above a floor that ``k`` reach are kept, and few are. Steps of lanes without one are skipped by their
    maximum. ``kept_N`` is scratch memory, of ``kept_scores(k)`` long.
    """
    floor, kept = _floor_of_kth_score(row_C, offset_C, dot_scale, k, kept_N), 0
    scale, count = splat(dot_scale), row_C.shape[0]
    for c in range(0, count, _STEP):
        if c + _STEP <= count:
            w, x, y, z = _four_scores(row_C, offset_C, c, scale)
            if not largest_of(maximum(maximum(w, x), maximum(y, z))) > floor:
                continue
        for n in range(c, min(c + _STEP, count)):
            score = dot_scale * row_C[n] - offset_C[n]
            if score > floor:
                kept_N[kept] = score
                kept += 1
        if kept > 2 * k:
            floor, kept = kth_highest(kept_N[:kept], k), k
    if kept >= k or (kept and floor == _LOWEST):
        return kth_highest(kept_N[:kept], min(k, kept))
    return floor


@njit(cache=True, error_model="numpy", inline="always")
def kept_scores(k):  # type: ignore[no-untyped-def]
    """Return how long the scratch memory of ``kth_score`` is."""
    return 2 * k + _STEP
