"""The balance of queries: what an interaction of one query weighs beside that of another.

Queries with thousands of interactions would otherwise decide what is learned, while evaluation counts every query once.
With a balance b an interaction of a query with n of them in train weighs n^−b, and then all by one factor, so that they
weigh 1 on average. With b = 0 every interaction weighs the same, with b = 1 every query.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kvstore.arrays import FloatArray, IntArray
from trainer.data.batches import Batch


class Balance:
    """Multiplies the weights of a batch."""

    def __init__(self, power: float, counts_Q: IntArray | None) -> None:
        """A balance of ``power``; ``counts_Q`` are the interactions of each query, needed where it is above 0."""
        self._factor_Q: FloatArray | None = None
        if power > 0:
            assert counts_Q is not None
            weight_Q = np.maximum(counts_Q, 1).astype(np.float64) ** -power
            mean = (weight_Q * counts_Q).sum() / max(counts_Q.sum(), 1)
            self._factor_Q = (weight_Q / (mean or 1.0)).astype(np.float32)

    def apply(self, batch: Batch) -> Batch:
        """The same batch, its weights balanced."""
        if self._factor_Q is None:
            return batch
        factor_B = self._factor_Q[batch.query.rows_A][batch.query.index_N]
        return replace(batch, weight_B=batch.weight_B * factor_B)
