"""Gradients of the vectors of a batch's active rows by MXNet's autograd, on one device.

    gradients = MXNetGradients(mx, model, loss, negatives)
    arrays = PartArrays.upload(device, part, query_AD, item_AD)
    [(losses, query_gradient_AD, item_gradient_AD)] = in_turns([gradients.compute(part, arrays, shares_scores=False)])

The input holds the active rows only, so autograd's dense gradients have their size, whereas
``Embedding(sparse_grad=True)`` scans a complete table in every step.

Losses are differentiated by the vectors of uses in tiles of some examples, whose gradients are added up; then the
vectors of uses by those of rows, once.

Shapes: A active rows, B examples, T examples or queries of a tile, P examples whose items are uses, N uses of items, C
negatives of an example, U the item and the negatives of an example, D columns. B1 is a column, (B, 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from crossfade.base.arrays import FloatArray
from crossfade.trainer.config.model_sections import NegativesConfig
from crossfade.trainer.model.engines.mxnet_device import MXNetDevice, Queued
from crossfade.trainer.model.engines.mxnet_losses import ScoreLoss, Scores
from crossfade.trainer.model.engines.parts import BatchPart, Pool
from crossfade.trainer.model.losses import LossSpec
from crossfade.trainer.model.spec import ModelSpec

Array = Any
Results = tuple[Array, Array, Array]

_MAX_TILE = 1 << 25
"""Scores of a tile at most, 128 MiB, as on a GPU; softmax takes 6 arrays of this size at once, bpr 24."""
_CPU_TILE, _MIN_CPU_ROWS = 1 << 20, 256
"""Scores of a tile on a CPU, 4 MiB, which stay in its cache; and examples at least, since each tile adds to the
gradients of all its negatives."""


@dataclass(frozen=True)
class PartArrays:
    """The vectors of the rows of a part, and its indexes and weights, on a device: float32 and int32.

    Attributes:
        query_AD: the vectors of its queries.
        item_AD: the vectors of its items.
        query_index_B: the query of each example.
        item_index_N: the item of each use.
        group_P: as in ``BatchPart``.
        weight_B: as in ``BatchPart``.
        weight_A: the sum of the weights of each query's examples.
        log_q_N: as in ``BatchPart``; None: nothing is subtracted.
    """

    query_AD: Array
    item_AD: Array
    query_index_B: Array
    item_index_N: Array
    group_P: Array
    weight_B: Array
    weight_A: Array
    log_q_N: Array | None

    @staticmethod
    def upload(device: MXNetDevice, part: BatchPart, query_AD: FloatArray, item_AD: FloatArray) -> PartArrays:
        """Queue the copies to ``device``. The vectors are those of the part's rows."""
        weight_A = np.bincount(part.query.index_N, part.weight_B, len(query_AD))
        return PartArrays(
            query_AD=device.upload("query", query_AD),
            item_AD=device.upload("item", item_AD),
            query_index_B=device.upload("query_index", part.query.index_N.astype(np.int32, copy=False)),
            item_index_N=device.upload("item_index", part.item.index_N.astype(np.int32, copy=False)),
            group_P=device.upload("group", part.group_P.astype(np.int32, copy=False)),
            weight_B=device.upload("weight", part.weight_B),
            weight_A=device.upload("query_weight", weight_A.astype(np.float32)),
            log_q_N=device.upload("log_q", part.log_q_N) if len(part.log_q_N) else None,
        )


