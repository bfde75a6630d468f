"""Derivatives of the losses by score, in PyTorch; ``trainer/model/losses.py`` has the formulas.

    losses_B, slope_B, slope_BC = score_slopes(spec, items, scores, cost_B, sign_B)

Softmax, the default, has a closed form; the others differentiate what they compute by autograd. Either way, only scores
have gradients: the products that lead to those of vectors are in ``torch_gradients.py``.

Shapes: B examples, C negatives of an example.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from crossfade.trainer.model.losses import LossSpec

Tensor = Any


@dataclass(frozen=True)
class Scores:
    """The scores of some examples.

    Attributes:
        positive_B: of the examples' items.
        negative_BC: of their negatives, float32.
        excluded_BC: which of these do not count.
    """

    positive_B: Tensor
    negative_BC: Tensor
    excluded_BC: Tensor


class ScoreLoss:
    """Computes the losses of examples from their scores, and the derivatives."""

    def __init__(self, torch: Any, spec: LossSpec, num_hard: int | None, items: int) -> None:
        """Prepare for ``spec``, of which ``num_hard`` negatives count (None: all), and a table of ``items``."""
        self._torch = torch
        self._spec = spec
        self._num_hard = num_hard
        self._items = items
        self._margin = spec.margin / spec.temperature

    def slopes(self, scores: Scores, cost_B: Tensor, sign_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the losses (B,), and their derivatives by the scores of items (B,) and of negatives (B, C).

        Args:
            scores: the scores; its negatives may be overwritten.
            cost_B: factors of the losses, 0 or more.
            sign_B: 1, or -1 for negative feedback, whose loss is the reversed one.
        """
        if self._num_hard is not None and self._num_hard < scores.negative_BC.shape[1]:
            scores = replace(scores, excluded_BC=self._all_but_hardest(scores, self._num_hard))
        if self._spec.kind == "softmax":
            return self._softmax(scores, cost_B, sign_B)
        torch = self._torch
        with torch.enable_grad():
            leaves = [scores.positive_B.detach().requires_grad_(), scores.negative_BC.detach().requires_grad_()]
            losses_B = cost_B * self._losses(Scores(leaves[0], leaves[1], scores.excluded_BC), sign_B)
            slopes = torch.autograd.grad(losses_B.sum(), leaves, allow_unused=True)
        by_positive, by_negative = (
            torch.zeros_like(leaf) if slope is None else slope for leaf, slope in zip(leaves, slopes, strict=True)
        )
        # The derivative of relu is 0 where its argument is not a number. Rows must not seem to be sound there.
        by_positive = torch.where(losses_B.isnan(), torch.nan, by_positive)
        return losses_B.detach(), by_positive, by_negative

    def _all_but_hardest(self, scores: Scores, num_hard: int) -> Tensor:
        """Return which negatives do not count where only those with the highest scores do."""
        ranked_BC = scores.negative_BC.masked_fill(scores.excluded_BC, -self._torch.inf)
        is_other_BC = self._torch.ones_like(scores.excluded_BC)
        return scores.excluded_BC | is_other_BC.scatter_(1, ranked_BC.topk(num_hard, dim=1).indices, False)

    def _softmax(self, scores: Scores, cost_B: Tensor, sign_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute −log σ(s − log Σ_j e^{s_j}) or, with the other sign, −log(1 − p).

        With x = ±(log Σ_j e^{s_j} − s), the loss is log(1 + eˣ), whose derivative by x is σ(x).
        """
        torch = self._torch
        powers_BC, top_B, sum_B = powers_of(scores.negative_BC.masked_fill_(scores.excluded_BC, -torch.inf))
        cost_B = cost_B * (sum_B > 0)
        gap_B = sign_B * (top_B - scores.positive_B + sum_B.clamp_min(1.0).log())
        slope_B = cost_B * sign_B * torch.sigmoid(gap_B)
        slope_BC = powers_BC.mul_((slope_B / sum_B.clamp_min(1.0))[:, None])
        return cost_B * torch.nn.functional.softplus(gap_B), -slope_B, slope_BC

    def _losses(self, scores: Scores, sign_B: Tensor) -> Tensor:
        """Compute the loss of each example, or the reversed loss where its sign is −1."""
        torch, kind, kept = self._torch, self._spec.kind, scores.negative_BC.shape[1]
        positive_B, negative_BC = scores.positive_B, scores.negative_BC
        counts_BC = (~scores.excluded_BC).to(negative_BC.dtype)
        share_BC = counts_BC / max(kept if self._num_hard is None else min(kept, self._num_hard), 1)
        if kind == "ccl":
            pushed_B = (torch.relu(negative_BC - self._margin) * share_BC).sum(dim=1) * self._spec.negative_weight
            wanted_B = 1.0 / self._spec.temperature - positive_B + pushed_B
            return torch.where(sign_B > 0, wanted_B, torch.relu(positive_B - self._margin))
        if kind == "logistic":
            pushed_B = (self._softplus(negative_BC) * share_BC).sum(dim=1)
            return self._softplus(-sign_B * positive_B) + (sign_B > 0) * pushed_B
        gaps_BC = sign_B[:, None] * (negative_BC - positive_B[:, None])
        if kind == "bpr":
            return (self._softplus(gaps_BC) * share_BC).sum(dim=1)
        above_BC = torch.relu(gaps_BC + self._margin)
        hinge_B = (above_BC * share_BC).sum(dim=1)
        return hinge_B if kind == "hinge" else torch.where(sign_B > 0, self._warp(above_BC * counts_BC), hinge_B)

    def _warp(self, violation_BC: Tensor) -> Tensor:
        """Compute the largest violation of each example times the log of its rank, estimated from the violations."""
        torch = self._torch
        if violation_BC.shape[1] == 0:
            return violation_BC.sum(dim=1)
        ranks_B = (violation_BC > 0).sum(dim=1) * ((self._items - 1) / violation_BC.shape[1])
        # Gathered by index: the gradient of a maximum would be shared among equal values.
        largest_B = violation_BC.gather(1, violation_BC.detach().argmax(dim=1, keepdim=True))[:, 0]
        return torch.log1p(ranks_B) * largest_B

    def _softplus(self, x: Tensor) -> Tensor:
        """Compute log(1 + eˣ) without overflow. (x + |x|)/2 is its linear part, with the derivative 1/2 at 0."""
        torch = self._torch
        return 0.5 * (x + x.abs()) + torch.log1p(torch.exp(-x.abs()))


def powers_of(scores_BC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return e^(s − t) in place of the scores s, their top score t, (B,), and the sums of these powers, (B,).

    The sums are at least 1, so that powers divided by them add up to 1 however large the scores are; in float32, those
    of s − log Σ e^s would not. Where all scores are −∞, t and the sum are 0.
    """
    top_B = scores_BC.amax(dim=1) if scores_BC.shape[1] else scores_BC.new_zeros(len(scores_BC))
    top_B = top_B.masked_fill(top_B.isneginf(), 0.0)
    powers_BC = scores_BC.sub_(top_B[:, None]).exp_()
    return powers_BC, top_B, powers_BC.sum(dim=1)
