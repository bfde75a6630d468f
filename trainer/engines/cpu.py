"""Gradients on the CPU in closed form: BLAS for a shared pool, one fused pass for negatives of each example's own.

Cosine scores are dot products of unit rows: the block is normalised once, row by row, and the gradient taken back
through it once, so no pass over the examples knows of it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numba import njit, prange

from kvstore.arrays import FloatArray
from trainer.data.batches import ActiveRows, Batch
from trainer.job import LossKind, Negatives
from trainer.losses import LOSS_CODES, example_loss
from trainer.model import Model

_FAST = {"reassoc", "contract", "nsz", "arcp"}
_TILE_SCORES = 1 << 20
"""Scores of a shared pool are computed in tiles of about this many, 4 MiB, to stay in the cache."""
_SMALLEST_NORM = np.float32(1e-12)


@njit(cache=True, parallel=True, fastmath=_FAST)
def _normalise(block_AD):  # type: ignore[no-untyped-def]
    unit_AD, norm_A = np.empty_like(block_AD), np.empty(block_AD.shape[0], np.float32)
    for a in prange(block_AD.shape[0]):
        total = np.float32(0.0)
        for d in range(block_AD.shape[1]):
            total += block_AD[a, d] * block_AD[a, d]
        norm_A[a] = max(np.sqrt(total), _SMALLEST_NORM)
        for d in range(block_AD.shape[1]):
            unit_AD[a, d] = block_AD[a, d] / norm_A[a]
    return unit_AD, norm_A


@njit(cache=True, parallel=True, fastmath=_FAST)
def _through_normalise(gradient_AD, unit_AD, norm_A):  # type: ignore[no-untyped-def]
    """Gradients by unit rows to gradients by the rows themselves, in place: (g − (g·u)u) / |x|."""
    for a in prange(gradient_AD.shape[0]):
        along = np.float32(0.0)
        for d in range(gradient_AD.shape[1]):
            along += gradient_AD[a, d] * unit_AD[a, d]
        for d in range(gradient_AD.shape[1]):
            gradient_AD[a, d] = (gradient_AD[a, d] - along * unit_AD[a, d]) / norm_A[a]


@njit(cache=True, parallel=True, fastmath=_FAST)
def _sum_uses(values_ND, order_N, starts_A1):  # type: ignore[no-untyped-def]
    """Sum the gradients of each active row's uses, in the order of the uses, whatever the number of threads."""
    out_AD = np.zeros((starts_A1.shape[0] - 1, values_ND.shape[1]), np.float32)
    for a in prange(out_AD.shape[0]):
        for n in range(starts_A1[a], starts_A1[a + 1]):
            for d in range(values_ND.shape[1]):
                out_AD[a, d] += values_ND[order_N[n], d]
    return out_AD


@njit(cache=True, inline="always", fastmath=_FAST)
def _dot(x_D, y_D):  # type: ignore[no-untyped-def]
    total = np.float32(0.0)
    for d in range(x_D.shape[0]):
        total += x_D[d] * y_D[d]
    return total


@njit(cache=True, parallel=True, fastmath=_FAST)
def _row_squares(values_ND):  # type: ignore[no-untyped-def]
    out_N = np.empty(values_ND.shape[0], np.float32)
    for n in prange(values_ND.shape[0]):
        out_N[n] = _dot(values_ND[n], values_ND[n])
    return out_N


@njit(cache=True, parallel=True, fastmath=_FAST)
def _shared_losses(scores_BC, query_BD, item_BD, square_C, item_B, negative_C, weight_B, code, product, square):  # type: ignore[no-untyped-def]
    """Dot products of a tile to derivatives by score, in place; the losses, and the derivatives by own score."""
    loss_B, slope_B = np.empty(weight_B.shape[0], np.float32), np.empty(weight_B.shape[0], np.float32)
    for b in prange(weight_B.shape[0]):
        own = product * _dot(query_BD[b], item_BD[b])
        for c in range(scores_BC.shape[1]):
            scores_BC[b, c] *= product
        if square:
            query_square = _dot(query_BD[b], query_BD[b])
            own -= square * (query_square + _dot(item_BD[b], item_BD[b]))
            for c in range(scores_BC.shape[1]):
                scores_BC[b, c] -= square * (query_square + square_C[c])
        loss_B[b], slope_B[b] = example_loss(code, own, scores_BC[b], item_B[b], negative_C, weight_B[b])
    return loss_B, slope_B


@njit(cache=True, parallel=True, fastmath=_FAST)
def _each(query_AD, item_AD, query_B, item_B, negative_BN, weight_B, code, product, square):  # type: ignore[no-untyped-def]
    """Scores, losses and gradients of examples with negatives of their own: one pass over the examples."""
    examples, count = negative_BN.shape
    dim = query_AD.shape[1]
    loss_B = np.empty(examples, np.float32)
    query_gradient_BD = np.empty((examples, dim), np.float32)
    use_gradient_ND = np.empty((examples * (1 + count), dim), np.float32)
    scores_BN = np.empty((examples, count), np.float32)
    twice = np.float32(2.0) * square
    for b in prange(examples):
        query_D, item_D = query_AD[query_B[b]], item_AD[item_B[b]]
        query_square = _dot(query_D, query_D) if square else np.float32(0.0)
        own = product * _dot(query_D, item_D)
        if square:
            own -= square * (query_square + _dot(item_D, item_D))
        for n in range(count):
            negative_D = item_AD[negative_BN[b, n]]
            scores_BN[b, n] = product * _dot(query_D, negative_D)
            if square:
                scores_BN[b, n] -= square * (query_square + _dot(negative_D, negative_D))
        loss_B[b], slope = example_loss(code, own, scores_BN[b], item_B[b], negative_BN[b], weight_B[b])
        for d in range(dim):
            query_gradient_BD[b, d] = slope * (product * item_D[d] - twice * query_D[d])
            use_gradient_ND[b, d] = slope * (product * query_D[d] - twice * item_D[d])
        for n in range(count):
            negative_D, slope = item_AD[negative_BN[b, n]], scores_BN[b, n]
            for d in range(dim):
                query_gradient_BD[b, d] += slope * (product * negative_D[d] - twice * query_D[d])
                use_gradient_ND[examples + b * count + n, d] = slope * (product * query_D[d] - twice * negative_D[d])
    return loss_B, query_gradient_BD, use_gradient_ND


