"""Losses of examples by their scores, in MXNet's operators; ``trainer/model/losses.py`` has the formulas.

    losses_B = ScoreLoss(mx, spec, num_hard=None, items=model.item.rows).losses(scores, sign_B1)

Autograd differentiates them (``mxnet_gradients.py``).

Shapes: B examples, C negatives of an example. Here, B1 is a column, (B, 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from crossfade.trainer.model.losses import LossSpec

Array = Any

_EXCLUDED_SCORE = -1e30
"""A score whose exponential is 0 relative to that of any other score."""


@dataclass(frozen=True)
class Scores:
    """The scores of some examples.

    Attributes:
        positive_B1: of the examples' items.
        negative_BC: of their negatives.
        excluded_BC: 1 for those that do not count, and 0 for the others, float32.
    """

    positive_B1: Array
    negative_BC: Array
    excluded_BC: Array

    @property
    def negatives(self) -> int:
        """C, the number of negatives of an example, including those that do not count."""
        count: int = self.negative_BC.shape[1]
        return count


class ScoreLoss:
    """Computes the losses of examples from their scores."""

    def __init__(self, mx: Any, spec: LossSpec, num_hard: int | None, items: int) -> None:
        """Prepare for ``spec``, of which ``num_hard`` negatives count (None: all), and a table of ``items``."""
        self._nd = mx.nd
        self._autograd = mx.autograd
        self._spec = spec
        self._num_hard = num_hard
        self._items = items
        self._margin = spec.margin / spec.temperature

    def losses(self, scores: Scores, sign_B1: Array) -> Array:
        """Return the loss of each example, (B,), or the reversed loss where its sign is -1."""
        nd, kind = self._nd, self._spec.kind
        excluded_BC, kept = self._excluded(scores)
        if kind == "softmax":
            return self._softmax(scores, excluded_BC, sign_B1)
        counts_BC = 1 - excluded_BC
        if kind == "ccl":
            return self._ccl(scores, counts_BC / kept, sign_B1)
        positive_B1, negative_BC = scores.positive_B1, scores.negative_BC
        if kind == "logistic":
            pushed_B1 = nd.sum(self._softplus(negative_BC) * counts_BC, axis=1, keepdims=True) / kept
            return (self._softplus(-sign_B1 * positive_B1) + (sign_B1 > 0) * pushed_B1)[:, 0]
        gaps_BC = nd.broadcast_mul(sign_B1, nd.broadcast_sub(negative_BC, positive_B1))
        if kind == "bpr":
            return nd.sum(self._softplus(gaps_BC) * counts_BC, axis=1) / kept
        violation_BC = nd.relu(gaps_BC + self._margin) * counts_BC
        hinge_B = nd.sum(violation_BC, axis=1) / kept
        return hinge_B if kind == "hinge" else nd.where(sign_B1[:, 0] > 0, self._warp(violation_BC), hinge_B)

    def log_sum_exp(self, score_BC: Array) -> Array:
        """Return log Σ_j e^{s_j} of each row of scores, (B, 1), without overflow.

        Written out, since MKLDNN's log_softmax crashes on some shapes when its input comes from an MKLDNN operator.
        """
        nd = self._nd
        with self._autograd.pause():
            top_B1 = nd.max(score_BC, axis=1, keepdims=True)
        return top_B1 + nd.log(nd.sum(nd.exp(nd.broadcast_sub(score_BC, top_B1)), axis=1, keepdims=True))

    def _excluded(self, scores: Scores) -> tuple[Array, int]:
        """Return which negatives do not count, and how many of an example's negatives are kept."""
        if self._num_hard is None or self._num_hard >= scores.negatives:
            return scores.excluded_BC, scores.negatives
        nd = self._nd
        with self._autograd.pause():
            ranked_BC = self._without(scores.excluded_BC, scores.negative_BC)
            hardest_BC = nd.topk(ranked_BC, k=self._num_hard, axis=1, ret_typ="mask")
            return nd.maximum(scores.excluded_BC, 1 - hardest_BC), self._num_hard

    def _without(self, excluded_BC: Array, negative_BC: Array) -> Array:
        """Return the scores of negatives, with a very low one for those that do not count."""
        return negative_BC + _EXCLUDED_SCORE * excluded_BC

    def _softmax(self, scores: Scores, excluded_BC: Array, sign_B1: Array) -> Array:
        """Compute −log p = −log σ(s − log Σ_j e^{s_j}), or with the other sign −log(1 − p)."""
        others_B1 = self.log_sum_exp(self._without(excluded_BC, scores.negative_BC))
        has_negative_B1 = others_B1 > _EXCLUDED_SCORE / 2
        return (has_negative_B1 * self._softplus(sign_B1 * (others_B1 - scores.positive_B1)))[:, 0]

    def _ccl(self, scores: Scores, share_BC: Array, sign_B1: Array) -> Array:
        nd, positive_B = self._nd, scores.positive_B1[:, 0]
        pushed_B = nd.sum(nd.relu(scores.negative_BC - self._margin) * share_BC, axis=1) * self._spec.negative_weight
        wanted_B = 1.0 / self._spec.temperature - positive_B + pushed_B
        return nd.where(sign_B1[:, 0] > 0, wanted_B, nd.relu(positive_B - self._margin))

    def _warp(self, violation_BC: Array) -> Array:
        """Compute the largest violation of each example times the log of its rank, estimated from the violations."""
        nd = self._nd
        with self._autograd.pause():
            ranks_B = nd.sum(violation_BC > 0, axis=1) * ((self._items - 1) / violation_BC.shape[1])
            place_B, factor_B = nd.argmax(violation_BC, axis=1), nd.log1p(ranks_B)
        # Picked by place: the gradient of a maximum would go to each of several equal values.
        return factor_B * nd.pick(violation_BC, place_B, axis=1)

    def _softplus(self, x: Array) -> Array:
        """Compute log(1 + eˣ) without overflow. (x + |x|)/2 is its linear part, with the derivative 1/2 at 0."""
        nd = self._nd
        return 0.5 * (x + nd.abs(x)) + nd.log1p(nd.exp(-nd.abs(x)))
