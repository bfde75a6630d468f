"""Losses of one example against its negatives, with closed-form derivatives.

With s the score of the example's item, s_j those of its C negatives and w ≥ 0 its weight:

- ``bpr``       w/C · Σ_j −log σ(s − s_j)
                Rendle et al., "BPR: Bayesian personalized ranking from implicit feedback", UAI 2009
- ``logistic``  w · (−log σ(s) − 1/C · Σ_j log σ(−s_j))
                negative sampling, Mikolov et al., "Distributed representations of words and phrases", NIPS 2013
- ``softmax``   −w · log p, p = eˢ / (eˢ + Σ_j e^{s_j})
                sampled softmax, Jean et al., ACL 2015; on cosine scores, InfoNCE (van den Oord et al. 2018). With
                ``negatives.logq_correction`` each s_j is less by log Q_j, where Q_j is how often the negative is expected in the
                pool, so that the sum estimates that over all items (Bengio and Senécal 2008; Yi et al., RecSys 2019).
                The item itself is always there, Q = 1 (Khrylchenko et al., "Correcting the LogQ correction", RecSys
                2025)
- ``hinge``     w/C · Σ_j [m + s_j − s]₊
                Weimer et al., "CoFi rank", NIPS 2007; with ``negatives.num_hard: 1`` the triplet loss on the hardest
                negative, Schroff et al., "FaceNet", CVPR 2015
- ``warp``      w · log(1 + J·(N − 1)/C) · [m + max_j s_j − s]₊, J = #{j: m + s_j > s}, N items in all
                Weston et al., "WSABIE", IJCAI 2011, with the rank estimated from a batch of negatives rather than from
                how long one is sought; on euclidean scores with rows bounded to length 1 (``optimizer.max_norm``) it
                is collaborative metric learning (CML), Hsieh et al., WWW 2017. The logarithm counts as a constant
- ``ccl``       w · (1/T − s + v/C · Σ_j [s_j − m]₊), of cosine scores alone, whose largest is 1/T
                cosine contrastive loss, Mao et al., "SimpleX", CIKM 2021; v is ``negatives.weight``

Margins m are in units of the score before it is divided by the temperature T: ``margin``/T.

A weight w < 0 says that the query does not want the item. It costs |w| times the loss of the opposite statement, which
is never below 0 and has bounded derivatives (−|w| times the loss itself would be worth ever more without end):

- ``bpr``       |w|/C · Σ_j −log σ(s_j − s)
                the pairs turned round: an item that was not met is preferred to one that was refused
- ``logistic``  |w| · −log σ(−s)
                the label 0, as LightFM has it for interactions of −1 (Kula, CBRecSys 2015). Its negatives add nothing:
                they stand for what a wanted item is told from, and a refused item needs none
- ``softmax``   −|w| · log(1 − p) = |w| · −log σ(log Σ_j e^{s_j} − s)
                unlikelihood, Welleck et al., "Neural text generation with unlikelihood training", ICLR 2020; for
                retrieval, the "not-to-recommend" loss of Wang et al., "Learning from negative user feedback and
                measuring responsiveness for sequential recommenders", RecSys 2023. The form on the right has no 1 − p
                that would cancel where p is near 1
- ``hinge``     |w|/C · Σ_j [m + s − s_j]₊, the pairs turned round; ``warp`` the same: a refused item seeks no rank
- ``ccl``       |w| · [s − m]₊, what one of its negatives costs

A negative that is the example's own item does not count: it adds no loss and gets no gradient. So it is with a negative
from the batch that the same query met there. Where none is left, ``bpr``, ``softmax``, ``hinge`` and ``warp`` have no
loss. Of ``negatives.num_hard`` negatives, those with the highest scores count, as if no others had been drawn
(Zhang et al., "Optimizing top-N collaborative filtering via dynamic negative item sampling", SIGIR 2013).

All kernels that inline one another are in this file: numba's cache does not see a change in another one. None has
fastmath (see ``kvstore/optimizers.py``); long sums run in eight lanes of a fixed order instead, which vectorise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import njit, prange

from trainer.config.model_sections import LossKind
from trainer.config.schema import JobConfig

BPR, LOGISTIC, SOFTMAX, HINGE, WARP, CCL = range(6)
LOSS_CODES: dict[LossKind, int] = {
    "bpr": BPR,
    "logistic": LOGISTIC,
    "softmax": SOFTMAX,
    "hinge": HINGE,
    "warp": WARP,
    "ccl": CCL,
}


class LossParams(NamedTuple):
    """Constants of the losses, float32: the margin over T, what negatives weigh, (N − 1)/C, and the largest score."""

    margin: np.float32
    negative_weight: np.float32
    ranks_per_negative: np.float32
    max_score: np.float32


@dataclass(frozen=True)
class LossSpec:
    """Which loss, and what it depends on beside the scores: see the formulas above."""

    kind: LossKind
    temperature: float = 1.0
    margin: float = 0.5
    negative_weight: float = 1.0

    @staticmethod
    def of(job: JobConfig) -> LossSpec:
        """The loss that a job names."""
        return LossSpec(job.loss, job.model.temperature, job.margin, job.negatives.weight)

    @property
    def code(self) -> int:
        """The kernels' name for it."""
        return LOSS_CODES[self.kind]

    def params(self, items: int, negatives: int) -> LossParams:
        """Its constants, where examples have so many ``negatives`` out of a table of ``items``."""
        ranks_per_negative = (items - 1) / max(negatives, 1)
        values = self.margin / self.temperature, self.negative_weight, ranks_per_negative, 1.0 / self.temperature
        return LossParams(*map(np.float32, values))