class MXNetGradients:
    """Computes losses and gradients of parts of batches."""

    def __init__(self, mx: Any, model: ModelSpec, loss: LossSpec, negatives: NegativesConfig) -> None:
        """Prepare for ``model``, ``loss`` and ``negatives``."""
        self._nd = mx.nd
        self._autograd = mx.autograd
        self._score = model.score
        self._loss = ScoreLoss(mx, loss, negatives.num_hard, model.item.rows)

    def compute(self, part: BatchPart, arrays: PartArrays, *, shares_scores: bool) -> Queued[Results]:
        """Queue the computation of losses, whose sum is that of the part, and of the gradients of both sides' vectors.

        Args:
            part: the examples.
            arrays: its arrays, on the device.
            shares_scores: whether the examples of a query have the same scores: all items are their negatives, the loss
                is softmax, and they differ in nothing else.
        """
        for rows in (arrays.query_AD, arrays.item_AD):
            rows.attach_grad()
        if shares_scores:
            losses = yield from self._with_shared_scores(arrays)
        elif part.pools:
            losses = yield from self._with_pools(part, arrays)
        else:
            losses = yield from self._per_example(arrays)
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
        return nd.abs(weight_T) * self._loss.losses(scores, sign_T1)

    def _tiles(self, rows: Array, part: slice, scores: int) -> list[slice]:
        """Split ``part`` of ``rows``, each of which has ``scores``."""
        size = max(_MAX_TILE // scores, 1)
        if rows.context.device_type == "cpu":
            size = min(size, max(_CPU_TILE // scores, _MIN_CPU_ROWS))
        return [slice(start, min(start + size, part.stop)) for start in range(part.start, part.stop, size)]

    def _joined(self, arrays: list[Array]) -> Array:
        return self._nd.concat(*arrays, dim=0) if len(arrays) > 1 else arrays[0]

    # ---- pools

    def _with_pools(self, part: BatchPart, arrays: PartArrays) -> Queued[list[Array]]:
        nd = self._nd
        with self._autograd.record():
            query_BD = nd.take(self._compared(arrays.query_AD), arrays.query_index_B)
            item_ND = nd.take(self._compared(arrays.item_AD), arrays.item_index_N)
        vectors, gradients = [query_BD.detach(), item_ND.detach()], [nd.zeros_like(query_BD), nd.zeros_like(item_ND)]
        losses: list[Array] = []
        for pool in part.pools:
            negatives = [slice(part.positives, len(item_ND))] if part.negatives else []
            negatives += [pool.in_batch] if pool.in_batch.stop > pool.in_batch.start else []
            count = sum(used.stop - used.start for used in negatives)
            for tile in self._tiles(query_BD, pool.examples, count):
                if losses:
                    yield losses[-1]
                own = slice(tile.start + part.own.start, tile.stop + part.own.start)
                excluded_TC = self._excluded(arrays, pool, own, negatives)
                places = [(0, tile), *((1, used) for used in (own, *negatives))]
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
        self, arrays: PartArrays, vectors: list[Array], excluded_TC: Array, negatives: list[slice]
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
            log_q_C = self._joined([arrays.log_q_N[used] for used in negatives])
            negative_TC = nd.broadcast_sub(negative_TC, log_q_C.reshape((1, -1)))
        return Scores(positive_T1, negative_TC, excluded_TC)

    def _excluded(self, arrays: PartArrays, pool: Pool, own: slice, negatives: list[slice]) -> Array:
        """Return 1 for negatives that do not count: an example's own item, and other items of its query in the batch.

        Args:
            arrays: the part's arrays.
            pool: the pool.
            own: the items of some of its examples, by use.
            negatives: its negatives, by use, the in-batch ones last.
        """
        nd, item_index_N, group_P = self._nd, arrays.item_index_N, arrays.group_P
        index_C = self._joined([item_index_N[used] for used in negatives])
        excluded_TC = nd.broadcast_equal(item_index_N[own].reshape((-1, 1)), index_C.reshape((1, -1)))
        if pool.in_batch in negatives:
            drawn = index_C.size - (pool.in_batch.stop - pool.in_batch.start)
            no_query = [nd.full(drawn, -1, index_C.context, "int32")] if drawn else []
            query_C = self._joined([*no_query, group_P[pool.in_batch]])
            same_query_TC = nd.broadcast_equal(group_P[own].reshape((-1, 1)), query_C.reshape((1, -1)))
            excluded_TC = nd.maximum(excluded_TC, same_query_TC)
        return nd.cast(excluded_TC, "float32")

    # ---- all items are negatives, and a query is scored once

    def _with_shared_scores(self, arrays: PartArrays) -> Queued[list[Array]]:
        """Compute −Σ_b w_b (s_b − log Σ_j e^{s_j}), whose sum over all items j includes the example's own.

        The squared norm of the query, a term of all its scores, is left out.
        """
        nd, scale, has_norms = self._nd, self._score.dot_scale, bool(self._score.norm_scale)
        with self._autograd.record():
            query_AD, item_AD = self._compared(arrays.query_AD), self._compared(arrays.item_AD)
            item_BD = nd.take(item_AD, arrays.item_index_N[: arrays.weight_B.size])
            own_B = scale * nd.sum(nd.take(query_AD, arrays.query_index_B) * item_BD, axis=1)
            own_B = own_B - self._squares(item_BD) if has_norms else own_B
            own_loss_B = -arrays.weight_B * own_B
        query_gradient_AD, item_gradient_AD = nd.zeros_like(query_AD), nd.zeros_like(item_AD)
        queries_AD, items_AD = query_AD.detach(), item_AD.detach()
        losses: list[Array] = []
        for tile in self._tiles(query_AD, slice(0, len(query_AD)), len(item_AD)):
            if losses:
                yield losses[-1]
            query_TD = queries_AD[tile]
            self._autograd.mark_variables([query_TD, items_AD], [query_gradient_AD[tile], item_gradient_AD], "add")
            with self._autograd.record():
                score_TA = nd.dot(scale * query_TD, items_AD, transpose_b=True)
                if has_norms:
                    score_TA = nd.broadcast_sub(score_TA, self._squares(items_AD).reshape((1, -1)))
                loss_T = arrays.weight_A[tile] * self._loss.log_sum_exp(score_TA)[:, 0]
            loss_T.backward()
            losses.append(loss_T.detach())
        self._autograd.backward([query_AD, item_AD, own_loss_B], [query_gradient_AD, item_gradient_AD, None])
        return [*losses, own_loss_B]

    # ---- negatives per example

    def _per_example(self, arrays: PartArrays) -> Queued[list[Array]]:
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
                yield losses[-1]
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
