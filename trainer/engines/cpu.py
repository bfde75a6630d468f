"""Gradients on the CPU in closed form: BLAS for a shared pool, one fused pass for negatives of each example's own.

Cosine scores are dot products of unit rows: the block is normalised once, row by row, and the gradient taken back
through it once, so no pass over the examples knows of it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import get_num_threads, njit, prange

from kvstore.arrays import FloatArray
from trainer.data.batches import ActiveRows, Batch
from trainer.job import LossKind, Negatives
from trainer.losses import LOSS_CODES, own_negatives_pass, row_squares, shared_pool_pass
from trainer.model import Model

_TILE_SCORES = 1 << 19
"""Scores of a shared pool are computed in tiles of about this many, 2 MiB, to stay in the cache."""
_SMALLEST_NORM = np.float32(1e-12)


@njit(cache=True, error_model="numpy", parallel=True)
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


@njit(cache=True, error_model="numpy", parallel=True)
def _through_normalise(gradient_AD, unit_AD, norm_A):  # type: ignore[no-untyped-def]
    """Gradients by unit rows to gradients by the rows themselves, in place: (g − (g·u)u) / |x|."""
    for a in prange(gradient_AD.shape[0]):
        along = np.float32(0.0)
        for d in range(gradient_AD.shape[1]):
            along += gradient_AD[a, d] * unit_AD[a, d]
        for d in range(gradient_AD.shape[1]):
            gradient_AD[a, d] = (gradient_AD[a, d] - along * unit_AD[a, d]) / norm_A[a]


@njit(cache=True, error_model="numpy", parallel=True)
def _sum_uses(values_ND, order_N, starts_A1):  # type: ignore[no-untyped-def]
    """Sum the gradients of each active row's uses, in the order of the uses, whatever the number of threads."""
    out_AD = np.zeros((starts_A1.shape[0] - 1, values_ND.shape[1]), np.float32)
    for a in prange(out_AD.shape[0]):
        for n in range(starts_A1[a], starts_A1[a + 1]):
            for d in range(values_ND.shape[1]):
                out_AD[a, d] += values_ND[order_N[n], d]
    return out_AD


class CpuEngine:
    """Closed-form gradients with numba and BLAS."""

    def __init__(self, model: Model, loss: LossKind, negatives: Negatives) -> None:
        """An engine for ``model``, ``loss`` and the kind of ``negatives``."""
        self._model = model
        self._code = LOSS_CODES[loss]
        self._shared = negatives.kind == "shared"
        self._product = np.float32(model.score.product)
        self._square = np.float32(model.score.square)
        self._threads = ThreadPoolExecutor(get_num_threads(), thread_name_prefix="engine")
        self._local = threading.local()

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

    def gpu_memory(self) -> None:
        """None: it computes on the CPU."""

    @staticmethod
    def _by_rows(active: ActiveRows, values_ND: FloatArray) -> FloatArray:
        gradient_AD: FloatArray = _sum_uses(values_ND, active.order_N, active.starts_A1)
        return gradient_AD

    def _weights(self, batch: Batch) -> FloatArray:
        return batch.weight_B / np.float32(batch.global_size)

    def _with_own_negatives(self, batch: Batch, query_AD: FloatArray, item_AD: FloatArray) -> tuple[FloatArray, ...]:
        negative_BN = batch.negative_index_N.reshape(len(batch), -1)
        result: tuple[FloatArray, ...] = own_negatives_pass(
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
        """Tiles of examples in threads, each with a single-threaded BLAS; their pool gradients are added in order."""
        query_BD, item_BD = query_AD[batch.query.index_N], item_AD[batch.item_index_B]
        pool_CD = item_AD[batch.negative_index_N]
        square_C, weight_B = row_squares(pool_CD), self._weights(batch)
        loss_B, query_gradient_BD = np.empty_like(weight_B), np.empty_like(query_BD)
        use_gradient_ND = np.empty((len(batch) + len(pool_CD), pool_CD.shape[1]), np.float32)
        twice = np.float32(2.0) * self._square

        def compute(part: slice) -> tuple[FloatArray, FloatArray]:
            query_TD, item_TD = query_BD[part], item_BD[part]
            slope_TC = np.matmul(query_TD, pool_CD.T, out=self._scores(len(query_TD), len(pool_CD)))
            rows = batch.item_index_B[part], batch.negative_index_N
            loss_B[part], slope_T = shared_pool_pass(
                slope_TC, query_TD, item_TD, square_C, *rows, weight_B[part], self._code, self._product, self._square
            )
            own_T1 = slope_T[:, None]
            query_gradient_BD[part] = self._product * (slope_TC @ pool_CD + own_T1 * item_TD)
            use_gradient_ND[part] = self._product * own_T1 * query_TD
            if twice:
                query_gradient_BD[part] -= twice * (slope_TC.sum(axis=1) + slope_T)[:, None] * query_TD
                use_gradient_ND[part] -= twice * own_T1 * item_TD
            return self._product * (slope_TC.T @ query_TD), slope_TC.sum(axis=0) if twice else slope_T[:0]

        tile = max(1, _TILE_SCORES // len(pool_CD))
        parts = [slice(start, min(start + tile, len(batch))) for start in range(0, len(batch), tile)]
        pool_gradient_CD, pool_slope_C = use_gradient_ND[len(batch) :], np.zeros_like(square_C)
        pool_gradient_CD[:] = 0.0
        for gradient_CD, slope_C in self._threads.map(compute, parts):
            pool_gradient_CD += gradient_CD
            if twice:
                pool_slope_C += slope_C
        if twice:
            pool_gradient_CD -= twice * pool_slope_C[:, None] * pool_CD
        return loss_B, query_gradient_BD, use_gradient_ND

    def _scores(self, examples: int, pool: int) -> FloatArray:
        """A thread's memory for a tile of scores, kept from step to step: fresh pages cost more than the scores."""
        memory: FloatArray | None = getattr(self._local, "memory", None)
        if memory is None or memory.size < examples * pool:
            memory = self._local.memory = np.empty(examples * pool, np.float32)
        return memory[: examples * pool].reshape(examples, pool)
