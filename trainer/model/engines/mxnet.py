"""Gradients by MXNet's autograd, on CPUs and on the GPUs that its package has code for (docs/distributed.md).

    engine = MXNetEngine(model, LossSpec("softmax"), NegativesConfig(kind="shared"), "gpu:0")
    loss, gradients = engine.gradients(batch, vectors)

- ``MXNetDevice`` copies from and to pinned memory while a GPU computes. Pinned memory takes long to allocate, so each
  array of a step has a buffer, which the next step uses again.
- MXNet starts whatever is queued and has its inputs, so the arrays of all tiles of a computation might be in memory at
  once: a tile is queued once the one before has been computed.
- ``MXNetGradients`` differentiates the losses of a tile of examples by the vectors of uses, and adds the gradients up.
  At the end it differentiates the vectors of uses by those of rows, once. Its input holds the active rows only, so
  dense gradients have their size, whereas ``Embedding(sparse_grad=True)`` scans a complete table in every step.
- ``ScoreLoss`` computes losses from scores in MXNet's operators; ``trainer/model/losses.py`` has the formulas.

Shapes: A active rows, B examples, T examples or queries of a tile, N uses of items, C negatives
of an example, U the item and the negatives of an example, D columns. B1 is a column, (B, 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.errors import InputError
from crossfade.kvstore.mxnet.imports import import_mxnet
from crossfade.trainer.config.sections import NegativesConfig
from crossfade.trainer.model.batches import Batch
from crossfade.trainer.model.engines.device_engine import DeviceEngine, Pool, Scores, split
from crossfade.trainer.model.losses import LossSpec
from crossfade.trainer.model.spec import ModelSpec

Array = Any
"""An NDArray of MXNet."""


class MXNetEngine(DeviceEngine):
    """Computes gradients by autograd."""

    name = "mxnet"

    def __init__(self, model: ModelSpec, loss: LossSpec, negatives: NegativesConfig, device: str = "cpu") -> None:
        """Prepare to compute on ``device``: ``cpu``, or a GPU with its number, ``gpu:1``.

        Raises:
            MissingExtraError: MXNet is not installed.
            InputError: MXNet does not find the GPU.
        """
        super().__init__(model, loss, negatives, device)
        self._mx = import_mxnet()
        self._opened = _open_device(self._mx, device)
        self._gradients = MXNetGradients(self._mx, model, loss)

    def _compute(self, batch: Batch, query_AD: FloatArray, item_AD: FloatArray) -> tuple[float, FloatArray, FloatArray]:
        arrays = BatchArrays.upload(self._opened, batch, query_AD, item_AD)
        results = self._gradients.compute(self._pools(batch), arrays, shares_scores=self._shares_scores(batch))
        downloaded = [self._opened.download(f"result {number}", result) for number, result in enumerate(results)]
        loss_B, by_query, by_item = (array.asnumpy() for array in downloaded)
        return float(loss_B.sum(dtype=np.float64)), by_query, by_item

    def gpu_memory(self) -> tuple[int, int] | None:
        """Return the used and the total bytes of the GPU, None on the CPU. Any thread may call it."""
        if not self._opened.is_gpu:
            return None
        free, total = self._mx.context.gpu_memory_info(self._opened.context.device_id)
        return total - free, total


def _open_device(mx: Any, name: str) -> MXNetDevice:
    if name == "cpu":
        return MXNetDevice(mx, mx.cpu(), mx.cpu())
    number, found = int(name.removeprefix("gpu:")), mx.context.num_gpus()
    if number >= found:
        raise InputError(f"train.device is {name}, but the number of GPUs that MXNet finds here is {found}")
    return MXNetDevice(mx, mx.gpu(number), mx.cpu_pinned(number))


class MXNetDevice:
    """A context, and buffers in host memory."""

    def __init__(self, mx: Any, context: Any, host: Any) -> None:
        """Prepare to compute in ``context``, and to copy from and to the context ``host``, which may be the same."""
        self._mx = mx
        self.context = context
        self._host = host
        self._buffers: dict[str, Any] = {}

    @property
    def is_gpu(self) -> bool:
        """Whether the device has memory other than the host's."""
        return bool(self._host != self.context)

    def upload(self, name: str, values: FloatArray | IntArray) -> Any:
        """Queue the copy of float32 or int32 ``values``, which may be changed afterwards, to the device.

        The result of the last upload of this ``name`` must not be in use any more.
        """
        buffer = self._buffer(name, values.shape, values.dtype)
        buffer[:] = values
        return buffer.as_in_context(self.context)

    def download(self, name: str, array: Any) -> Any:
        """Queue the copy of ``array`` to the host, and return an array there, valid until the next one of this name."""
        return array.copyto(self._buffer(name, array.shape, array.dtype)) if self.is_gpu else array

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return the buffer of ``name`` with ``shape``. It grows by more than is needed, as sizes vary by step."""
        size = math.prod(shape)
        if name not in self._buffers or len(self._buffers[name]) < size:
            self._buffers[name] = self._mx.nd.empty(size + size // 4, ctx=self._host, dtype=dtype)
        return self._buffers[name][:size].reshape(shape)


Results = tuple[Array, Array, Array]

_MAX_TILE = 1 << 25
"""Scores of a tile at most, 128 MiB, as on a GPU; softmax takes 6 arrays of this size at once, bpr 24."""
_CPU_TILE, _MIN_CPU_ROWS = 1 << 20, 256
"""Scores of a tile on a CPU, 4 MiB, which stay in its cache; and examples at least, since each tile adds to the
gradients of all its negatives."""


@dataclass(frozen=True)
class BatchArrays:
    """The vectors of a batch's active rows, and its indexes and weights, on a device: float32 and int32.

    Attributes:
        query_AD: the vectors of its queries.
        item_AD: the vectors of its items.
        query_index_B: the query of each example.
        item_index_N: the item of each use.
        group_B: the query of each example, whose other items are not its negatives.
        weight_B: weights, divided by the examples of the step over all workers.
        weight_A: the sum of the weights of each query's examples.
        log_q_N: as in ``Batch``; None: nothing is subtracted.
    """

    query_AD: Array
    item_AD: Array
    query_index_B: Array
    item_index_N: Array
    group_B: Array
    weight_B: Array
    weight_A: Array
    log_q_N: Array | None

    @staticmethod
    def upload(device: MXNetDevice, batch: Batch, query_AD: FloatArray, item_AD: FloatArray) -> BatchArrays:
        """Queue the copies to ``device``."""
        weight_B, group_B = batch.normalized_weights(), batch.query_groups.index_N
        weight_A = np.bincount(batch.query.index_N, weight_B, len(query_AD))
        return BatchArrays(
            query_AD=device.upload("query", query_AD),
            item_AD=device.upload("item", item_AD),
            query_index_B=device.upload("query_index", batch.query.index_N.astype(np.int32, copy=False)),
            item_index_N=device.upload("item_index", batch.item.index_N.astype(np.int32, copy=False)),
            group_B=device.upload("group", group_B.astype(np.int32, copy=False)),
            weight_B=device.upload("weight", weight_B),
            weight_A=device.upload("query_weight", weight_A.astype(np.float32)),
            log_q_N=device.upload("log_q", batch.log_q_N) if len(batch.log_q_N) else None,
        )


class MXNetGradients:
    """Computes losses and gradients of batches."""

    def __init__(self, mx: Any, model: ModelSpec, loss: LossSpec) -> None:
        """Prepare for ``model`` and ``loss``."""
        self._nd = mx.nd
        self._autograd = mx.autograd
        self._score = model.score
        self._loss = ScoreLoss(mx, loss, model.item.rows)

    def compute(self, pools: list[Pool], arrays: BatchArrays, *, shares_scores: bool) -> Results:
        """Queue the computation of losses, whose sum is the loss of the batch, and of the gradients of both sides.

        Args:
            pools: the examples by the negatives that they share; none if negatives are drawn per example.
            arrays: the arrays of the batch, on the device.
            shares_scores: whether the examples of a query have the same scores: all items are their negatives, the loss
                is softmax, and they differ in nothing else.
        """
        for rows in (arrays.query_AD, arrays.item_AD):
            rows.attach_grad()
        if shares_scores:
            losses = self._with_shared_scores(arrays)
        elif pools:
            losses = self._with_pools(pools, arrays)
        else:
            losses = self._per_example(arrays)
        return self._joined(losses), arrays.query_AD.grad, arrays.item_AD.grad

    def _compared(self, rows_AD: Array) -> Array:
        """Return the vectors that are compared: a new array, whose gradient leads to that of ``rows_AD``."""
        if self._score.normalized:
            return self._nd.L2Normalization(rows_AD, eps=1e-24, mode="instance")
        return self._nd.identity(rows_AD)

    def _squares(self, vectors: Array) -> Array:
        """Return what the squared norms of vectors subtract from their scores."""
        return self._score.norm_scale * self._nd.sum(vectors * vectors, axis=-1)

    def _losses(self, weight_T: Array, scores: Scores) -> Array:
        """Return the losses of examples, times the size of their weights."""
        nd = self._nd
        sign_T1 = nd.reshape(1 - 2 * (weight_T < 0), (-1, 1))
        loss_T = nd.abs(weight_T) * self._loss.losses(scores, sign_T1)
        return loss_T if self._loss.top_k is None else loss_T * self._loss.weights_at_top(scores, sign_T1)

    def _tiles(self, rows: Array, part: slice, scores: int) -> list[slice]:
        """Split ``part`` of ``rows``, each of which has ``scores``."""
        size = max(_MAX_TILE // scores, 1)
        if rows.context.device_type == "cpu":
            size = min(size, max(_CPU_TILE // scores, _MIN_CPU_ROWS))
        return split(part, size)

    def _joined(self, arrays: list[Array]) -> Array:
        return self._nd.concat(*arrays, dim=0) if len(arrays) > 1 else arrays[0]

    # ---- pools

    def _with_pools(self, pools: list[Pool], arrays: BatchArrays) -> list[Array]:
        nd, examples = self._nd, arrays.weight_B.size
        with self._autograd.record():
            query_BD = nd.take(self._compared(arrays.query_AD), arrays.query_index_B)
            item_ND = nd.take(self._compared(arrays.item_AD), arrays.item_index_N)
        vectors, gradients = [query_BD.detach(), item_ND.detach()], [nd.zeros_like(query_BD), nd.zeros_like(item_ND)]
        losses: list[Array] = []
        for pool in pools:
            negatives = [slice(examples, len(item_ND))] if len(item_ND) > examples else []
            negatives += [pool.in_batch] if pool.in_batch.stop > pool.in_batch.start else []
            count = sum(used.stop - used.start for used in negatives)
            for tile in self._tiles(query_BD, pool.examples, count):
                if losses:
                    losses[-1].wait_to_read()
                excluded_TC = self._excluded(arrays, pool, tile, negatives)
                places = [(0, tile), *((1, used) for used in (tile, *negatives))]
                variables = [vectors[side][used] for side, used in places]
                self._autograd.mark_variables(variables, [gradients[side][used] for side, used in places], "add")
                with self._autograd.record():
                    scores = self._pool_scores(arrays, variables, excluded_TC, negatives)
                    loss_T = self._losses(arrays.weight_B[tile], scores)
                loss_T.backward()
                losses.append(loss_T.detach())
        self._autograd.backward([query_BD, item_ND], gradients)
        return losses

    def _pool_scores(
        self, arrays: BatchArrays, vectors: list[Array], excluded_TC: Array, negatives: list[slice]
    ) -> Scores:
        """Return scores by the ``vectors`` of examples' queries, of their items, and of the uses ``negatives``."""
        nd, (query_TD, item_TD, *pool) = self._nd, vectors
        scaled_TD, pool_CD = self._score.dot_scale * query_TD, self._joined(pool)
        positive_T1 = nd.sum(scaled_TD * item_TD, axis=1, keepdims=True)
        negative_TC = nd.dot(scaled_TD, pool_CD, transpose_b=True)
        if self._score.norm_scale:
            square_T1, square_1C = self._squares(query_TD).reshape((-1, 1)), self._squares(pool_CD).reshape((1, -1))
            positive_T1 = positive_T1 - square_T1 - self._squares(item_TD).reshape((-1, 1))
            negative_TC = nd.broadcast_sub(nd.broadcast_sub(negative_TC, square_T1), square_1C)
        if arrays.log_q_N is not None:
            log_q_1C = self._joined([arrays.log_q_N[used] for used in negatives]).reshape((1, -1))
            negative_TC = nd.broadcast_sub(negative_TC, log_q_1C)
        return Scores(positive_T1, negative_TC, excluded_TC)

    def _excluded(self, arrays: BatchArrays, pool: Pool, tile: slice, negatives: list[slice]) -> Array:
        """Return 1 for negatives that do not count: an example's own item, and other items of its query in the batch.

        Args:
            arrays: the batch's arrays.
            pool: the pool.
            tile: some of its examples.
            negatives: its negatives, by use, the in-batch ones last.
        """
        nd, item_index_N, group_B = self._nd, arrays.item_index_N, arrays.group_B
        index_C = self._joined([item_index_N[used] for used in negatives])
        excluded_TC = nd.broadcast_equal(item_index_N[tile].reshape((-1, 1)), index_C.reshape((1, -1)))
        if pool.in_batch in negatives:
            drawn = index_C.size - (pool.in_batch.stop - pool.in_batch.start)
            no_query = [nd.full(drawn, -1, index_C.context, "int32")] if drawn else []
            query_C = self._joined([*no_query, group_B[pool.in_batch]])
            same_query_TC = nd.broadcast_equal(group_B[tile].reshape((-1, 1)), query_C.reshape((1, -1)))
            excluded_TC = nd.maximum(excluded_TC, same_query_TC)
        return nd.cast(excluded_TC, "float32")

    # ---- all items are negatives, and a query is scored once

    def _with_shared_scores(self, arrays: BatchArrays) -> list[Array]:
        """Compute −Σ_b w_b (s_b − log Σ_j e^{s_j}), whose sum over all items j includes the example's own.

        The squared norm of the query, a term of all its scores, is left out.
        """
        nd, scale, has_norms = self._nd, self._score.dot_scale, bool(self._score.norm_scale)
        weight_B, weight_A = arrays.weight_B, arrays.weight_A
        if self._loss.top_k is not None:
            weight_B, weight_A = self._weights_at_top(arrays, self._loss.top_k)
        with self._autograd.record():
            query_AD, item_AD = self._compared(arrays.query_AD), self._compared(arrays.item_AD)
            item_BD = nd.take(item_AD, arrays.item_index_N[: arrays.weight_B.size])
            own_B = scale * nd.sum(nd.take(query_AD, arrays.query_index_B) * item_BD, axis=1)
            own_B = own_B - self._squares(item_BD) if has_norms else own_B
            own_loss_B = -weight_B * own_B
        query_gradient_AD, item_gradient_AD = nd.zeros_like(query_AD), nd.zeros_like(item_AD)
        queries_AD, items_AD = query_AD.detach(), item_AD.detach()
        losses: list[Array] = []
        for tile in self._tiles(query_AD, slice(0, len(query_AD)), len(item_AD)):
            if losses:
                losses[-1].wait_to_read()
            query_TD = queries_AD[tile]
            self._autograd.mark_variables([query_TD, items_AD], [query_gradient_AD[tile], item_gradient_AD], "add")
            with self._autograd.record():
                loss_T = weight_A[tile] * self._loss.log_sum_exp(self._item_scores(query_TD, items_AD))[:, 0]
            loss_T.backward()
            losses.append(loss_T.detach())
        self._autograd.backward([query_AD, item_AD, own_loss_B], [query_gradient_AD, item_gradient_AD, None])
        return [*losses, own_loss_B]

    def _item_scores(self, query_TD: Array, items_AD: Array) -> Array:
        """Return the scores of queries with all items, but for the queries' squared norms."""
        score_TA = self._nd.dot(self._score.dot_scale * query_TD, items_AD, transpose_b=True)
        if self._score.norm_scale:
            score_TA = self._nd.broadcast_sub(score_TA, self._squares(items_AD).reshape((1, -1)))
        return score_TA

    def _weights_at_top(self, arrays: BatchArrays, k: int) -> tuple[Array, Array]:
        """Return the weights of examples, and their sums by query, by the examples' places among all items."""
        nd = self._nd
        tops: list[Array] = []
        query_AD, item_AD = self._compared(arrays.query_AD), self._compared(arrays.item_AD)
        for tile in self._tiles(query_AD, slice(0, len(query_AD)), len(item_AD)):
            if tops:
                tops[-1].wait_to_read()
            scores_TA = self._item_scores(query_AD[tile], item_AD)
            tops.append(nd.topk(scores_TA, k=min(k, len(item_AD)), axis=1, ret_typ="value")[:, -1])
        item_BD = nd.take(item_AD, arrays.item_index_N[: arrays.weight_B.size])
        own_B = self._score.dot_scale * nd.sum(nd.take(query_AD, arrays.query_index_B) * item_BD, axis=1)
        own_B = own_B - self._squares(item_BD) if self._score.norm_scale else own_B
        above_B = own_B - nd.take(self._joined(tops), arrays.query_index_B)
        weight_B = arrays.weight_B * self._loss.weight_at_top(above_B)
        index_B = arrays.query_index_B.asnumpy()
        weight_A = np.bincount(index_B, weight_B.asnumpy(), len(query_AD)).astype(np.float32)
        return weight_B, nd.array(weight_A, ctx=weight_B.context)

    # ---- negatives per example

    def _per_example(self, arrays: BatchArrays) -> list[Array]:
        nd, examples = self._nd, arrays.weight_B.size
        index_N, log_q_N = arrays.item_index_N, arrays.log_q_N
        index_BU = nd.concat(index_N[:examples].reshape((-1, 1)), index_N[examples:].reshape((examples, -1)), dim=1)
        with self._autograd.record():
            query_BD = nd.take(self._compared(arrays.query_AD), arrays.query_index_B)
            item_AD = self._compared(arrays.item_AD)
        query_gradient_BD, item_gradient_AD = nd.zeros_like(query_BD), nd.zeros_like(item_AD)
        queries_BD, items_AD = query_BD.detach(), item_AD.detach()
        losses: list[Array] = []
        for tile in self._tiles(query_BD, slice(0, examples), index_BU.shape[1] * item_AD.shape[1]):
            if losses:
                losses[-1].wait_to_read()
            query_TD, index_TU = queries_BD[tile], index_BU[tile]
            excluded_TC = nd.cast(nd.broadcast_equal(index_TU[:, :1], index_TU[:, 1:]), "float32")
            self._autograd.mark_variables([query_TD, items_AD], [query_gradient_BD[tile], item_gradient_AD], "add")
            with self._autograd.record():
                score_TU = self._use_scores(query_TD, nd.take(items_AD, index_TU))
                negative_TC = nd.slice_axis(score_TU, axis=1, begin=1, end=None)
                if log_q_N is not None:
                    negative_TC = negative_TC - log_q_N[examples:].reshape((examples, -1))[tile]
                scores = Scores(nd.slice_axis(score_TU, axis=1, begin=0, end=1), negative_TC, excluded_TC)
                loss_T = self._losses(arrays.weight_B[tile], scores)
            loss_T.backward()
            losses.append(loss_T.detach())
        self._autograd.backward([query_BD, item_AD], [query_gradient_BD, item_gradient_AD])
        return losses

    def _use_scores(self, query_TD: Array, item_TUD: Array) -> Array:
        nd = self._nd
        score_TU = nd.sum(nd.broadcast_mul(nd.expand_dims(self._score.dot_scale * query_TD, 1), item_TUD), axis=2)
        if self._score.norm_scale:
            square_T1 = self._squares(query_TD).reshape((-1, 1))
            score_TU = nd.broadcast_sub(score_TU, square_T1) - self._squares(item_TUD)
        return score_TU


