"""Gradients by MXNet's autograd, on the CPU or a GPU.

    engine = MXNetEngine(model, LossSpec("softmax"), NegativesConfig(kind="shared"), "gpu")
    loss, gradients = engine.gradients(batch, vectors)

The input holds the active rows only, so autograd's dense gradients have their size, whereas
``Embedding(sparse_grad=True)`` scans a complete table in every step.

Shapes: A active rows, B examples, C negatives of an example, N uses of items, D columns. Here, B1 is a column, (B, 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from crossfade.kvstore.arrays import FloatArray, IntArray
from crossfade.kvstore.errors import InputError
from crossfade.kvstore.mxnet.imports import import_mxnet
from crossfade.trainer.config.model_sections import NegativesConfig
from crossfade.trainer.model.batches import Batch
from crossfade.trainer.model.losses import LossSpec
from crossfade.trainer.model.negatives import IN_BATCH_KINDS
from crossfade.trainer.model.spec import ModelSpec

_EXCLUDED_SCORE = -1e30
"""A score whose exponential is 0 relative to that of any other score."""


class MXNetEngine:
    """Computes gradients by autograd; ``trainer/model/losses.py`` has the formulas."""

    def __init__(
        self, model: ModelSpec, loss: LossSpec, negatives: NegativesConfig, device: Literal["cpu", "gpu"]
    ) -> None:
        """Prepare to compute on ``device``.

        Raises:
            MissingExtraError: MXNet is not installed.
            InputError: MXNet finds no GPU.
        """
        self._mx = import_mxnet()
        if device == "gpu" and self._mx.context.num_gpus() == 0:
            raise InputError("train.device is 'gpu', but MXNet finds no GPU here: set train.device to 'cpu'")
        self._context = self._mx.gpu(0) if device == "gpu" else self._mx.cpu()
        self._model = model
        self._loss = loss
        self._per_example = negatives.kind == "per_example"
        self._in_batch = negatives.kind in IN_BATCH_KINDS
        self._num_hard = negatives.num_hard or 0

    def gradients(self, batch: Batch, vectors: Mapping[str, FloatArray]) -> tuple[float, dict[str, FloatArray]]:
        """Compute this worker's part of the mean loss, and the gradients of ``vectors`` (see ``Engine``)."""
        names = self._model.query.name, self._model.item.name
        if len(batch) == 0:
            return 0.0, {name: np.zeros_like(vectors[name]) for name in names}
        rows = [self._array(vectors[name]) for name in names]
        for array in rows:
            array.attach_grad()
        with self._mx.autograd.record():
            loss = self._batch_loss(batch, *rows)
        loss.backward()
        return float(loss.asscalar()), {name: array.grad.asnumpy() for name, array in zip(names, rows, strict=True)}

    def gpu_memory(self) -> tuple[int, int] | None:
        """Return the used and the total bytes of the GPU, None on the CPU."""
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
        positive_B1 = self._score(query_BD, item_BD, nd.sum(query_BD * item_BD, axis=1, keepdims=True))
        if self._per_example:
            products_BC = nd.sum(nd.expand_dims(query_BD, 1) * pool, axis=2)
        else:
            products_BC = nd.dot(query_BD, pool, transpose_b=True)
        scores_BC = self._score(query_BD, pool, products_BC)
        if len(batch.log_q_N):
            scores_BC = self._subtract_log_q(batch, scores_BC)
        excluded_BC, count_B = self._excluded(batch, negatives)
        sign_B1 = self._array(np.where(batch.weight_B < 0, np.float32(-1), np.float32(1))[:, None])
        cost_B = self._array(np.abs(batch.weight_B) / np.float32(batch.global_size))
        return nd.sum(cost_B * self._example_losses(positive_B1, scores_BC, excluded_BC, count_B, sign_B1))

    def _pool_uses(self, batch: Batch) -> IntArray:
        """Return the active rows of the pool and, with in-batch negatives, of all items of the batch."""
        return np.concatenate([batch.negative_index_N, batch.item_index_B if self._in_batch else []]).astype(np.int64)

    def _subtract_log_q(self, batch: Batch, scores_BC: Any) -> Any:
        """Subtract log Q from the scores of negatives."""
        log_q_B, log_q_N = batch.log_q_N[: len(batch)], batch.log_q_N[len(batch) :]
        if self._in_batch:
            log_q_N = np.concatenate([log_q_N, log_q_B])
        log_q = self._array(log_q_N.reshape(len(batch) if self._per_example else 1, -1))
        return self._mx.nd.broadcast_sub(scores_BC, log_q)

    def _excluded(self, batch: Batch, negatives: IntArray) -> tuple[Any, FloatArray]:
        """Return which negatives do not count, 1 in float32 (B, C), and how many negatives each example has, (B,).

        An example's positive does not count, nor do other positives of its query in the batch. Items of other
        partitions are not among its negatives at all.
        """
        excluded_BC = negatives == batch.item_index_B[:, None]
        count_B = np.full(len(batch), excluded_BC.shape[1])
        if self._in_batch:
            query_B, drawn = batch.query_groups.index_N, len(batch.negative_index_N)
            parts = batch.partition_slices
            partition_B = np.repeat(np.arange(len(parts)), [part.stop - part.start for part in parts])
            other_BB = partition_B[:, None] != partition_B
            excluded_BC[:, drawn:] |= other_BB | (query_B[:, None] == query_B)
            count_B -= other_BB.sum(axis=1)
        return self._array(excluded_BC.astype(np.float32)), count_B

    def _score(self, query_BD: Any, items: Any, products: Any) -> Any:
        nd, score = self._mx.nd, self._model.score
        if score.norm_scale == 0:
            return score.dot_scale * products
        query_square_B1 = nd.sum(query_BD * query_BD, axis=1, keepdims=True)
        item_square = nd.sum(items * items, axis=-1)
        is_positive = items.shape == query_BD.shape and products.shape[1] == 1
        item_square = (
            nd.reshape(item_square, (-1, 1)) if is_positive else nd.reshape(item_square, (-1, products.shape[1]))
        )
        return nd.broadcast_sub(
            score.dot_scale * products, score.norm_scale * nd.broadcast_add(query_square_B1, item_square)
        )

    def _example_losses(
        self, positive_B1: Any, scores_BC: Any, excluded_BC: Any, count_B: IntArray, sign_B1: Any
    ) -> Any:
        """Compute the loss of each example, or the reversed loss where its sign is −1."""
        nd = self._mx.nd
        counts_BC = 1 - excluded_BC
        kept_B = np.minimum(count_B, self._num_hard) if self._num_hard else count_B
        if self._num_hard and self._num_hard < scores_BC.shape[1]:
            # Items of other partitions are excluded, so the highest scores are of the example's negatives.
            ranked_BC = nd.where(excluded_BC, nd.full(scores_BC.shape, _EXCLUDED_SCORE, self._context), scores_BC)
            counts_BC = counts_BC * nd.BlockGrad(nd.topk(ranked_BC, k=self._num_hard, axis=1, ret_typ="mask"))
        share_BC = nd.broadcast_mul(counts_BC, self._array((1.0 / np.maximum(kept_B, 1)).astype(np.float32)[:, None]))
        kind = self._loss.kind
        if kind == "softmax":
            return self._softmax(positive_B1, scores_BC, counts_BC, sign_B1)
        if kind == "ccl":
            return self._ccl(positive_B1, scores_BC, share_BC, sign_B1)
        if kind == "logistic":
            losses_BC = self._softplus(scores_BC) * nd.broadcast_mul(sign_B1 > 0, share_BC)
            return self._softplus(-sign_B1 * positive_B1)[:, 0] + nd.sum(losses_BC, axis=1)
        gaps_BC = nd.broadcast_mul(sign_B1, nd.broadcast_sub(scores_BC, positive_B1))
        if kind == "bpr":
            return nd.sum(self._softplus(gaps_BC) * share_BC, axis=1)
        above_BC = nd.relu(gaps_BC + self._loss.margin / self._loss.temperature)
        hinge_B = nd.sum(above_BC * share_BC, axis=1)
        if kind == "hinge":
            return hinge_B
        return nd.where(sign_B1[:, 0] > 0, self._warp(above_BC, counts_BC, count_B), hinge_B)

    def _warp(self, above_BC: Any, counts_BC: Any, count_B: IntArray) -> Any:
        """Compute the largest violation of each example times the log of its rank, estimated from the violations."""
        nd = self._mx.nd
        counted_BC = above_BC * counts_BC
        violators_B = nd.sum(counted_BC > 0, axis=1)
        ranks_B = self._array(((self._model.item.rows - 1) / np.maximum(count_B, 1)).astype(np.float32))
        # Picked by index: the gradient of a maximum would go to each of several equal values.
        largest_B = nd.pick(counted_BC, nd.BlockGrad(nd.argmax(counted_BC, axis=1)), axis=1)
        return nd.BlockGrad(nd.log1p(violators_B * ranks_B)) * largest_B

    def _ccl(self, positive_B1: Any, scores_BC: Any, share_BC: Any, sign_B1: Any) -> Any:
        nd = self._mx.nd
        margin = self._loss.margin / self._loss.temperature
        pushed_B = nd.sum(nd.relu(scores_BC - margin) * share_BC, axis=1) * self._loss.negative_weight
        positive_loss_B = 1.0 / self._loss.temperature - positive_B1[:, 0] + pushed_B
        return nd.where(sign_B1[:, 0] > 0, positive_loss_B, nd.relu(positive_B1[:, 0] - margin))

    def _softmax(self, positive_B1: Any, scores_BC: Any, counts_BC: Any, sign_B1: Any) -> Any:
        """Compute −log p = −log σ(s − log Σ_j e^{s_j}), or with the other sign −log(1 − p).

        Written out, since MKLDNN's log_softmax crashes on some shapes when its input comes from an MKLDNN operator.
        """
        nd = self._mx.nd
        counted_BC = nd.where(counts_BC, scores_BC, nd.full(scores_BC.shape, _EXCLUDED_SCORE, self._context))
        top_B1 = nd.BlockGrad(nd.max(counted_BC, axis=1, keepdims=True))
        powers_BC = nd.exp(nd.broadcast_sub(counted_BC, top_B1))
        others_B1 = top_B1 + nd.log(nd.sum(powers_BC, axis=1, keepdims=True))
        has_negative_B1 = top_B1 > _EXCLUDED_SCORE
        return (has_negative_B1 * self._softplus(sign_B1 * (others_B1 - positive_B1)))[:, 0]

    def _softplus(self, x: Any) -> Any:
        """Compute −log σ(−x) without overflow. (x + |x|)/2 is its linear part, with the derivative 1/2 at 0."""
        nd = self._mx.nd
        return 0.5 * (x + nd.abs(x)) + nd.log1p(nd.exp(-nd.abs(x)))
