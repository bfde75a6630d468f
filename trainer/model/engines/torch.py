"""Gradients by PyTorch, on CPUs and on GPUs from NVIDIA's Turing on (docs/distributed.md).

    engine = TorchEngine(model, LossSpec("softmax"), NegativesConfig(kind="shared"), "gpu:0")
    loss, gradients = engine.gradients(batch, vectors)

Vectors come from the host, so tables may be anywhere. ``TorchGradients`` computes scores, ``ScoreLoss`` differentiates
the losses by score only (``trainer/model/losses.py`` has the formulas), and matrix products and sums by row follow.
Sums are embedding bags, which add a row's uses in their order, so results repeat on a device, unlike scattered
additions. Softmax, the default, has a closed form; the other losses differentiate what they compute by autograd.

Shapes: A active rows, B examples, N uses of items, U uses of an example (its item, then its negatives), C
negatives of an example, X items that a score is of, D columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from crossfade.base.arrays import FloatArray
from crossfade.kvstore.jit import get_num_threads
from crossfade.kvstore.torch.device import describe_exhausted_memory, import_torch
from crossfade.trainer.config.sections import NegativesConfig
from crossfade.trainer.model.batches import Batch
from crossfade.trainer.model.engines.device_engine import DeviceEngine, Pool, Scores, split
from crossfade.trainer.model.losses import LossSpec
from crossfade.trainer.model.spec import ModelSpec

Tensor = Any
"""A tensor of PyTorch."""


class TorchEngine(DeviceEngine):
    """Computes gradients with PyTorch."""

    name = "torch"

    def __init__(self, model: ModelSpec, loss: LossSpec, negatives: NegativesConfig, device: str = "cpu") -> None:
        """Prepare to compute on ``device``, such as ``cpu`` or ``gpu:1``, as ``train.device`` names it.

        Raises:
            MissingExtraError: PyTorch is not installed.
        """
        torch = import_torch()
        torch.set_num_threads(get_num_threads())
        torch.set_float32_matmul_precision("highest")  # some containers set another one, which rounds to 10 bits
        super().__init__(model, loss, negatives, device)
        self._torch = torch
        self._target = torch.device(torch_device(device))
        self._gradients = TorchGradients(torch, model, loss)

    def _compute(self, batch: Batch, query_AD: FloatArray, item_AD: FloatArray) -> tuple[float, FloatArray, FloatArray]:
        with describe_exhausted_memory():
            loss, *gradients = self.compute(batch, self._upload(query_AD), self._upload(item_AD))
            by_query, by_item = (gradient.cpu().numpy() for gradient in gradients)
        return float(loss), by_query, by_item

    def compute(self, batch: Batch, query_AD: Any, item_AD: Any) -> tuple[Any, Any, Any]:
        """Compute the loss and the gradients of ``batch`` on the device of its rows, without waiting.

        Args:
            batch: the batch, which has examples.
            query_AD: vectors of its active queries, a tensor.
            item_AD: vectors of its active items, likewise.

        Returns:
            The loss, a float64 scalar, and the gradients of both sides, all of them tensors.
        """
        with self._torch.no_grad():
            tensors = BatchTensors.of(self._torch, batch, query_AD.device)
            shares_scores = self._shares_scores(batch)
            return self._gradients.compute(self._pools(batch), tensors, query_AD, item_AD, shares_scores=shares_scores)

    def _upload(self, rows_AD: FloatArray) -> Any:
        rows = self._torch.from_numpy(np.ascontiguousarray(rows_AD))
        return rows if self._target.type == "cpu" else rows.pin_memory().to(self._target, non_blocking=True)

    def gpu_memory(self) -> tuple[int, int] | None:
        """Return the used and the total bytes of the GPU, None on the CPU. Any thread may call it."""
        if self._target.type != "cuda":
            return None
        free, total = self._torch.cuda.mem_get_info(self._target)
        return total - free, total


def torch_device(name: str) -> str:
    """Return PyTorch's name of a device of ``train.device``, such as ``cuda:1`` for ``gpu:1``."""
    kind, _, number = name.partition(":")
    return "cpu" if kind == "cpu" else f"cuda:{number or 0}"


_MAX_SCORES = 1 << 24
"""Scores that a GPU computes at a time, 64 MiB; softmax takes 4 arrays of this size at once, other losses about 10."""
_CPU_SCORES, _MIN_CPU_ROWS = 1 << 20, 256
"""Scores that a CPU computes at a time, 4 MiB, which stay in its cache; and the rows that they are of, at least, since
each time adds to the gradients of all negatives."""
_MIN_NORM = 1e-12