_EXCLUDED_SCORE = -1e30
"""A score whose exponential is 0 relative to that of any other score."""


class ScoreLoss:
    """Computes the losses of examples from their scores."""

    def __init__(self, mx: Any, spec: LossSpec, items: int) -> None:
        """Prepare for ``spec`` and a table of ``items``."""
        self._nd = mx.nd
        self._autograd = mx.autograd
        self._spec = spec
        self._items = items
        self.top_k = spec.top_k

    def losses(self, scores: Scores, sign_B1: Array) -> Array:
        """Return the loss of each example, (B,), or the reversed loss where its sign is -1."""
        nd, kind = self._nd, self._spec.kind
        if kind == "softmax":
            return self._softmax(scores, sign_B1)
        counts_BC, count = 1 - scores.excluded_BC, scores.negative_BC.shape[1]
        if kind == "logistic":
            pushed_B1 = nd.sum(self._softplus(scores.negative_BC) * counts_BC, axis=1, keepdims=True) / count
            return (self._softplus(-sign_B1 * scores.positive) + (sign_B1 > 0) * pushed_B1)[:, 0]
        gaps_BC = nd.broadcast_mul(sign_B1, nd.broadcast_sub(scores.negative_BC, scores.positive))
        if kind == "bpr":
            return nd.sum(self._softplus(gaps_BC) * counts_BC, axis=1) / count
        violation_BC = nd.relu(gaps_BC + self._spec.margin / self._spec.temperature) * counts_BC
        ranks_B = nd.sum(violation_BC > 0, axis=1) * ((self._items - 1) / count)
        # Picked by place: the gradient of a maximum would go to each of several equal values.
        warp_B = nd.log1p(ranks_B) * nd.pick(violation_BC, nd.argmax(violation_BC, axis=1), axis=1)
        return nd.where(sign_B1[:, 0] > 0, warp_B, nd.sum(violation_BC, axis=1) / count)

    def weight_at_top(self, above: Array) -> Array:
        """Return the factors of the weights of examples whose items' scores are ``above`` the K-th highest."""
        return 2 * self._nd.sigmoid(above * self._spec.sharpness)

    def weights_at_top(self, scores: Scores, sign_B1: Array) -> Array:
        """Return the factor of the weight of each example, (B,), or 1 where its sign is -1: constants."""
        assert self.top_k is not None
        nd, count = self._nd, min(self.top_k, scores.negative_BC.shape[1])
        with self._autograd.pause():
            # Of all items, which the negatives are; the example's own is excluded from them.
            others_BC = scores.negative_BC + _EXCLUDED_SCORE * scores.excluded_BC
            all_BI = nd.concat(scores.positive, others_BC, dim=1)
            kth_B1 = nd.topk(all_BI, k=count, axis=1, ret_typ="value")[:, -1].reshape((-1, 1))
            factor_B1 = self.weight_at_top(scores.positive - kth_B1)
            return nd.where(sign_B1 > 0, factor_B1, nd.ones_like(factor_B1))[:, 0]

    def log_sum_exp(self, score_BC: Array) -> Array:
        """Return log Σ_j e^{s_j} of each row of scores, (B, 1), without overflow.

        Written out, since MKLDNN's log_softmax crashes on some shapes when its input comes from an MKLDNN operator.
        """
        nd = self._nd
        with self._autograd.pause():
            top_B1 = nd.max(score_BC, axis=1, keepdims=True)
        return top_B1 + nd.log(nd.sum(nd.exp(nd.broadcast_sub(score_BC, top_B1)), axis=1, keepdims=True))

    def _softmax(self, scores: Scores, sign_B1: Array) -> Array:
        """Compute −log p = −log σ(s − log Σ_j e^{s_j}), or with the other sign −log(1 − p)."""
        others_B1 = self.log_sum_exp(scores.negative_BC + _EXCLUDED_SCORE * scores.excluded_BC)
        has_negative_B1 = others_B1 > _EXCLUDED_SCORE / 2
        return (has_negative_B1 * self._softplus(sign_B1 * (others_B1 - scores.positive)))[:, 0]

    def _softplus(self, x: Array) -> Array:
        """Compute log(1 + eˣ) without overflow. (x + |x|)/2 is its linear part, with the derivative 1/2 at 0."""
        nd = self._nd
        return 0.5 * (x + nd.abs(x)) + nd.log1p(nd.exp(-nd.abs(x)))