class CpuEngine:
    """Closed-form gradients with numba and BLAS."""

    def __init__(self, model: Model, loss: LossKind, negatives: Negatives) -> None:
        """An engine for ``model``, ``loss`` and the kind of ``negatives``."""
        self._model = model
        self._code = LOSS_CODES[loss]
        self._shared = negatives.kind == "shared"
        self._product = np.float32(model.score.product)
        self._square = np.float32(model.score.square)

    def gradients(self, batch: Batch, block: Mapping[str, FloatArray]) -> tuple[float, dict[str, FloatArray]]:
        """This worker's part of the mean loss and of its gradient."""
        names = self._model.query.name, self._model.item.name
        if len(batch) == 0:
            return 0.0, {name: np.zeros_like(block[name]) for name in names}
        rows = [block[name] for name in names]
        norms: list[FloatArray] = []
        if self._model.score.normalised:
            rows, norms = (list(pair) for pair in zip(*(_normalise(block_AD) for block_AD in rows), strict=True))
        compute = self._with_shared_pool if self._shared else self._with_own_negatives
        loss_B, *uses = compute(batch, *rows)
        gradients = [
            self._by_rows(active, values_ND) for active, values_ND in zip((batch.query, batch.item), uses, strict=True)
        ]
        for gradient_AD, unit_AD, norm_A in zip(gradients, rows, norms, strict=False):
            _through_normalise(gradient_AD, unit_AD, norm_A)
        return float(loss_B.sum(dtype=np.float64)), dict(zip(names, gradients, strict=True))

    @staticmethod
    def _by_rows(active: ActiveRows, values_ND: FloatArray) -> FloatArray:
        gradient_AD: FloatArray = _sum_uses(values_ND, active.order_N, active.starts_A1)
        return gradient_AD

    def _weights(self, batch: Batch) -> FloatArray:
        return batch.weight_B / np.float32(batch.global_size)

    def _with_own_negatives(self, batch: Batch, query_AD: FloatArray, item_AD: FloatArray) -> tuple[FloatArray, ...]:
        negative_BN = batch.negative_index_N.reshape(len(batch), -1)
        result: tuple[FloatArray, ...] = _each(
            query_AD,
            item_AD,
            batch.query.index_N,
            batch.item_index_B,
            negative_BN,
            self._weights(batch),
            self._code,
            self._product,
            self._square,
        )
        return result

    def _with_shared_pool(self, batch: Batch, query_AD: FloatArray, item_AD: FloatArray) -> tuple[FloatArray, ...]:
        query_BD, item_BD = query_AD[batch.query.index_N], item_AD[batch.item_index_B]
        pool_CD = item_AD[batch.negative_index_N]
        square_C, weight_B = _row_squares(pool_CD), self._weights(batch)
        loss_B, query_gradient_BD = np.empty_like(weight_B), np.empty_like(query_BD)
        use_gradient_ND = np.empty((len(batch) + len(pool_CD), pool_CD.shape[1]), np.float32)
        pool_gradient_CD, pool_slope_C = use_gradient_ND[len(batch) :], np.zeros_like(square_C)
        pool_gradient_CD[:] = 0.0
        tile = max(1, _TILE_SCORES // len(pool_CD))
        twice = np.float32(2.0) * self._square
        for start in range(0, len(batch), tile):
            part = slice(start, min(start + tile, len(batch)))
            slope_BC = query_BD[part] @ pool_CD.T
            loss_B[part], slope_B = _shared_losses(
                slope_BC,
                query_BD[part],
                item_BD[part],
                square_C,
                batch.item_index_B[part],
                batch.negative_index_N,
                weight_B[part],
                self._code,
                self._product,
                self._square,
            )
            own_B1 = slope_B[:, None]
            query_gradient_BD[part] = self._product * (slope_BC @ pool_CD + own_B1 * item_BD[part])
            use_gradient_ND[part] = self._product * own_B1 * query_BD[part]
            pool_gradient_CD += self._product * (slope_BC.T @ query_BD[part])
            if twice:
                query_gradient_BD[part] -= twice * (slope_BC.sum(axis=1) + slope_B)[:, None] * query_BD[part]
                use_gradient_ND[part] -= twice * own_B1 * item_BD[part]
                pool_slope_C += slope_BC.sum(axis=0)
        if twice:
            pool_gradient_CD -= twice * pool_slope_C[:, None] * pool_CD
        return loss_B, query_gradient_BD, use_gradient_ND
