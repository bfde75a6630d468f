"""Gradients by MXNet's autograd on the same compact block, on the CPU or a GPU.

Rows are gathered into the block before autograd sees them, so its dense gradients are of the block alone, where
``Embedding(sparse_grad=True)`` walks a whole table in every step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from kvstore.arrays import FloatArray, IntArray
from kvstore.errors import InputError
from kvstore.mxnet.imports import import_mxnet
from trainer.config.model_sections import NegativesConfig
from trainer.model.batches import Batch
from trainer.model.losses import LossSpec
from trainer.model.negatives import IN_BATCH_KINDS
from trainer.model.spec import ModelSpec

_OUT_OF_THE_SUM = -1e30
"""A score whose exponential is 0 beside that of any score."""


class MXNetEngine:
    """Gradients by autograd; see ``trainer/model/losses.py`` for the formulas."""

    def __init__(
        self, model: ModelSpec, loss: LossSpec, negatives: NegativesConfig, device: Literal["cpu", "gpu"]
    ) -> None:
        """An engine on ``device``.

        Raises:
            MissingExtraError: MXNet is not installed.
            InputError: there is no such device, or this build of MXNet cannot drive it.
        """
        self._mx = import_mxnet()
        if device == "gpu" and self._mx.context.num_gpus() == 0:
            raise InputError("train.device is 'gpu', but MXNet sees no GPU here: set train.device to 'cpu'")
        self._context = self._mx.gpu(0) if device == "gpu" else self._mx.cpu()
        self._model = model
        self._loss = loss
        self._per_example = negatives.kind == "per_example"
        self._from_batch = negatives.kind in IN_BATCH_KINDS
        self._hard = negatives.num_hard or 0

    def gradients(self, batch: Batch, block: Mapping[str, FloatArray]) -> tuple[float, dict[str, FloatArray]]:
        """This worker's part of the mean loss and of its gradient."""
        names = self._model.query.name, self._model.item.name
        if len(batch) == 0:
            return 0.0, {name: np.zeros_like(block[name]) for name in names}
        rows = [self._array(block[name]) for name in names]
        for array in rows:
            array.attach_grad()
        with self._mx.autograd.record():
            loss = self._batch_loss(batch, *rows)
        loss.backward()
        return float(loss.asscalar()), {name: array.grad.asnumpy() for name, array in zip(names, rows, strict=True)}

    def gpu_memory(self) -> tuple[int, int] | None:
        """Used and all bytes of the GPU, or None on the CPU."""
        if self._context.device_type != "gpu":
            return None
        free, total = self._mx.context.gpu_memory_info(self._context.device_id)
        return total - free, total

    def _array(self, values: FloatArray | IntArray, dtype: type = np.float32) -> Any:
        return self._mx.nd.array(values, ctx=self._context, dtype=dtype)

    def _batch_loss(self, batch: Batch, query_AD: Any, item_AD: Any) -> Any:
        nd = self._mx.nd
        if self._model.score.normalized:
            query_AD, item_AD = (nd.L2Normalization(rows, eps=1e-24, mode="instance") for rows in (query_AD, item_AD))
        query_BD = nd.take(query_AD, self._array(batch.query.index_N, np.int32))
        item_BD = nd.take(item_AD, self._array(batch.item_index_B, np.int32))
        negatives = batch.negative_index_N.reshape(len(batch), -1) if self._per_example else self._pool_uses(batch)
        pool = nd.take(item_AD, self._array(negatives, np.int32))
        own_B1 = self._score(query_BD, item_BD, nd.sum(query_BD * item_BD, axis=1, keepdims=True))
        if self._per_example:
            products_BC = nd.sum(nd.expand_dims(query_BD, 1) * pool, axis=2)
        else:
            products_BC = nd.dot(query_BD, pool, transpose_b=True)
        scores_BC = self._score(query_BD, pool, products_BC)
        if len(batch.log_q_N):
            scores_BC = self._corrected(batch, scores_BC)
        left_out_BC, count_B = self._left_out(batch, negatives)
        sign_B1 = self._array(np.where(batch.weight_B < 0, np.float32(-1), np.float32(1))[:, None])
        cost_B = self._array(np.abs(batch.weight_B) / np.float32(batch.global_size))
        return nd.sum(cost_B * self._example_losses(own_B1, scores_BC, left_out_BC, count_B, sign_B1))

    def _pool_uses(self, batch: Batch) -> IntArray:
        """The active rows of the pool and, with negatives from the batch, of all its items."""
        return np.concatenate([batch.negative_index_N, batch.item_index_B if self._from_batch else []]).astype(np.int64)

    def _corrected(self, batch: Batch, scores_BC: Any) -> Any:
        """Scores of negatives, less by log Q."""
        less_B, less_N = batch.log_q_N[: len(batch)], batch.log_q_N[len(batch) :]
        if self._from_batch:
            less_N = np.concatenate([less_N, less_B])
        less = self._array(less_N.reshape(len(batch) if self._per_example else 1, -1))
        return self._mx.nd.broadcast_sub(scores_BC, less)

    def _left_out(self, batch: Batch, negatives: IntArray) -> tuple[Any, FloatArray]:
        """1 for each negative that does not count for an example, float32 (B, C), and how many negatives it has, (B,).

        The example's own item does not, nor what its query met in the batch. Items of another lane are none of its
        negatives at all.
        """
        left_out_BC = negatives == batch.item_index_B[:, None]
        count_B = np.full(len(batch), left_out_BC.shape[1])
        if self._from_batch:
            query_B, drawn = batch.query.index_N, len(batch.negative_index_N)
            group_B = np.repeat(np.arange(len(batch.groups)), [group.stop - group.start for group in batch.groups])
            other_BB = group_B[:, None] != group_B
            left_out_BC[:, drawn:] |= other_BB | (query_B[:, None] == query_B)
            count_B -= other_BB.sum(axis=1)
        return self._array(left_out_BC.astype(np.float32)), count_B

    def _score(self, query_BD: Any, items: Any, products: Any) -> Any:
        nd, score = self._mx.nd, self._model.score
        if score.norm_scale == 0:
            return score.dot_scale * products
        query_square_B1 = nd.sum(query_BD * query_BD, axis=1, keepdims=True)
        item_square = nd.sum(items * items, axis=-1)
        is_own = items.shape == query_BD.shape and products.shape[1] == 1
        item_square = nd.reshape(item_square, (-1, 1)) if is_own else nd.reshape(item_square, (-1, products.shape[1]))
        return nd.broadcast_sub(
            score.dot_scale * products, score.norm_scale * nd.broadcast_add(query_square_B1, item_square)
        )

    def _example_losses(self, own_B1: Any, scores_BC: Any, left_out_BC: Any, count_B: IntArray, sign_B1: Any) -> Any:
        """The loss of each example, or of the opposite statement where its sign is −1."""
        nd = self._mx.nd
        counts_BC = 1 - left_out_BC
        kept_B = np.minimum(count_B, self._hard) if self._hard else count_B
        if self._hard and self._hard < scores_BC.shape[1]:
            # Items of other lanes are left out, so the highest scores are of the example's own negatives.
            ranked_BC = nd.where(left_out_BC, nd.full(scores_BC.shape, _OUT_OF_THE_SUM, self._context), scores_BC)
            counts_BC = counts_BC * nd.BlockGrad(nd.topk(ranked_BC, k=self._hard, axis=1, ret_typ="mask"))
        share_BC = nd.broadcast_mul(counts_BC, self._array((1.0 / np.maximum(kept_B, 1)).astype(np.float32)[:, None]))
        kind = self._loss.kind
        if kind == "softmax":
            return self._softmax(own_B1, scores_BC, counts_BC, sign_B1)
        if kind == "ccl":
            return self._ccl(own_B1, scores_BC, share_BC, sign_B1)
        if kind == "logistic":
            losses_BC = self._softplus(scores_BC) * nd.broadcast_mul(sign_B1 > 0, share_BC)
            return self._softplus(-sign_B1 * own_B1)[:, 0] + nd.sum(losses_BC, axis=1)
        gaps_BC = nd.broadcast_mul(sign_B1, nd.broadcast_sub(scores_BC, own_B1))
        if kind == "bpr":
            return nd.sum(self._softplus(gaps_BC) * share_BC, axis=1)
        above_BC = nd.relu(gaps_BC + self._loss.margin / self._loss.temperature)
        hinge_B = nd.sum(above_BC * share_BC, axis=1)
        if kind == "hinge":
            return hinge_B
        return nd.where(sign_B1[:, 0] > 0, self._warp(above_BC, counts_BC, count_B), hinge_B)

    def _warp(self, above_BC: Any, counts_BC: Any, count_B: IntArray) -> Any:
        """The largest violation of each example, times the logarithm of the rank that their number tells."""
        nd = self._mx.nd
        counted_BC = above_BC * counts_BC
        violators_B = nd.sum(counted_BC > 0, axis=1)
        ranks_B = self._array(((self._model.item.rows - 1) / np.maximum(count_B, 1)).astype(np.float32))
        # Picked, since the gradient of a maximum would go to each of several that are equal.
        largest_B = nd.pick(counted_BC, nd.BlockGrad(nd.argmax(counted_BC, axis=1)), axis=1)
        return nd.BlockGrad(nd.log1p(violators_B * ranks_B)) * largest_B

    def _ccl(self, own_B1: Any, scores_BC: Any, share_BC: Any, sign_B1: Any) -> Any:
        nd = self._mx.nd
        margin = self._loss.margin / self._loss.temperature
        pushed_B = nd.sum(nd.relu(scores_BC - margin) * share_BC, axis=1) * self._loss.negative_weight
        wanted_B = 1.0 / self._loss.temperature - own_B1[:, 0] + pushed_B
        return nd.where(sign_B1[:, 0] > 0, wanted_B, nd.relu(own_B1[:, 0] - margin))

    def _softmax(self, own_B1: Any, scores_BC: Any, counts_BC: Any, sign_B1: Any) -> Any:
        """−log p is −log σ(s − log Σ_j e^{s_j}), and the opposite −log(1 − p) is that of the other sign.

        By hand: MKLDNN's log_softmax crashes on some shapes when its input comes from another MKLDNN operator.
        """
        nd = self._mx.nd
        counted_BC = nd.where(counts_BC, scores_BC, nd.full(scores_BC.shape, _OUT_OF_THE_SUM, self._context))
        top_B1 = nd.BlockGrad(nd.max(counted_BC, axis=1, keepdims=True))
        powers_BC = nd.exp(nd.broadcast_sub(counted_BC, top_B1))
        others_B1 = top_B1 + nd.log(nd.sum(powers_BC, axis=1, keepdims=True))
        any_left_B1 = top_B1 > _OUT_OF_THE_SUM
        return (any_left_B1 * self._softplus(sign_B1 * (others_B1 - own_B1)))[:, 0]

    def _softplus(self, x: Any) -> Any:
        """−log σ(−x), without overflow. Half of x + |x| is its larger part, and has the derivative 1/2 at 0."""
        nd = self._mx.nd
        return 0.5 * (x + nd.abs(x)) + nd.log1p(nd.exp(-nd.abs(x)))
