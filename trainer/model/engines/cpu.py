"""Closed-form gradients on the CPU: BLAS for pools of negatives, one fused pass for per-example negatives.

    engine = CpuEngine(model, LossSpec("softmax"), NegativesConfig(kind="shared"))
    loss, gradients = engine.gradients(batch, vectors)

Cosine scores are dot products of unit rows: vectors are normalized once, row by row, and gradients pass back through
the normalization once, so the passes over examples need not distinguish scores.

Shapes: A active rows, B examples, C negatives of a pool, T examples of a tile, N uses, D columns.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import get_num_threads, njit, prange

from kvstore.arrays import FloatArray, IntArray
from trainer.config.model_sections import NegativesConfig
from trainer.model.active_rows import ActiveRows
from trainer.model.batches import Batch
from trainer.model.loss_kernels import all_items_pass, per_example_pass, shared_pool_pass
from trainer.model.loss_math import row_squares
from trainer.model.losses import LossSpec
from trainer.model.negatives import IN_BATCH_KINDS
from trainer.model.spec import ModelSpec

_TILE_SCORES = 1 << 19
"""Scores of a pool are computed in tiles of about this many, 2 MiB, to stay in the cache."""
_MIN_NORM = np.float32(1e-12)


@njit(cache=True, error_model="numpy", parallel=True)
def _normalize(rows_AD):  # type: ignore[no-untyped-def]
    unit_AD, norm_A = np.empty_like(rows_AD), np.empty(rows_AD.shape[0], np.float32)
    for a in prange(rows_AD.shape[0]):
        total = np.float32(0.0)
        for d in range(rows_AD.shape[1]):
            total += rows_AD[a, d] * rows_AD[a, d]
        norm_A[a] = max(np.sqrt(total), _MIN_NORM)
        for d in range(rows_AD.shape[1]):
            unit_AD[a, d] = rows_AD[a, d] / norm_A[a]
    return unit_AD, norm_A


@njit(cache=True, error_model="numpy", parallel=True)
def _through_normalize(gradient_AD, unit_AD, norm_A):  # type: ignore[no-untyped-def]
    """Turn gradients of unit rows u into those of the rows x, in place: (g − (g·u)u) / |x|."""
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


@dataclass(frozen=True)
class _Pool:
    """A pool of negatives that some examples of a batch share.

    Attributes:
        examples: those examples.
        uses: which uses of items the negatives are.
        rows_CD: their vectors.
        columns: for each negative its active row, the query it is a positive of if it is in-batch (else empty), its
            squared norm, and its log Q (or empty), in the order of ``shared_pool_pass``'s arguments.
    """

    examples: slice
    uses: slice | IntArray
    rows_CD: FloatArray
    columns: tuple[FloatArray, ...]

    @staticmethod
    def of(batch: Batch, item_AD: FloatArray, examples: slice, uses: slice | IntArray, query_C: IntArray) -> _Pool:
        row_C = batch.item.index_N[uses]
        rows_CD = item_AD[row_C]
        log_q_C = batch.log_q_N[uses] if len(batch.log_q_N) else batch.log_q_N
        return _Pool(examples, uses, rows_CD, (row_C, query_C, row_squares(rows_CD), log_q_C))

    def tiles(self) -> list[slice]:
        """Split the examples so that the scores of a tile stay in the cache."""
        tile = max(1, _TILE_SCORES // max(len(self.rows_CD), 1))
        first, end = self.examples.start, self.examples.stop
        return [slice(start, min(start + tile, end)) for start in range(first, end, tile)]


class CpuEngine:
    """Computes gradients in closed form with numba and BLAS."""

    def __init__(self, model: ModelSpec, loss: LossSpec, negatives: NegativesConfig) -> None:
        """Prepare for ``model``, ``loss`` and ``negatives``, whose kind is resolved."""
        self._model = model
        self._loss = loss
        self._per_example = negatives.kind == "per_example"
        self._all_softmax = negatives.kind == "all" and loss.kind == "softmax" and negatives.num_hard is None
        self._in_batch = negatives.kind in IN_BATCH_KINDS
        self._num_hard = negatives.num_hard
        self._dot_scale = np.float32(model.score.dot_scale)
        self._norm_scale = np.float32(model.score.norm_scale)
        self._threads = ThreadPoolExecutor(get_num_threads(), thread_name_prefix="engine")
        self._local = threading.local()

    def gradients(self, batch: Batch, vectors: Mapping[str, FloatArray]) -> tuple[float, dict[str, FloatArray]]:
        """Compute this worker's part of the mean loss, and the gradients of ``vectors`` (see ``Engine``)."""
        names = self._model.query.name, self._model.item.name
        if len(batch) == 0:
            return 0.0, {name: np.zeros_like(vectors[name]) for name in names}
        rows = [vectors[name] for name in names]
        norms: list[FloatArray] = []
        if self._model.score.normalized:
            rows, norms = (list(pair) for pair in zip(*(_normalize(rows_AD) for rows_AD in rows), strict=True))
        if self._shares_query_scores(batch):
            loss_B, *gradients = self._with_all_items(batch, *rows)
        else:
            compute = self._with_per_example_negatives if self._per_example else self._with_pools
            loss_B, *uses = compute(batch, *rows)
            active = batch.query, batch.item
            gradients = [self._by_rows(*pair) for pair in zip(active, uses, strict=True)]
        for gradient_AD, unit_AD, norm_A in zip(gradients, rows, norms, strict=False):
            _through_normalize(gradient_AD, unit_AD, norm_A)
        return float(loss_B.sum(dtype=np.float64)), dict(zip(names, gradients, strict=True))

    def gpu_memory(self) -> None:
        """Return None: the engine computes on the CPU."""

    @staticmethod
    def _by_rows(active: ActiveRows, values_ND: FloatArray) -> FloatArray:
        gradient_AD: FloatArray = _sum_uses(values_ND, active.order_N, active.starts_A1)
        return gradient_AD

    def _weights(self, batch: Batch) -> FloatArray:
        return batch.weight_B / np.float32(batch.global_size)

    def _kernel_options(self, negatives: int) -> tuple[Any, ...]:
        """Return the last arguments of the kernels, which depend on the number of ``negatives`` of an example."""
        params = self._loss.params(self._model.item.rows, negatives)
        num_hard = None if self._num_hard is None else min(self._num_hard, negatives)
        return self._loss.code, params, num_hard, self._dot_scale, self._norm_scale

    def _with_per_example_negatives(
        self, batch: Batch, query_AD: FloatArray, item_AD: FloatArray
    ) -> tuple[FloatArray, ...]:
        negative_BN = batch.negative_index_N.reshape(len(batch), -1)
        log_q_N = batch.log_q_N
        result: tuple[FloatArray, ...] = per_example_pass(
            query_AD,
            item_AD,
            batch.query.index_N,
            batch.item_index_B,
            negative_BN,
            log_q_N[len(batch) :].reshape(negative_BN.shape if len(log_q_N) else (0, 0)),
            self._weights(batch),
            *self._kernel_options(negative_BN.shape[1]),
        )
        return result

    def _pools(self, batch: Batch, item_AD: FloatArray) -> list[_Pool]:
        """Build the pools of negatives: one for all examples or, with in-batch negatives, one for each partition."""
        drawn = slice(len(batch), len(batch.item.index_N))
        if not self._in_batch:
            return [_Pool.of(batch, item_AD, slice(0, len(batch)), drawn, batch.query.index_N[:0])]
        drawn_C, no_query_C = np.arange(drawn.start, drawn.stop), np.full(drawn.stop - drawn.start, -1)
        return [
            _Pool.of(
                batch,
                item_AD,
                examples,
                np.concatenate([drawn_C, np.arange(examples.start, examples.stop)]),
                np.concatenate([no_query_C, batch.query.index_N[examples]]),
            )
            for examples in batch.partition_slices
        ]

    def _with_pools(self, batch: Batch, query_AD: FloatArray, item_AD: FloatArray) -> tuple[FloatArray, ...]:
        """Compute tiles of examples in threads of single-threaded BLAS; gradients of pools are added in order."""
        query_BD, item_BD = query_AD[batch.query.index_N], item_AD[batch.item_index_B]
        weight_B = self._weights(batch)
        loss_B, query_gradient_BD, positive_gradient_BD = (
            np.empty_like(weight_B),
            np.empty_like(query_BD),
            np.empty_like(item_BD),
        )
        twice = np.float32(2.0) * self._norm_scale

        def compute(tile: tuple[_Pool, slice]) -> tuple[FloatArray, FloatArray]:
            pool, part = tile
            query_TD, item_TD, rows_CD = query_BD[part], item_BD[part], pool.rows_CD
            slope_TC = np.matmul(query_TD, rows_CD.T, out=self._scores(len(query_TD), len(rows_CD)))
            examples = batch.item_index_B[part], batch.query.index_N[part], weight_B[part]
            options = self._kernel_options(len(rows_CD))
            loss_B[part], slope_T = shared_pool_pass(slope_TC, query_TD, item_TD, *examples, *pool.columns, *options)
            slope_T1 = slope_T[:, None]
            query_gradient_BD[part] = self._dot_scale * (slope_TC @ rows_CD + slope_T1 * item_TD)
            positive_gradient_BD[part] = self._dot_scale * slope_T1 * query_TD
            if twice:
                query_gradient_BD[part] -= twice * (slope_TC.sum(axis=1) + slope_T)[:, None] * query_TD
                positive_gradient_BD[part] -= twice * slope_T1 * item_TD
            return self._dot_scale * (slope_TC.T @ query_TD), slope_TC.sum(axis=0) if twice else slope_T[:0]

        tiles = [(pool, part) for pool in self._pools(batch, item_AD) for part in pool.tiles()]
        use_gradient_ND = np.zeros((len(batch.item.index_N), item_BD.shape[1]), np.float32)
        for (pool, _), (gradient_CD, slope_C) in zip(tiles, self._threads.map(compute, tiles), strict=True):
            use_gradient_ND[pool.uses] += gradient_CD
            if twice:
                use_gradient_ND[pool.uses] -= twice * slope_C[:, None] * pool.rows_CD
        use_gradient_ND[: len(batch)] += positive_gradient_BD
        return loss_B, query_gradient_BD, use_gradient_ND

    def _shares_query_scores(self, batch: Batch) -> bool:
        """Whether the examples of a query have the same scores: all items are negatives, without other differences."""
        only_items = len(batch.item.rows_A) == len(batch.negative_index_N)
        plain = len(batch.log_q_N) == 0 and bool((batch.weight_B >= 0).all())
        return self._all_softmax and only_items and plain

    def _with_all_items(self, batch: Batch, query_AD: FloatArray, item_AD: FloatArray) -> tuple[FloatArray, ...]:
        """Compute losses and gradients of active rows: tiles of queries in threads, added in order."""
        order_B, starts_A1 = batch.query.order_N, batch.query.starts_A1
        examples = batch.item_index_B[order_B], self._weights(batch)[order_B]
        square_C = row_squares(item_AD)
        twice = np.float32(2.0) * self._norm_scale
        query_gradient_AD = np.empty_like(query_AD)

        def compute(tile: slice) -> tuple[FloatArray, FloatArray, FloatArray]:
            query_TD = query_AD[tile]
            slope_TC = np.matmul(query_TD, item_AD.T, out=self._scores(len(query_TD), len(item_AD)))
            of_tile = *examples, starts_A1[tile.start : tile.stop + 1]
            loss_N = all_items_pass(slope_TC, query_TD, square_C, *of_tile, self._dot_scale, self._norm_scale)
            # The slopes of a query sum to 0, so its squared norm, a term of all its scores, gets no gradient.
            query_gradient_AD[tile] = self._dot_scale * (slope_TC @ item_AD)
            return loss_N, self._dot_scale * (slope_TC.T @ query_TD), slope_TC.sum(axis=0) if twice else loss_N[:0]

        rows = max(1, _TILE_SCORES // len(item_AD))
        tiles = [slice(start, min(start + rows, len(query_AD))) for start in range(0, len(query_AD), rows)]
        item_gradient_AD = np.zeros_like(item_AD)
        losses = []
        for loss_N, gradient_AD, slope_A in self._threads.map(compute, tiles):
            losses.append(loss_N)
            item_gradient_AD += gradient_AD
            if twice:
                item_gradient_AD -= twice * slope_A[:, None] * item_AD
        return np.concatenate(losses), query_gradient_AD, item_gradient_AD

    def _scores(self, examples: int, pool: int) -> FloatArray:
        """Return this thread's buffer for a tile of scores; it is reused, since fresh pages cost more than scores."""
        memory: FloatArray | None = getattr(self._local, "memory", None)
        if memory is None or memory.size < examples * pool:
            memory = self._local.memory = np.empty(examples * pool, np.float32)
        return memory[: examples * pool].reshape(examples, pool)
