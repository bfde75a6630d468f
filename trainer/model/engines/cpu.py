"""Closed-form gradients on the CPU: BLAS for pools of negatives, two passes for negatives per example.

    engine = CpuEngine(model, LossSpec("softmax"), NegativesConfig(kind="shared"))
    loss, gradients = engine.gradients(batch, vectors)

Cosine scores are dot products of unit rows: vectors are normalized once, row by row, and gradients pass back through
the normalization once, so what follows need not distinguish scores.

Gradients with pools of negatives are in ``pools.py`` and ``all_items.py``, with negatives per example in
``per_example.py``.

Shapes: A active rows, B examples, N uses or negatives of an example, D columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from crossfade.base.arrays import FloatArray
from crossfade.kvstore.jit import inner_kernel, njit
from crossfade.kvstore.row_kernels import dot
from crossfade.kvstore.threads import chunk_size, for_chunks
from crossfade.trainer.config.model_sections import NegativesConfig
from crossfade.trainer.model.batches import Batch
from crossfade.trainer.model.engines.all_items import AllItemsGradients
from crossfade.trainer.model.engines.per_example import PerExampleGradients
from crossfade.trainer.model.engines.pools import PoolGradients
from crossfade.trainer.model.losses import LossSpec
from crossfade.trainer.model.negatives import IN_BATCH_KINDS
from crossfade.trainer.model.spec import ModelSpec

_MIN_NORM = np.float32(1e-12)


@inner_kernel()
def _normalize_chunk(begin, end, rows_AD, unit_AD, norm_A):  # type: ignore[no-untyped-def]
    for a in range(begin, end):
        norm_A[a] = max(np.sqrt(dot(rows_AD, a, rows_AD, a)), _MIN_NORM)
        for d in range(rows_AD.shape[1]):
            unit_AD[a, d] = rows_AD[a, d] / norm_A[a]


@njit(cache=True, error_model="numpy", nogil=True)
def _normalize(rows_AD):  # type: ignore[no-untyped-def]
    unit_AD, norm_A = np.empty_like(rows_AD), np.empty(rows_AD.shape[0], np.float32)
    size = chunk_size(rows_AD.shape[0], rows_AD.size)
    for_chunks(_normalize_chunk, rows_AD.shape[0], size, (rows_AD, unit_AD, norm_A))
    return unit_AD, norm_A


@inner_kernel()
def _through_normalize_chunk(begin, end, gradient_AD, unit_AD, norm_A):  # type: ignore[no-untyped-def]
    for a in range(begin, end):
        along = dot(gradient_AD, a, unit_AD, a)
        for d in range(gradient_AD.shape[1]):
            gradient_AD[a, d] = (gradient_AD[a, d] - along * unit_AD[a, d]) / norm_A[a]


@njit(cache=True, error_model="numpy", nogil=True)
def _through_normalize(gradient_AD, unit_AD, norm_A):  # type: ignore[no-untyped-def]
    """Turn gradients of unit rows u into those of the rows x, in place: (g − (g·u)u) / |x|."""
    size = chunk_size(gradient_AD.shape[0], gradient_AD.size)
    for_chunks(_through_normalize_chunk, gradient_AD.shape[0], size, (gradient_AD, unit_AD, norm_A))


class CpuEngine:
    """Computes gradients in closed form with numba and BLAS."""

    name = "cpu"
    devices: Sequence[str] = ("cpu",)

    def __init__(self, model: ModelSpec, loss: LossSpec, negatives: NegativesConfig) -> None:
        """Prepare for ``model``, ``loss`` and ``negatives``, whose kind is resolved."""
        self._model = model
        self._all_softmax = negatives.kind == "all" and loss.kind == "softmax" and negatives.num_hard is None
        options: dict[str, Any] = {"num_hard": negatives.num_hard, "items": model.item.rows}
        self._gradients: PerExampleGradients | PoolGradients
        if negatives.kind == "per_example":
            self._gradients = PerExampleGradients(loss, model.score, **options)
        else:
            in_batch = negatives.kind in IN_BATCH_KINDS
            self._gradients = PoolGradients(loss, model.score, in_batch=in_batch, **options)
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
        method = self._all_items if self._all_softmax and batch.shares_query_scores else self._gradients
        loss_B, *gradients = method.compute(batch, batch.normalized_weights(), *rows)
        for gradient_AD, unit_AD, norm_A in zip(gradients, rows, norms, strict=False):
            _through_normalize(gradient_AD, unit_AD, norm_A)
        return float(loss_B.sum(dtype=np.float64)), dict(zip(names, gradients, strict=True))

    def gpu_memory(self) -> None:
        """Return None: the engine computes on the CPU."""
