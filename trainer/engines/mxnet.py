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
from kvstore.mxnet_import import import_mxnet
from trainer.data.batches import Batch
from trainer.job import LossKind, Negatives
from trainer.model import Model

_OUT_OF_THE_SUM = -1e30
"""A score whose exponential is 0 beside that of any score."""


class MXNetEngine:
    """Gradients by autograd; see ``trainer/losses.py`` for the formulas."""

    def __init__(self, model: Model, loss: LossKind, negatives: Negatives, device: Literal["cpu", "gpu"]) -> None:
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
        self._shared = negatives.kind == "shared"

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
        if self._model.score.normalised:
            query_AD, item_AD = (nd.L2Normalization(rows, eps=1e-24, mode="instance") for rows in (query_AD, item_AD))
        query_BD = nd.take(query_AD, self._array(batch.query.index_N, np.int32))
        item_BD = nd.take(item_AD, self._array(batch.item_index_B, np.int32))
        negatives = batch.negative_index_N if self._shared else batch.negative_index_N.reshape(len(batch), -1)
        pool = nd.take(item_AD, self._array(negatives, np.int32))
        own_B1 = self._score(query_BD, item_BD, nd.sum(query_BD * item_BD, axis=1, keepdims=True))
        if self._shared:
            products_BC = nd.dot(query_BD, pool, transpose_b=True)
        else:
            products_BC = nd.sum(nd.expand_dims(query_BD, 1) * pool, axis=2)
        scores_BC = self._score(query_BD, pool, products_BC)
        own_item_BC = self._array((negatives == batch.item_index_B[:, None]).astype(np.float32))
        sign_B1 = self._array(np.where(batch.weight_B < 0, np.float32(-1), np.float32(1))[:, None])
        cost_B = self._array(np.abs(batch.weight_B) / np.float32(batch.global_size))
        return nd.sum(cost_B * self._example_losses(own_B1, scores_BC, own_item_BC, sign_B1))

    def _score(self, query_BD: Any, items: Any, products: Any) -> Any:
        nd, score = self._mx.nd, self._model.score
        if score.square == 0:
            return score.product * products
        query_square_B1 = nd.sum(query_BD * query_BD, axis=1, keepdims=True)
        item_square = nd.sum(items * items, axis=-1)
        is_own = items.shape == query_BD.shape and products.shape[1] == 1
        item_square = nd.reshape(item_square, (-1, 1)) if is_own else nd.reshape(item_square, (-1, products.shape[1]))
        return nd.broadcast_sub(score.product * products, score.square * nd.broadcast_add(query_square_B1, item_square))

    def _example_losses(self, own_B1: Any, scores_BC: Any, own_item_BC: Any, sign_B1: Any) -> Any:
        """The loss of each example, or of the opposite statement where its sign is −1."""
        nd = self._mx.nd
        if self._loss == "softmax":
            # −log p is −log σ(s − log Σ_j e^{s_j}), and the opposite −log(1 − p) is that of the other sign.
            # By hand: MKLDNN's log_softmax crashes on some shapes when its input comes from another MKLDNN operator.
            counted_BC = nd.where(own_item_BC, nd.full(scores_BC.shape, _OUT_OF_THE_SUM, self._context), scores_BC)
            top_B1 = nd.BlockGrad(nd.max(counted_BC, axis=1, keepdims=True))
            powers_BC = nd.exp(nd.broadcast_sub(counted_BC, top_B1))
            others_B1 = top_B1 + nd.log(nd.sum(powers_BC, axis=1, keepdims=True))
            any_left_B1 = top_B1 > _OUT_OF_THE_SUM
            return (any_left_B1 * self._softplus(sign_B1 * (others_B1 - own_B1)))[:, 0]
        counts_BC = 1 - own_item_BC
        if self._loss == "bpr":
            losses_BC = self._softplus(nd.broadcast_mul(sign_B1, nd.broadcast_sub(scores_BC, own_B1)))
            return nd.mean(losses_BC * counts_BC, axis=1)
        losses_BC = self._softplus(scores_BC) * nd.broadcast_mul(sign_B1 > 0, counts_BC)
        return self._softplus(-sign_B1 * own_B1)[:, 0] + nd.mean(losses_BC, axis=1)

    def _softplus(self, x: Any) -> Any:
        """−log σ(−x), without overflow. Half of x + |x| is its larger part, and has the derivative 1/2 at 0."""
        nd = self._mx.nd
        return 0.5 * (x + nd.abs(x)) + nd.log1p(nd.exp(-nd.abs(x)))
