"""Negatives: the items that an interaction is contrasted with.

A draw depends on the seed, the epoch, the step and a position: within the pool, or of the example in the global batch.
It does not depend on the worker, so that two workers contrast the same examples with the same items as one would.
"""

from __future__ import annotations

import numpy as np

from kvstore.arrays import FloatArray, IntArray
from kvstore.philox import uniform
from trainer.data.shards import Share
from trainer.job import Negatives

_STREAM = "negatives"


def needs_counts(spec: Negatives, met_alone: bool) -> bool:
    """Whether a ``Sampler`` needs to know how often each item was met in train."""
    return met_alone or spec.sampling == "popularity"


class Sampler:
    """Draws the negatives of a step."""

    def __init__(
        self, spec: Negatives, items: int, counts_N: IntArray | None, seed: int, met_alone: bool = False
    ) -> None:
        """Draw among ``items`` rows; ``counts_N`` are their interactions, needed where ``needs_counts`` says so.

        An item that was never seen in train counts as seen once, so that it is drawn too; or never, with ``met_alone``.
        """
        self._spec = spec
        self._items = items
        self._seed = seed
        self._cumulative_N: FloatArray | None = None
        if needs_counts(spec, met_alone):
            assert counts_N is not None
            assert len(counts_N) == items
            mass_N = np.maximum(counts_N, 1).astype(np.float64) ** (
                spec.power if spec.sampling == "popularity" else 0.0
            )
            if met_alone:
                mass_N[counts_N == 0] = 0.0
            summed_N = np.cumsum(mass_N)
            # Divided by its own last value, the sum reaches 1 at the last item that has mass, and no draw lies beyond.
            self._cumulative_N = summed_N / (summed_N[-1] if met_alone else mass_N.sum())

    def draw(self, share: Share, epoch: int, step: int) -> IntArray:
        """Rows of the item table, int64: the pool (C,), or ``count`` for each example of ``share`` (B·count,)."""
        if len(share.interactions) == 0:
            return np.empty(0, dtype=np.int64)
        if self._spec.kind == "shared":
            return self._rows(self._uniform(np.arange(self._spec.count), epoch, step, slot=0))
        draws_BN = np.empty((len(share.positions_B), self._spec.count))
        for slot in range(self._spec.count):
            draws_BN[:, slot] = self._uniform(share.positions_B, epoch, step, slot)
        return self._rows(draws_BN.ravel())

    def _uniform(self, positions_N: IntArray, epoch: int, step: int, slot: int) -> FloatArray:
        return uniform(positions_N, seed=self._seed, stream=_STREAM, epoch=epoch, step=step, slot=slot)

    def _rows(self, uniform_N: FloatArray) -> IntArray:
        if self._cumulative_N is None:
            return (uniform_N * self._items).astype(np.int64)
        return np.minimum(np.searchsorted(self._cumulative_N, uniform_N, side="right"), self._items - 1)
