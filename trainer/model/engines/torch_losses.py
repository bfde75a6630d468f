"""Derivatives of the losses by score, in PyTorch; ``trainer/model/losses.py`` has the formulas.

    losses_B, slope_B, slope_BC = score_slopes(spec, items, scores, cost_B, sign_B)

Softmax, the default, has a closed form; the others differentiate what they compute by autograd. Either way, only scores
have gradients: the products that lead to those of vectors are in ``torch_gradients.py``.

Shapes: B examples, C negatives of an example.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from crossfade.trainer.model.losses import LossSpec

Tensor = Any

_EXCLUDED_SCORE = -1e30
"""A score below that of any negative which counts."""


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
        if self._spec.kind == "softmax" and not self._drops_negatives(scores):
            return self._softmax(scores, cost_B, sign_B)
        torch = self._torch
        with torch.enable_grad():
            leaves = [scores.positive_B.detach().requires_grad_(), scores.negative_BC.detach().requires_grad_()]
            losses_B = cost_B * self._losses(Scores(leaves[0], leaves[1], scores.excluded_BC), sign_B)
            slopes = torch.autograd.grad(losses_B.sum(), leaves, allow_unused=True)
        by_positive, by_negative = (
            torch.zeros_like(leaf) if slope is None else slope for leaf, slope in zip(leaves, slopes, strict=True)
        )
        return losses_B.detach(), by_positive, by_negative

    def _drops_negatives(self, scores: Scores) -> bool:
        """Whether only the hardest negatives count."""
        return self._num_hard is not None and self._num_hard < scores.negative_BC.shape[1]

    def _softmax(self, scores: Scores, cost_B: Tensor, sign_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute −log σ(s − log Σ_j e^{s_j}) or, with the other sign, −log(1 − p).

        With x = ±(log Σ_j e^{s_j} − s), the loss is log(1 + eˣ), whose derivative by x is σ(x).
        """
        torch = self._torch
        counted_BC = scores.negative_BC.masked_fill_(scores.excluded_BC, -torch.inf)
        others_B = torch.logsumexp(counted_BC, dim=1)
        has_negative_B = others_B != -torch.inf
        finite_B = torch.where(has_negative_B, others_B, scores.positive_B)
        gap_B = sign_B * (finite_B - scores.positive_B)
        cost_B = cost_B * has_negative_B
        slope_B = cost_B * sign_B * torch.sigmoid(gap_B)
        slope_BC = counted_BC.sub_(finite_B[:, None]).exp_().mul_(slope_B[:, None])
        return cost_B * torch.nn.functional.softplus(gap_B), -slope_B, slope_BC

    def _losses(self, scores: Scores, sign_B: Tensor) -> Tensor:
        """Compute the loss of each example, or the reversed loss where its sign is −1."""
        torch, kind = self._torch, self._spec.kind
        positive_B, negative_BC = scores.positive_B, scores.negative_BC
        counts_BC = (~scores.excluded_BC).to(negative_BC.dtype)
        kept = negative_BC.shape[1]
        if self._num_hard is not None and self._drops_negatives(scores):
            kept = self._num_hard
            ranked_BC = negative_BC.detach().masked_fill(scores.excluded_BC, _EXCLUDED_SCORE)
            hardest_BC = torch.zeros_like(ranked_BC).scatter_(1, ranked_BC.topk(kept, dim=1).indices, 1.0)
            counts_BC = counts_BC * hardest_BC
        share_BC = counts_BC / max(kept, 1)
        if kind == "softmax":
            return self._hard_softmax(positive_B, negative_BC.masked_fill(counts_BC == 0, -torch.inf), sign_B)
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

    def _hard_softmax(self, positive_B: Tensor, counted_BC: Tensor, sign_B: Tensor) -> Tensor:
        """Compute the softmax loss where some negatives have the score −∞."""
        torch = self._torch
        has_negative_B = (counted_BC != -torch.inf).any(dim=1)
        counted_BC = torch.where(has_negative_B[:, None], counted_BC, positive_B.detach()[:, None])
        gap_B = sign_B * (torch.logsumexp(counted_BC, dim=1) - positive_B)
        return torch.where(has_negative_B, self._softplus(gap_B), 0.0)

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
