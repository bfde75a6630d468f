"""Weight interactions by how frequent their query and their item are: weight ∝ count^power.

    weighting = FrequencyWeighting(-0.5, query_counts, 0.15, item_counts)
    batch = weighting.apply(batch)

Queries with thousands of interactions would otherwise dominate the loss, while evaluation counts every query once. With
power p, an interaction of a query that has n interactions in train weighs n^p, scaled so that weights average 1: p = 0
weighs every interaction the same, p = −1 every query. The same holds for items, where p > 0 favors popular ones.

Shapes: R rows of a table, Q queries, I items, A active rows, B examples.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.trainer.model.active_rows import ActiveRows
from crossfade.trainer.model.batches import Batch


class FrequencyWeighting:
    """Multiplies the weights of a batch by a factor of the query's and one of the item's frequency."""

    def __init__(
        self, query_power: float, query_counts_Q: IntArray | None, item_power: float, item_counts_I: IntArray | None
    ) -> None:
        """Compute the factor of each row. Counts in train are required only where the power is not 0."""
        self._query_factor_Q = _factors(query_power, query_counts_Q)
        self._item_factor_I = _factors(item_power, item_counts_I)

    def apply(self, batch: Batch) -> Batch:
        """Return ``batch`` with its weights multiplied; the same object where both powers are 0."""
        for factor_R, active in ((self._query_factor_Q, batch.query), (self._item_factor_I, batch.item)):
            if factor_R is not None:
                batch = replace(batch, weight_B=batch.weight_B * _of_examples(factor_R, active, len(batch)))
        return batch


def _factors(power: float, counts_R: IntArray | None) -> FloatArray | None:
    """Return the factor of each row, float32 (R,), 1 on average over interactions; None where all are 1."""
    if power == 0:
        return None
    assert counts_R is not None
    weight_R = np.maximum(counts_R, 1).astype(np.float64) ** power
    mean = (weight_R * counts_R).sum() / max(counts_R.sum(), 1)
    factor_R: FloatArray = (weight_R / (mean or 1.0)).astype(np.float32)
    return factor_R


def _of_examples(factor_R: FloatArray, active: ActiveRows, examples: int) -> FloatArray:
    factor_B: FloatArray = factor_R.take(active.uses_N[:examples])  # like kernels, without the interpreter's lock
    return factor_B