_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
_LOG2_E, _LN2_HIGH, _LN2_LOW = np.float32(1.4426950408889634), np.float32(0.693359375), np.float32(-2.12194440e-4)
_EXP_COEFFICIENTS = tuple(
    np.float32(c)
    for c in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
)
_ODD = tuple(np.float32(1.0 / n) for n in (1, 3, 5, 7, 9, 11, 13, 15))
_LOWEST_EXPONENT = np.float32(-87.0)
_LOWEST = np.finfo(np.float32).min


@njit(cache=True, error_model="numpy")
def exp(x):  # type: ignore[no-untyped-def]
    """e^x for float32 x of at most 88, to a unit in the last place; below -87, e^-87.

    eˣ = 2ⁿ·eʳ with |r| ≤ ln 2 / 2 and a minimax polynomial for eʳ (coefficients of Moshier's Cephes library, expf).
    Unlike ``math.exp`` it compiles into vector instructions, ten times as fast.
    """
    x = max(x, _LOWEST_EXPONENT)
    n = np.floor(x * _LOG2_E + np.float32(0.5))
    r = x - n * _LN2_HIGH
    r = r - n * _LN2_LOW
    p = _EXP_COEFFICIENTS[0]
    for c in _EXP_COEFFICIENTS[1:]:
        p = p * r + c
    power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23))
    return (p * r * r + r + _ONE) * power.view(np.float32)


@njit(cache=True, error_model="numpy")
def _log1p_of_exp(e):  # type: ignore[no-untyped-def]
    """log(1 + e) for float32 e in [0, 1]: 2·artanh(z) with z = e / (2 + e) ≤ 1/3, and the series of artanh."""
    z = e / (np.float32(2.0) + e)
    square = z * z
    # Written out: a loop over eight coefficients stays a loop, and that does not vectorise.
    series = _ODD[7] * square + _ODD[6]
    series = series * square + _ODD[5]
    series = series * square + _ODD[4]
    series = series * square + _ODD[3]
    series = series * square + _ODD[2]
    series = series * square + _ODD[1]
    series = series * square + _ODD[0]
    return np.float32(2.0) * z * series


@njit(cache=True, error_model="numpy", inline="always")
def _largest(values_C):  # type: ignore[no-untyped-def]
    a = b = c = d = values_C[0]
    lanes = values_C.shape[0] // 4 * 4
    for n in range(0, lanes, 4):
        a, b = max(a, values_C[n]), max(b, values_C[n + 1])
        c, d = max(c, values_C[n + 2]), max(d, values_C[n + 3])
    for n in range(lanes, values_C.shape[0]):
        a = max(a, values_C[n])
    return max(a, b, c, d)