@dataclass(frozen=True)
class BatchTensors:
    """The indexes and weights of a batch on a device, int32 and float32; ``group_B`` has the query of each."""

    query_index_B: Tensor
    query_order_B: Tensor
    query_starts_A1: Tensor
    item_index_N: Tensor
    item_order_N: Tensor
    item_starts_A1: Tensor
    group_B: Tensor
    weight_B: Tensor
    log_q_N: Tensor

    @staticmethod
    def of(torch: Any, batch: Batch, device: Any) -> BatchTensors:
        """Copy the arrays of ``batch`` to ``device`` in two transfers, which do not wait for the device."""
        query, item = batch.query, batch.item
        indexes = [query.index_N, query.order_N, query.starts_A1, item.index_N, item.order_N, item.starts_A1]
        integers = _copy(torch, [*indexes, batch.query_groups.index_N], np.int32, device)
        return BatchTensors(*integers, *_copy(torch, [batch.normalized_weights(), batch.log_q_N], np.float32, device))

    @property
    def examples(self) -> int:
        """B, the number of examples."""
        return len(self.weight_B)


def _copy(torch: Any, arrays: list[Any], dtype: Any, device: Any) -> Iterator[Tensor]:
    """Copy one-dimensional arrays to ``device`` in one transfer."""
    joined = torch.from_numpy(np.concatenate([array.astype(dtype, copy=False) for array in arrays]))
    if device.type == "cuda":
        joined = joined.pin_memory().to(device, non_blocking=True)
    return iter(joined.split([len(array) for array in arrays]))


