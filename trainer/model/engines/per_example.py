"""Gradients of examples that each have negatives of their own, and steps that update rows in place.

    per_example = PerExampleGradients(loss, score, num_hard=None, items=40_000)
    loss_B, by_query_AD, by_item_AD = per_example.compute(batch, weight_B, query_AD, item_AD)

    loss_B = per_example.update(batch, weight_B, store, model)      # the same step on tables in this process

Shapes: B examples, N uses of items, A active rows, R rows of a table, D columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from crossfade.base.arrays import FloatArray
from crossfade.kvstore.local import LocalStore
from crossfade.kvstore.memory import empty_rows
from crossfade.kvstore.optimizers import check_convergence
from crossfade.trainer.model.batches import Batch
from crossfade.trainer.model.losses import LossSpec
from crossfade.trainer.model.per_example_kernels import item_gradients, query_gradients, update_items, update_queries
from crossfade.trainer.model.spec import ModelSpec, Score


class PerExampleGradients:
    """Losses and gradients of a loss and a score, with numba kernels."""

    def __init__(self, loss: LossSpec, score: Score, *, num_hard: int | None, items: int) -> None:
        """Compute ``loss`` of ``score``.

        Args:
            loss: the loss.
            score: the score; where it is of unit vectors, vectors are unit vectors.
            num_hard: how many negatives of an example count; None: all.
            items: rows of the item table.
        """
        self._loss, self._num_hard, self._items = loss, num_hard, items
        self._scales = np.float32(score.dot_scale), np.float32(score.norm_scale)
        self._old_AD = np.empty((0, 0), np.float32)

    def compute(
        self, batch: Batch, weight_B: FloatArray, query_AD: FloatArray, item_AD: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return the losses of the examples, and the gradients of the active queries and items.

        Args:
            batch: the examples and negatives; there is at least one.
            weight_B: weights of the examples, float32.
            query_AD: vectors of the active queries, float32 and contiguous.
            item_AD: vectors of the active items.
        """
        query, item, count = batch.query, batch.item, _negatives(batch)
        examples = query.starts_A1, item.index_N, weight_B, batch.log_q_N
        by_query_AD, loss_B, slope_N = query_gradients(query_AD, item_AD, *examples, *self._options(count))
        uses = query.index_N, item.order_N, item.starts_A1, slope_N
        by_item_AD = item_gradients(query_AD, item_AD, *uses, count, *self._scales)
        return loss_B, by_query_AD, by_item_AD

    def update(self, batch: Batch, weight_B: FloatArray, store: LocalStore, model: ModelSpec) -> FloatArray:
        """Take a step on the tables of ``model`` in ``store``, and return the losses of the examples.

        Raises:
            StoreError: a row lies outside its table.
            DivergedError: a gradient is not finite.
        """
        query, item, count = batch.query, batch.item, _negatives(batch)
        query_name, item_name = model.query.name, model.item.name
        store.check({query_name: query.rows_A, item_name: item.rows_A})
        old_AD = self._old_rows(len(query.rows_A), model.query.dim)
        examples = query.starts_A1, item.uses_N, weight_B, batch.log_q_N
        with store.updating(query_name, query.rows_A) as (query_RD, optimizer):
            tables = query_RD, query.rows_A, store.weights(item_name)
            step = update_queries(old_AD, *tables, *examples, *self._options(count), optimizer)
            loss_B, slope_N, divergent_rows = step
            check_convergence(divergent_rows, query_RD, query.rows_A)
        uses = query.index_N, item.order_N, item.starts_A1, slope_N
        with store.updating(item_name, item.rows_A) as (item_RD, optimizer):
            tables = item_RD, item.rows_A, old_AD
            divergent_rows = update_items(*tables, *uses, count, *self._scales, optimizer)
            check_convergence(divergent_rows, item_RD, item.rows_A)
        result: FloatArray = loss_B
        return result

    def _options(self, count: int) -> tuple[Any, ...]:
        """Return the arguments of ``query_gradients`` from ``count`` on."""
        num_hard = None if self._num_hard is None else min(self._num_hard, count)
        params = self._loss.params(self._items, count)
        return count, self._loss.code, params, num_hard, *self._scales

    def _old_rows(self, rows: int, dim: int) -> FloatArray:
        """Return memory for rows of queries; it is reused, since fresh pages take longer than copies."""
        if len(self._old_AD) < rows:
            self._old_AD = empty_rows(rows + rows // 8, dim)
        return self._old_AD[:rows]


def _negatives(batch: Batch) -> int:
    """Return the number of negatives of an example."""
    assert batch.is_ordered
    return len(batch.negative_index_N) // len(batch)