@njit(cache=True, error_model="numpy", inline="always")
def _sum(values_C):  # type: ignore[no-untyped-def]
    a = b = c = d = e = f = g = h = _ZERO
    lanes = values_C.shape[0] // 8 * 8
    for n in range(0, lanes, 8):
        a, b = a + values_C[n], b + values_C[n + 1]
        c, d = c + values_C[n + 2], d + values_C[n + 3]
        e, f = e + values_C[n + 4], f + values_C[n + 5]
        g, h = g + values_C[n + 6], h + values_C[n + 7]
    for n in range(lanes, values_C.shape[0]):
        a += values_C[n]
    return ((a + b) + (c + d)) + ((e + f) + (g + h))


@njit(cache=True, error_model="numpy", inline="always")
def _log_sigmoid_loss(x):  # type: ignore[no-untyped-def]
    """−log σ(x), and minus its derivative, σ(−x)."""
    e = exp(-abs(x))
    tail = _ONE / (_ONE + e)
    loss = _log1p_of_exp(e) - min(x, _ZERO)
    return loss, (e * tail if x >= _ZERO else tail)


@njit(cache=True, error_model="numpy", inline="always")
def example_loss(code, score, scores_C, parts_C, item, negatives_C, weight, params):  # type: ignore[no-untyped-def]
    """Loss of one example and its derivative by ``score``; ``scores_C`` is overwritten with those by itself.

    ``item`` and ``negatives_C`` name rows, to know a negative that is the item; ``parts_C`` is memory to work in. All
    floats are float32.
    """
    if weight < _ZERO:
        return _negative_feedback_loss(code, score, scores_C, parts_C, item, negatives_C, -weight, params)
    if code >= HINGE:
        return _margin_loss(code, score, scores_C, item, negatives_C, weight, params)
    if code == SOFTMAX:
        return _softmax(score, scores_C, item, negatives_C, weight)
    share = weight / np.float32(scores_C.shape[0])
    if code == BPR:
        return _pairs(score, _ONE, scores_C, parts_C, item, negatives_C, share)
    own, pull = _log_sigmoid_loss(score)
    others, _ = _pairs(_ZERO, _ZERO, scores_C, parts_C, item, negatives_C, share)
    return weight * own + others, -weight * pull


@njit(cache=True, error_model="numpy", inline="always")
def _pairs(score, slope_sign, scores_C, parts_C, item, negatives_C, share):  # type: ignore[no-untyped-def]
    """Σ_j share·−log σ(score − s_j) and, times ``slope_sign``, its derivative by ``score``."""
    for c in range(scores_C.shape[0]):
        # Computed for all and then chosen: a branch around it would not compile into vector instructions.
        part, pull = _log_sigmoid_loss(score - scores_C[c])
        counts = share if negatives_C[c] != item else _ZERO
        parts_C[c] = counts * part
        scores_C[c] = counts * pull
    return _sum(parts_C), -slope_sign * _sum(scores_C)


@njit(cache=True, error_model="numpy", inline="always")
def _softmax(score, scores_C, item, negatives_C, weight):  # type: ignore[no-untyped-def]
    max_score = max(score, _largest(scores_C))
    own = exp(score - max_score)
    for c in range(scores_C.shape[0]):
        # Computed for all and then chosen: a branch around it would not compile into vector instructions.
        power = exp(scores_C[c] - max_score)
        scores_C[c] = power if negatives_C[c] != item else _ZERO
    total = own + _sum(scores_C)
    scale = weight / total
    for c in range(scores_C.shape[0]):
        scores_C[c] *= scale
    return weight * (math.log(total) + max_score - score), own * scale - weight


@njit(cache=True, error_model="numpy")
def _margin_loss(code, score, scores_C, item, negatives_C, weight, params):  # type: ignore[no-untyped-def]
    """What ``example_loss`` gives for the losses with a margin. Not inlined, as ``_opposite_loss``."""
    if code == WARP:
        return _warp(score, scores_C, item, negatives_C, weight, params)
    # A negative costs by how far it is above the floor: a margin below the item, or the margin itself.
    floor = params.margin if code == CCL else score - params.margin
    share = weight / np.float32(scores_C.shape[0]) * (params.negative_weight if code == CCL else _ONE)
    others, _ = _above(floor, scores_C, item, negatives_C, share)
    if code == CCL:
        return weight * (params.max_score - score) + others, -weight
    return others, -_sum(scores_C)