class TorchGradients:
    """Computes losses and gradients of batches."""

    def __init__(self, torch: Any, model: ModelSpec, loss: LossSpec) -> None:
        """Prepare for ``model`` and ``loss``."""
        self._torch = torch
        self._score = model.score
        # The other losses depend on differences of an example's scores only, which the query's norm cancels out of.
        self._query_norm_scale = model.score.norm_scale if loss.kind == "logistic" else 0.0
        self._loss = ScoreLoss(torch, loss, model.item.rows)

    def compute(
        self, pools: list[Pool], tensors: BatchTensors, query_AD: Tensor, item_AD: Tensor, *, shares_scores: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss, a scalar in float64, and the gradients of the vectors ``query_AD`` and ``item_AD``.

        Args:
            pools: the examples by the negatives that they share; none if negatives are drawn per example.
            tensors: the arrays of the batch, on the device.
            query_AD: vectors of its active queries.
            item_AD: vectors of its active items.
            shares_scores: whether the examples of a query have the same scores: all items are their negatives, the loss
                is softmax, and they differ in nothing else.
        """
        rows, norms = [query_AD, item_AD], []
        if self._score.normalized:
            norms = [vectors.norm(dim=1, keepdim=True).clamp_min(_MIN_NORM) for vectors in rows]
            rows = [vectors / norm for vectors, norm in zip(rows, norms, strict=True)]
        if shares_scores:
            loss, *gradients = self._with_shared_scores(tensors, *rows)
        elif pools:
            loss, *gradients = self._with_pools(pools, tensors, *rows)
        else:
            loss, *gradients = self._per_example(tensors, *rows)
        if norms:
            gradients = [
                (gradient - (gradient * unit).sum(dim=1, keepdim=True) * unit) / norm
                for gradient, unit, norm in zip(gradients, rows, norms, strict=True)
            ]
        return loss, gradients[0], gradients[1]

    def _sum_by_row(self, values_ND: Tensor, order_N: Tensor, starts_A1: Tensor) -> Tensor:
        """Return the sum of the values of each row's uses, in their order."""
        return self._weighted_sum(order_N, values_ND, starts_A1, None)

    def _weighted_sum(self, index_N: Tensor, values_VD: Tensor, starts_A1: Tensor, weight_N: Tensor | None) -> Tensor:
        """Return Σ weight_N[n]·values_VD[index_N[n]] over the uses n of each row."""
        return self._torch.nn.functional.embedding_bag(
            index_N, values_VD, starts_A1, mode="sum", per_sample_weights=weight_N, include_last_offset=True
        )

    # ---- pools

    def _with_pools(
        self, pools: list[Pool], tensors: BatchTensors, query_AD: Tensor, item_AD: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        torch, dim = self._torch, query_AD.shape[1]
        use_gradient_ND = query_AD.new_zeros(len(tensors.item_index_N), dim)
        query_gradient_BD = query_AD.new_empty(tensors.examples, dim)
        loss = query_AD.new_zeros((), dtype=torch.float64)
        for pool in pools:
            loss += self._add_pool(pool, tensors, (query_AD, item_AD), (query_gradient_BD, use_gradient_ND))
        return (
            loss,
            self._sum_by_row(query_gradient_BD, tensors.query_order_B, tensors.query_starts_A1),
            self._sum_by_row(use_gradient_ND, tensors.item_order_N, tensors.item_starts_A1),
        )

    def _add_pool(
        self,
        pool: Pool,
        tensors: BatchTensors,
        rows: tuple[Tensor, Tensor],
        gradients: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Add the gradients of the examples of a pool, and return the sum of their losses."""
        torch, (query_AD, item_AD), (query_gradient_BD, use_gradient_ND) = self._torch, rows, gradients
        drawn = slice(tensors.examples, len(tensors.item_index_N))
        index_C = torch.cat([tensors.item_index_N[drawn], tensors.item_index_N[pool.in_batch]])
        pool_CD = item_AD.index_select(0, index_C)
        pool_gradient_CD = torch.zeros_like(pool_CD)
        loss = query_AD.new_zeros((), dtype=torch.float64)
        for examples in split(pool.examples, _rows_at_a_time(query_AD, len(index_C))):
            query_BD = query_AD.index_select(0, tensors.query_index_B[examples])
            item_BD = item_AD.index_select(0, tensors.item_index_N[examples])
            scores = Scores(
                self._scores(query_BD, item_BD, (query_BD * item_BD).sum(dim=1)),
                self._pool_scores(tensors, query_BD, pool_CD, drawn, pool),
                self._excluded(tensors, examples, index_C, pool),
            )
            losses_B, slope_B, slope_BC = self._slopes(tensors.weight_B[examples], scores)
            loss += losses_B.sum(dtype=torch.float64)
            scale, twice = self._score.dot_scale, 2 * self._score.norm_scale
            query_gradient_BD[examples] = scale * (slope_BC @ pool_CD + slope_B[:, None] * item_BD)
            pool_gradient_CD += scale * (slope_BC.T @ query_BD)
            use_gradient_ND[examples] += (scale * slope_B)[:, None] * query_BD
            if self._query_norm_scale:
                query_gradient_BD[examples] -= (twice * (slope_BC.sum(dim=1) + slope_B))[:, None] * query_BD
            if twice:
                pool_gradient_CD -= (twice * slope_BC.sum(dim=0))[:, None] * pool_CD
                use_gradient_ND[examples] -= (twice * slope_B)[:, None] * item_BD
        use_gradient_ND[drawn] += pool_gradient_CD[: drawn.stop - drawn.start]
        use_gradient_ND[pool.in_batch] += pool_gradient_CD[drawn.stop - drawn.start :]
        return loss

    def _scores(self, query_BD: Tensor, item_XD: Tensor, products: Tensor) -> Tensor:
        """Return scores of dot products, of each example with one item (B,), or with all items (B, C).

        They may lack what all scores of an example have in common, if the loss does not depend on it.
        """
        scores = self._score.dot_scale * products
        if self._score.norm_scale:
            scores = scores - self._score.norm_scale * (item_XD * item_XD).sum(dim=-1)
        if self._query_norm_scale:
            square_B = self._query_norm_scale * (query_BD * query_BD).sum(dim=1)
            scores = scores - (square_B[:, None] if products.dim() > 1 else square_B)
        return scores

    def _pool_scores(
        self, tensors: BatchTensors, query_BD: Tensor, pool_CD: Tensor, drawn: slice, pool: Pool
    ) -> Tensor:
        scores_BC = self._scores(query_BD, pool_CD, query_BD @ pool_CD.T)
        log_q_N = tensors.log_q_N
        return scores_BC.sub_(self._torch.cat([log_q_N[drawn], log_q_N[pool.in_batch]])) if len(log_q_N) else scores_BC

    def _excluded(self, tensors: BatchTensors, examples: slice, index_C: Tensor, pool: Pool) -> Tensor:
        """Return which negatives do not count: the example's own item, and other items of its query in the batch."""
        excluded_BC = tensors.item_index_N[examples][:, None] == index_C
        in_batch = pool.in_batch.stop - pool.in_batch.start
        if in_batch:
            same_query = tensors.group_B[examples][:, None] == tensors.group_B[pool.in_batch]
            excluded_BC[:, len(index_C) - in_batch :] |= same_query
        return excluded_BC

    def _slopes(self, weight_B: Tensor, scores: Scores) -> tuple[Tensor, Tensor, Tensor]:
        sign_B = self._torch.where(weight_B < 0, -1.0, 1.0)
        return self._loss.slopes(scores, weight_B.abs(), sign_B)

    # ---- all items are negatives, and a query is scored once

    def _with_shared_scores(
        self, tensors: BatchTensors, query_AD: Tensor, item_AD: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute −Σ_b w_b (s_b − log Σ_j e^{s_j}), whose sum over all items j includes the example's own."""
        torch = self._torch
        scale, twice = self._score.dot_scale, 2 * self._score.norm_scale
        query_index_B, item_index_B = tensors.query_index_B, tensors.item_index_N[: len(tensors.weight_B)]
        own_B = (query_AD.index_select(0, query_index_B) * item_AD.index_select(0, item_index_B)).sum(dim=1)
        square_C = (item_AD * item_AD).sum(dim=1) if twice else None
        own_B = scale * own_B
        if square_C is not None:
            # The squared norm of the query is a term of all its scores, so it has no gradient.
            own_B -= self._score.norm_scale * square_C.index_select(0, item_index_B)
        weight_A1 = self._sum_by_row(tensors.weight_B[:, None], tensors.query_order_B, tensors.query_starts_A1)
        item_gradient_AD, query_gradient_AD = torch.zeros_like(item_AD), torch.empty_like(query_AD)
        total_A, kth_A = query_AD.new_empty(len(query_AD)), query_AD.new_zeros(len(query_AD))
        top_k, weight_B = self._loss.top_k, tensors.weight_B
        for part in split(slice(0, len(query_AD)), _rows_at_a_time(query_AD, len(item_AD))):
            scores_AC = scale * (query_AD[part] @ item_AD.T)
            if square_C is not None:
                scores_AC -= self._score.norm_scale * square_C
            if top_k is not None:
                kth_A[part] = scores_AC.topk(min(top_k, len(item_AD)), dim=1).values[:, -1]
                # Those of queries whose scores are yet to be computed are not used.
                weight_B = tensors.weight_B * self._loss.weight_at_top(own_B - kth_A.index_select(0, query_index_B))
                weight_A1 = self._sum_by_row(weight_B[:, None], tensors.query_order_B, tensors.query_starts_A1)
            powers_AC, top_A, sum_A = powers_of(scores_AC)
            total_A[part] = top_A + sum_A.log()
            slope_AC = powers_AC.mul_(weight_A1[part] / sum_A[:, None])
            query_gradient_AD[part] = scale * (slope_AC @ item_AD)
            item_gradient_AD += scale * (slope_AC.T @ query_AD[part])
            if square_C is not None:
                item_gradient_AD -= (twice * slope_AC.sum(dim=0))[:, None] * item_AD
        loss_B = weight_B * (total_A.index_select(0, query_index_B) - own_B)
        self._subtract_own(
            replace(tensors, weight_B=weight_B), (query_AD, item_AD), (query_gradient_AD, item_gradient_AD)
        )
        return loss_B.sum(dtype=torch.float64), query_gradient_AD, item_gradient_AD

    def _subtract_own(
        self, tensors: BatchTensors, rows: tuple[Tensor, Tensor], gradients: tuple[Tensor, Tensor]
    ) -> None:
        """Subtract the gradients of the scores of the examples' own items, times their weights."""
        torch, (query_AD, item_AD), (query_gradient_AD, item_gradient_AD) = self._torch, rows, gradients
        scaled_B, order_B = self._score.dot_scale * tensors.weight_B, tensors.query_order_B.long()
        own_B = tensors.item_index_N[: len(scaled_B)]
        query_gradient_AD -= self._weighted_sum(own_B[order_B], item_AD, tensors.query_starts_A1, scaled_B[order_B])
        negatives, order_N = len(tensors.item_index_N) - len(scaled_B), tensors.item_order_N.long()
        query_N = torch.cat([tensors.query_index_B, tensors.query_index_B.new_zeros(negatives)])[order_N]
        weight_N = torch.cat([scaled_B, scaled_B.new_zeros(negatives)])[order_N]
        item_gradient_AD -= self._weighted_sum(query_N, query_AD, tensors.item_starts_A1, weight_N)
        if self._score.norm_scale:
            every_N = torch.arange(len(weight_N), dtype=torch.int32, device=weight_N.device)
            weight_A1 = self._sum_by_row(weight_N[:, None] / self._score.dot_scale, every_N, tensors.item_starts_A1)
            item_gradient_AD += 2 * self._score.norm_scale * weight_A1 * item_AD

    # ---- negatives per example

    def _per_example(self, tensors: BatchTensors, query_AD: Tensor, item_AD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        torch, examples = self._torch, tensors.examples
        count = len(tensors.item_index_N) // examples - 1
        own_B, index_BC = tensors.item_index_N[:examples], tensors.item_index_N[examples:].view(examples, count)
        slope_BU = query_AD.new_empty(examples, 1 + count)
        loss = query_AD.new_zeros((), dtype=torch.float64)
        for some in split(slice(0, examples), _rows_at_a_time(query_AD, (1 + count) * query_AD.shape[1])):
            query_BD = query_AD.index_select(0, tensors.query_index_B[some])
            item_BD = item_AD.index_select(0, own_B[some])
            negative_BCD = item_AD.index_select(0, index_BC[some].reshape(-1)).view(-1, count, query_AD.shape[1])
            scores_BC = self._scores(query_BD, negative_BCD, (negative_BCD * query_BD[:, None, :]).sum(dim=2))
            if len(tensors.log_q_N):
                scores_BC = scores_BC - tensors.log_q_N[examples:].view(examples, count)[some]
            own_scores_B = self._scores(query_BD, item_BD, (query_BD * item_BD).sum(dim=1))
            scores = Scores(own_scores_B, scores_BC, index_BC[some] == own_B[some][:, None])
            losses_B, slope_BU[some, 0], slope_BU[some, 1:] = self._slopes(tensors.weight_B[some], scores)
            loss += losses_B.sum(dtype=torch.float64)
        return loss, *self._per_example_sums(tensors, query_AD, item_AD, slope_BU)

    def _per_example_sums(
        self, tensors: BatchTensors, query_AD: Tensor, item_AD: Tensor, slope_BU: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients of both sides from the derivatives by the score of each use.

        The examples of a query are adjacent, so its uses are, too.
        """
        torch, (examples, uses) = self._torch, slope_BU.shape
        scale, twice = self._score.dot_scale, 2 * self._score.norm_scale
        index_BU = torch.cat(
            [tensors.item_index_N[:examples, None], tensors.item_index_N[examples:].view(examples, -1)], dim=1
        )
        slope_N = slope_BU.reshape(-1)
        query_gradient_AD = self._weighted_sum(
            index_BU.reshape(-1), item_AD, tensors.query_starts_A1 * uses, scale * slope_N
        )
        query_N = torch.cat([tensors.query_index_B, tensors.query_index_B.repeat_interleave(uses - 1)])
        order_N = tensors.item_order_N.long()
        by_use_N = torch.cat([slope_BU[:, 0], slope_BU[:, 1:].reshape(-1)])[order_N]
        item_gradient_AD = self._weighted_sum(query_N[order_N], query_AD, tensors.item_starts_A1, scale * by_use_N)
        if twice:
            every_N = torch.arange(len(slope_N), dtype=torch.int32, device=slope_N.device)
            of_item_A1 = self._sum_by_row(by_use_N[:, None], every_N, tensors.item_starts_A1)
            item_gradient_AD -= twice * of_item_A1 * item_AD
            if self._query_norm_scale:
                of_query_A1 = self._sum_by_row(slope_N[:, None], every_N, tensors.query_starts_A1 * uses)
                query_gradient_AD -= twice * of_query_A1 * query_AD
        return query_gradient_AD, item_gradient_AD


def _rows_at_a_time(rows_AD: Tensor, scores: int) -> int:
    """Return of how many rows to compute the scores at a time, on the device of ``rows_AD``; each has ``scores``."""
    size = max(1, _MAX_SCORES // max(scores, 1))
    return size if rows_AD.is_cuda else min(size, max(_MIN_CPU_ROWS, _CPU_SCORES // max(scores, 1)))


class ScoreLoss:
    """Computes the losses of examples from their scores, and the derivatives."""

    def __init__(self, torch: Any, spec: LossSpec, items: int) -> None:
        """Prepare for ``spec`` and a table of ``items``."""
        self._torch = torch
        self._spec = spec
        self._items = items
        self.top_k = spec.top_k

    def slopes(self, scores: Scores, cost_B: Tensor, sign_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the losses (B,), and their derivatives by the scores of items (B,) and of negatives (B, C).

        Args:
            scores: the scores; its negatives may be overwritten.
            cost_B: factors of the losses, 0 or more.
            sign_B: 1, or -1 for negative feedback, whose loss is the reversed one.
        """
        if self._spec.kind == "softmax":
            return self._softmax(scores, cost_B, sign_B)
        torch = self._torch
        with torch.enable_grad():
            leaves = [scores.positive.detach().requires_grad_(), scores.negative_BC.detach().requires_grad_()]
            losses_B = cost_B * self._losses(Scores(leaves[0], leaves[1], scores.excluded_BC), sign_B)
            slopes = torch.autograd.grad(losses_B.sum(), leaves, allow_unused=True)
        by_positive, by_negative = (
            torch.zeros_like(leaf) if slope is None else slope for leaf, slope in zip(leaves, slopes, strict=True)
        )
        # The derivative of relu is 0 where its argument is not a number. Rows must not seem to be sound there.
        by_positive = torch.where(losses_B.isnan(), torch.nan, by_positive)
        return losses_B.detach(), by_positive, by_negative

    def _softmax(self, scores: Scores, cost_B: Tensor, sign_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute −log σ(s − log Σ_j e^{s_j}) or, with the other sign, −log(1 − p).

        With x = ±(log Σ_j e^{s_j} − s), the loss is log(1 + eˣ), whose derivative by x is σ(x).
        """
        torch = self._torch
        if self.top_k is not None:
            # Of all items, which the negatives are; the example's own is excluded from them.
            others_BC = scores.negative_BC.masked_fill(scores.excluded_BC, -torch.inf)
            all_BI = torch.cat([scores.positive[:, None], others_BC], dim=1)
            above_B = scores.positive - all_BI.topk(min(self.top_k, others_BC.shape[1]), dim=1).values[:, -1]
            cost_B = torch.where(sign_B > 0, cost_B * self.weight_at_top(above_B), cost_B)
        powers_BC, top_B, sum_B = powers_of(scores.negative_BC.masked_fill_(scores.excluded_BC, -torch.inf))
        cost_B = cost_B * (sum_B > 0)
        gap_B = sign_B * (top_B - scores.positive + sum_B.clamp_min(1.0).log())
        slope_B = cost_B * sign_B * torch.sigmoid(gap_B)
        slope_BC = powers_BC.mul_((slope_B / sum_B.clamp_min(1.0))[:, None])
        return cost_B * torch.nn.functional.softplus(gap_B), -slope_B, slope_BC

    def weight_at_top(self, above_B: Tensor) -> Tensor:
        """Return the factors of the weights of examples whose items' scores are ``above_B`` the K-th highest."""
        factor_B: Tensor = 2.0 * self._torch.sigmoid(above_B * self._spec.sharpness)
        return factor_B

    def _losses(self, scores: Scores, sign_B: Tensor) -> Tensor:
        """Compute the loss of each example, or the reversed loss where its sign is −1."""
        torch, kind, positive_B, negative_BC = self._torch, self._spec.kind, scores.positive, scores.negative_BC
        counts_BC, count = (~scores.excluded_BC).to(negative_BC.dtype), max(negative_BC.shape[1], 1)
        if kind == "logistic":
            pushed_B = (self._softplus(negative_BC) * (counts_BC / count)).sum(dim=1)
            return self._softplus(-sign_B * positive_B) + (sign_B > 0) * pushed_B
        gaps_BC = sign_B[:, None] * (negative_BC - positive_B[:, None])
        if kind == "bpr":
            return (self._softplus(gaps_BC) * (counts_BC / count)).sum(dim=1)
        violation_BC = torch.relu(gaps_BC + self._spec.margin / self._spec.temperature) * counts_BC
        ranks_B = (violation_BC > 0).sum(dim=1) * ((self._items - 1) / count)
        warp_B = torch.log1p(ranks_B) * violation_BC.max(dim=1).values  # its gradient goes to one of equal values
        return torch.where(sign_B > 0, warp_B, violation_BC.sum(dim=1) / count)

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
