"""Weight interactions by how frequent their query and their item are: weight ∝ count^power.

Queries with thousands of interactions would otherwise dominate the loss, while evaluation counts every query once. With
power p, an interaction of a query that has n interactions in train weighs n^p, scaled so that weights average 1: p = 0
weighs every interaction the same, p = −1 every query. The same holds for items, where p > 0 favors popular ones.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kvstore.arrays import FloatArray, IntArray
from trainer.model.active_rows import ActiveRows
from trainer.model.batches import Batch


class FrequencyWeighting:
    """Multiplies the weights of a batch."""

    def __init__(self, query: float, counts_Q: IntArray | None, item: float, counts_N: IntArray | None) -> None:
        """Balances of queries and items; their counts in train are needed where these are not 0."""
        self._query_Q = _factors(query, counts_Q)
        self._item_N = _factors(item, counts_N)

    def apply(self, batch: Batch) -> Batch:
        """The same batch, its weights balanced."""
        for factor_R, active in ((self._query_Q, batch.query), (self._item_N, batch.item)):
            if factor_R is not None:
                batch = replace(batch, weight_B=batch.weight_B * _of_examples(factor_R, active, len(batch)))
        return batch


def _factors(power: float, counts_R: IntArray | None) -> FloatArray | None:
    """What an interaction of each row weighs, float32 (rows,): 1 on average over interactions. None: 1 everywhere."""
    if power == 0:
        return None
    assert counts_R is not None
    weight_R = np.maximum(counts_R, 1).astype(np.float64) ** power
    mean = (weight_R * counts_R).sum() / max(counts_R.sum(), 1)
    factor_R: FloatArray = (weight_R / (mean or 1.0)).astype(np.float32)
    return factor_R


def _of_examples(factor_R: FloatArray, active: ActiveRows, examples: int) -> FloatArray:
    factor_B: FloatArray = factor_R[active.rows_A][active.index_N[:examples]]
    return factor_B