@njit(cache=True, error_model="numpy", inline="always")
def _above(floor, scores_C, item, negatives_C, share):  # type: ignore[no-untyped-def]
    """Σ_j share·[s_j − floor]₊, its derivatives in place of the scores, and how many negatives are above the floor."""
    total, count = _ZERO, 0
    for c in range(scores_C.shape[0]):
        excess = scores_C[c] - floor if negatives_C[c] != item else _ZERO
        # What is not a number does not vanish.
        scores_C[c] = _ZERO if excess <= _ZERO else (share if excess > _ZERO else excess)
        total += _ZERO if excess <= _ZERO else share * excess
        count += not excess <= _ZERO
    return total, count


@njit(cache=True, error_model="numpy", inline="always")
def _warp(score, scores_C, item, negatives_C, weight, params):  # type: ignore[no-untyped-def]
    best, max_score = 0, _LOWEST
    for c in range(scores_C.shape[0]):
        if negatives_C[c] != item and not scores_C[c] <= max_score:
            best, max_score = c, scores_C[c]
    floor = score - params.margin
    _, violators = _above(floor, scores_C, item, negatives_C, _ONE)
    scores_C[:] = _ZERO
    if violators == 0:
        return _ZERO, _ZERO
    cost = weight * np.float32(math.log1p(np.float32(violators) * params.ranks_per_negative))
    cost = cost if max_score > floor else max_score - floor  # which is then not a number
    scores_C[best] = cost
    return cost * (max_score - floor), -cost


@njit(cache=True, error_model="numpy")
def hard_negatives_loss(code, score, scores_C, parts_C, item, negatives_C, weight, params, num_hard):  # type: ignore[no-untyped-def]
    """What ``example_loss`` gives if of the negatives only the ``keep`` with the highest scores had been drawn.

    The item itself is none of them. The others' places in ``scores_C`` become 0. Of equal scores the first stay.
    """
    count = scores_C.shape[0]
    for c in range(count):
        parts_C[c] = scores_C[c] if negatives_C[c] != item else _LOWEST
    lowest = np.partition(parts_C, count - num_hard)[count - num_hard]
    chosen_K, chosen = np.empty(num_hard, np.int64), 0
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
    scores_C[:] = _ZERO
    scores_C[chosen_K] = scores_K
    return result


@njit(cache=True, error_model="numpy")
def _negative_feedback_loss(code, score, scores_C, parts_C, item, negatives_C, cost, params):  # type: ignore[no-untyped-def]
    """What ``example_loss`` gives for an example of weight −``cost``.

    It is not inlined, so that the loops over wanted items compile as if it were not there.
    """
    if code == SOFTMAX:
        return _negative_feedback_softmax(score, scores_C, item, negatives_C, cost)
    if code == LOGISTIC:
        scores_C[:] = _ZERO
        own, pull = _log_sigmoid_loss(-score)
        return cost * own, cost * pull
    if code == CCL:
        scores_C[:] = _ZERO
        excess = score - params.margin
        return (_ZERO, _ZERO) if excess <= _ZERO else (cost * excess, cost)
    if code >= HINGE:
        return _negative_feedback_hinge(score, scores_C, item, negatives_C, cost, params)
    # A pair turned round is one whose scores have the other sign; so have the derivatives.
    for c in range(scores_C.shape[0]):
        scores_C[c] = -scores_C[c]
    share = cost / np.float32(scores_C.shape[0])
    loss, slope = _pairs(-score, _ONE, scores_C, parts_C, item, negatives_C, share)
    for c in range(scores_C.shape[0]):
        scores_C[c] = -scores_C[c]
    return loss, -slope


