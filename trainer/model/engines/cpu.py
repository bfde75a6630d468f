"""Closed-form gradients on the CPU: BLAS for pools of negatives, one fused pass for per-example negatives.

    engine = CpuEngine(model, LossSpec("softmax"), NegativesConfig(kind="shared"))
    loss, gradients = engine.gradients(batch, vectors)

Cosine scores are dot products of unit rows: vectors are normalized once, row by row, and gradients pass back through
the normalization once, so the passes over examples need not distinguish scores.

Gradients by pools of negatives are in ``pools.py`` and ``all_items.py``.

Shapes: A active rows, B examples, N uses or negatives of an example, D columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numba import njit, prange

from kvstore.arrays import FloatArray
from trainer.config.model_sections import NegativesConfig
from trainer.model.active_rows import ActiveRows
from trainer.model.batches import Batch
from trainer.model.engines.all_items import AllItemsGradients
from trainer.model.engines.pools import PoolGradients
from trainer.model.loss_kernels import per_example_pass
from trainer.model.losses import LossSpec
from trainer.model.negatives import IN_BATCH_KINDS
from trainer.model.spec import ModelSpec
from trainer.model.vector_kernels import dot_lanes

_MIN_NORM = np.float32(1e-12)


@njit(cache=True, error_model="numpy", parallel=True)
def _normalize(rows_AD):  # type: ignore[no-untyped-def]
    unit_AD, norm_A = np.empty_like(rows_AD), np.empty(rows_AD.shape[0], np.float32)
    for a in prange(rows_AD.shape[0]):
        norm_A[a] = max(np.sqrt(dot_lanes(rows_AD[a], rows_AD[a])), _MIN_NORM)
        for d in range(rows_AD.shape[1]):
            unit_AD[a, d] = rows_AD[a, d] / norm_A[a]
    return unit_AD, norm_A


@njit(cache=True, error_model="numpy", parallel=True)
def _through_normalize(gradient_AD, unit_AD, norm_A):  # type: ignore[no-untyped-def]
    """Turn gradients of unit rows u into those of the rows x, in place: (g − (g·u)u) / |x|."""
    for a in prange(gradient_AD.shape[0]):
        along = dot_lanes(gradient_AD[a], unit_AD[a])
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
        self._pools = PoolGradients(
            loss, model.score, num_hard=negatives.num_hard, in_batch=self._in_batch, items=model.item.rows
        )
        self._all_items = AllItemsGradients(model.score)

    def gradients(self, batch: Batch, vectors: Mapping[str, FloatArray]) -> tuple[float, dict[str, FloatArray]]:
        """Compute this worker's part of the mean loss, and the gradients of ``vectors`` (see ``Engine``)."""
        names = self._model.query.name, self._model.item.name
        if len(batch) == 0:
            return 0.0, {name: np.zeros_like(vectors[name]) for name in names}
        rows = [np.ascontiguousarray(vectors[name]) for name in names]
        norms: list[FloatArray] = []
        if self._model.score.normalized:
            rows, norms = (list(pair) for pair in zip(*(_normalize(rows_AD) for rows_AD in rows), strict=True))
        if self._per_example:
            loss_B, *uses = self._with_per_example_negatives(batch, *rows)
            active = batch.query, batch.item
            gradients = [self._by_rows(*pair) for pair in zip(active, uses, strict=True)]
        else:
            with_pools = self._all_items if self._shares_query_scores(batch) else self._pools
            loss_B, *gradients = with_pools.compute(batch, self._weights(batch), *rows)
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

    def _shares_query_scores(self, batch: Batch) -> bool:
        """Whether the examples of a query have the same scores: all items are negatives, without other differences."""
        only_items = len(batch.item.rows_A) == len(batch.negative_index_N)
        plain = len(batch.log_q_N) == 0 and bool((batch.weight_B >= 0).all())
        return self._all_softmax and only_items and plain
