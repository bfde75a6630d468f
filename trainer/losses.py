"""Losses of one example against its negatives, with closed-form derivatives.

With s the score of the example's item, s_j those of its C negatives and w its weight:

- ``bpr``       w/C · Σ_j −log σ(s − s_j)
                Rendle et al., "BPR: Bayesian personalized ranking from implicit feedback", UAI 2009
- ``logistic``  w · (−log σ(s) − 1/C · Σ_j log σ(−s_j))
                negative sampling, Mikolov et al., "Distributed representations of words and phrases", NIPS 2013
- ``softmax``   −w · log(eˢ / (eˢ + Σ_j e^{s_j}))
                sampled softmax, Jean et al., ACL 2015; on cosine scores, InfoNCE (van den Oord et al. 2018)

A negative that is the example's own item does not count: it adds no loss and gets no gradient.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from trainer.job import LossKind

BPR, LOGISTIC, SOFTMAX = 0, 1, 2
LOSS_CODES: dict[LossKind, int] = {"bpr": BPR, "logistic": LOGISTIC, "softmax": SOFTMAX}

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


@njit(cache=True, inline="always")
def _log_sigmoid_loss(x):  # type: ignore[no-untyped-def]
    """−log σ(x), and minus its derivative, σ(−x)."""
    e = math.exp(-abs(x))
    tail = _ONE / (_ONE + e)
    if x >= _ZERO:
        return math.log1p(e), e * tail
    return math.log1p(e) - x, tail


@njit(cache=True, inline="always")
def example_loss(code, score, scores_C, item, negatives_C, weight):  # type: ignore[no-untyped-def]
    """Loss of one example and its derivative by ``score``; ``scores_C`` is overwritten with those by itself.

    ``item`` and ``negatives_C`` name rows, to know a negative that is the item. All floats are float32.
    """
    if code == SOFTMAX:
        return _softmax(score, scores_C, item, negatives_C, weight)
    share = weight / np.float32(scores_C.shape[0])
    loss, slope = _ZERO, _ZERO
    if code == LOGISTIC:
        loss, slope = _log_sigmoid_loss(score)
        loss, slope = loss * weight, -slope * weight
    for c in range(scores_C.shape[0]):
        if negatives_C[c] == item:
            scores_C[c] = _ZERO
            continue
        part, pull = _log_sigmoid_loss(score - scores_C[c] if code == BPR else -scores_C[c])
        loss += share * part
        scores_C[c] = share * pull
        if code == BPR:
            slope -= share * pull
    return loss, slope


@njit(cache=True, inline="always")
def _softmax(score, scores_C, item, negatives_C, weight):  # type: ignore[no-untyped-def]
    top = score
    for c in range(scores_C.shape[0]):
        top = max(top, scores_C[c])
    own = math.exp(score - top)
    total = own
    for c in range(scores_C.shape[0]):
        scores_C[c] = _ZERO if negatives_C[c] == item else math.exp(scores_C[c] - top)
        total += scores_C[c]
    scale = weight / total
    for c in range(scores_C.shape[0]):
        scores_C[c] *= scale
    return weight * (math.log(total) + top - score), own * scale - weight