@njit(cache=True, error_model="numpy", inline="always")
def _negative_feedback_hinge(score, scores_C, item, negatives_C, cost, params):  # type: ignore[no-untyped-def]
    for c in range(scores_C.shape[0]):
        scores_C[c] = -scores_C[c]
    share = cost / np.float32(scores_C.shape[0])
    loss, _ = _above(-score - params.margin, scores_C, item, negatives_C, share)
    slope = _sum(scores_C)
    for c in range(scores_C.shape[0]):
        scores_C[c] = -scores_C[c]
    return loss, slope


@njit(cache=True, error_model="numpy", inline="always")
def _negative_feedback_softmax(score, scores_C, item, negatives_C, cost):  # type: ignore[no-untyped-def]
    # The largest of the negatives alone: beside the item's own score, which may be far above, they would all vanish.
    for c in range(scores_C.shape[0]):
        scores_C[c] = scores_C[c] if negatives_C[c] != item else _LOWEST
    max_score = _largest(scores_C)
    for c in range(scores_C.shape[0]):
        power = exp(scores_C[c] - max_score)
        scores_C[c] = power if negatives_C[c] != item else _ZERO
    total = _sum(scores_C)
    if total == _ZERO:  # No negative is left. Otherwise the largest alone adds 1.
        return _ZERO, _ZERO
    loss, pull = _log_sigmoid_loss(max_score - score + math.log(total))
    scale = -cost * pull / total
    for c in range(scores_C.shape[0]):
        scores_C[c] *= scale
    return cost * loss, cost * pull


@njit(cache=True, error_model="numpy", inline="always")
def _dot(x_D, y_D):  # type: ignore[no-untyped-def]
    total = np.float32(0.0)
    for d in range(x_D.shape[0]):
        total += x_D[d] * y_D[d]
    return total


@njit(cache=True, error_model="numpy", parallel=True)
def row_squares(values_ND):  # type: ignore[no-untyped-def]
    """|x|² of each row."""
    out_N = np.empty(values_ND.shape[0], np.float32)
    for n in prange(values_ND.shape[0]):
        out_N[n] = _dot(values_ND[n], values_ND[n])
    return out_N


@njit(cache=True, error_model="numpy", nogil=True)
def shared_pool_pass(  # type: ignore[no-untyped-def]
    scores_BC,
    query_BD,
    item_BD,
    item_B,
    owner_B,
    weight_B,
    negative_C,
    query_id_C,
    square_C,
    log_q_C,
    code,
    params,
    num_hard,
    product,
    square,
):
    """Dot products of a tile to derivatives by score, in place; the losses, and the derivatives by own score.

    ``less_C`` is subtracted from the scores of negatives, unless it is empty. ``owner_C`` names the query that met a
    negative, unless it is empty: what its own query met does not count. ``keep``: how many negatives count;
    None: all, which compiles without what the others need.
    """
    loss_B, slope_B = np.empty(weight_B.shape[0], np.float32), np.empty(weight_B.shape[0], np.float32)
    parts_C = np.empty(scores_BC.shape[1], np.float32)
    counted_C = negative_C.copy() if query_id_C.shape[0] else negative_C
    for b in range(weight_B.shape[0]):
        own = product * _dot(query_BD[b], item_BD[b])
        for c in range(scores_BC.shape[1]):
            scores_BC[b, c] *= product
        if square:
            query_square = _dot(query_BD[b], query_BD[b])
            own -= square * (query_square + _dot(item_BD[b], item_BD[b]))
            for c in range(scores_BC.shape[1]):
                scores_BC[b, c] -= square * (query_square + square_C[c])
        if log_q_C.shape[0]:
            for c in range(scores_BC.shape[1]):
                scores_BC[b, c] -= log_q_C[c]
        for c in range(query_id_C.shape[0]):
            counted_C[c] = item_B[b] if query_id_C[c] == owner_B[b] else negative_C[c]
        if num_hard is not None:
            loss_B[b], slope_B[b] = hard_negatives_loss(
                code, own, scores_BC[b], parts_C, item_B[b], counted_C, weight_B[b], params, num_hard
            )
        else:
            loss_B[b], slope_B[b] = example_loss(
                code, own, scores_BC[b], parts_C, item_B[b], counted_C, weight_B[b], params
            )
    return loss_B, slope_B


@njit(cache=True, error_model="numpy", nogil=True)
def all_items_pass(scores_AC, query_AD, square_C, item_N, weight_N, starts_A1, product, square):  # type: ignore[no-untyped-def]
    """The ``softmax`` of ``shared_pool_pass`` where the pool is all items, which scores a query once for its examples.

    Dot products of a tile of queries become derivatives by score, in place. The examples of query a are
    ``starts_A1[a]`` to ``starts_A1[a + 1]`` of ``item_N``, their items' places in the pool, and ``weight_N``, none of
    them below 0. The losses of the examples come back.
    """
    first = starts_A1[0]
    loss_N = np.empty(starts_A1[-1] - first, np.float32)
    for a in range(scores_AC.shape[0]):
        scores_C = scores_AC[a]
        for c in range(scores_C.shape[0]):
            scores_C[c] *= product
        if square:
            query_square = _dot(query_AD[a], query_AD[a])
            for c in range(scores_C.shape[0]):
                scores_C[c] -= square * (query_square + square_C[c])
        max_score, weight = _largest(scores_C), _ZERO
        for n in range(starts_A1[a], starts_A1[a + 1]):
            loss_N[n - first] = max_score - scores_C[item_N[n]]
            weight += weight_N[n]
        for c in range(scores_C.shape[0]):
            scores_C[c] = exp(scores_C[c] - max_score)
        total = _sum(scores_C)
        scale, log_total = weight / total, np.float32(math.log(total))
        for c in range(scores_C.shape[0]):
            scores_C[c] *= scale
        for n in range(starts_A1[a], starts_A1[a + 1]):
            loss_N[n - first] = weight_N[n] * (loss_N[n - first] + log_total)
            scores_C[item_N[n]] -= weight_N[n]
    return loss_N


@njit(cache=True, error_model="numpy", parallel=True)
def per_example_pass(  # type: ignore[no-untyped-def]
    query_AD, item_AD, query_B, item_B, negative_BN, log_q_BN, weight_B, code, params, num_hard, product, square
):
    """Scores, losses and gradients of examples with negatives of their own: one pass over the examples."""
    examples, count = negative_BN.shape
    dim = query_AD.shape[1]
    loss_B = np.empty(examples, np.float32)
    query_gradient_BD = np.empty((examples, dim), np.float32)
    use_gradient_ND = np.empty((examples * (1 + count), dim), np.float32)
    scores_BN, parts_BN = np.empty((examples, count), np.float32), np.empty((examples, count), np.float32)
    twice = np.float32(2.0) * square
    for b in prange(examples):
        query_D, item_D = query_AD[query_B[b]], item_AD[item_B[b]]
        query_square = _dot(query_D, query_D) if square else np.float32(0.0)
        own = product * _dot(query_D, item_D)
        if square:
            own -= square * (query_square + _dot(item_D, item_D))
        for n in range(count):
            negative_D = item_AD[negative_BN[b, n]]
            scores_BN[b, n] = product * _dot(query_D, negative_D)
            if square:
                scores_BN[b, n] -= square * (query_square + _dot(negative_D, negative_D))
        if log_q_BN.shape[0]:
            for n in range(count):
                scores_BN[b, n] -= log_q_BN[b, n]
        if num_hard is not None:
            loss_B[b], slope = hard_negatives_loss(
                code, own, scores_BN[b], parts_BN[b], item_B[b], negative_BN[b], weight_B[b], params, num_hard
            )
        else:
            loss_B[b], slope = example_loss(
                code, own, scores_BN[b], parts_BN[b], item_B[b], negative_BN[b], weight_B[b], params
            )
        for d in range(dim):
            query_gradient_BD[b, d] = slope * (product * item_D[d] - twice * query_D[d])
            use_gradient_ND[b, d] = slope * (product * query_D[d] - twice * item_D[d])
        for n in range(count):
            negative_D, slope = item_AD[negative_BN[b, n]], scores_BN[b, n]
            for d in range(dim):
                query_gradient_BD[b, d] += slope * (product * negative_D[d] - twice * query_D[d])
                use_gradient_ND[examples + b * count + n, d] = slope * (product * query_D[d] - twice * negative_D[d])
    return loss_B, query_gradient_BD, use_gradient_ND
