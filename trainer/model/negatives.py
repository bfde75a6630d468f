"""Negatives: the items that an interaction is contrasted with.

A draw depends on the seed, the epoch, the step and a position: within the pool, or of the example in the global batch.
It does not depend on the worker, so that two workers contrast the same examples with the same items as one would.

Nor does it where a batch's own items are negatives (``in_batch`` and, beside a pool, ``mixed``): an example is
contrasted with the items of its lane in that step, and a lane is one worker's, whoever that is.
"""

from __future__ import annotations

import numpy as np

from kvstore.arrays import FloatArray, IntArray
from kvstore.philox import uniform
from trainer.config.model_sections import NegativesConfig
from trainer.data.schedule import BatchSlice

_STREAM = "negatives"
_SMALLEST = 1e-12
IN_BATCH_KINDS = frozenset({"in_batch", "mixed"})
"""Kinds of negatives of which some, or all, are the items of other examples."""


def needs_counts(spec: NegativesConfig, warm_only: bool) -> bool:
    """Whether a ``Sampler`` needs to know how often each item was met in train."""
    return warm_only or spec.sampling == "popularity" or (spec.logq_correction and spec.kind in IN_BATCH_KINDS)


class NegativeSampler:
    """Draws the negatives of a step."""

    def __init__(
        self, spec: NegativesConfig, items: int, counts_N: IntArray | None, seed: int, warm_only: bool = False
    ) -> None:
        """Draw among ``items`` rows; ``counts_N`` are their interactions, needed where ``needs_counts`` says so.

        An item that was never seen in train counts as seen once, so that it is drawn too; or never, with ``met_alone``.
        """
        self._spec = spec
        self._items = items
        self._seed = seed
        self._cumulative_N: FloatArray | None = None
        if warm_only or spec.sampling == "popularity":
            assert counts_N is not None
            assert len(counts_N) == items
            mass_N = np.maximum(counts_N, 1).astype(np.float64) ** (
                spec.power if spec.sampling == "popularity" else 0.0
            )
            if warm_only:
                mass_N[counts_N == 0] = 0.0
            summed_N = np.cumsum(mass_N)
            # Divided by its own last value, the sum reaches 1 at the last item that has mass, and no draw lies beyond.
            self._cumulative_N = summed_N / (summed_N[-1] if warm_only else mass_N.sum())
        self._all_N = np.empty(0, np.int64)
        if spec.kind == "all":
            self._all_N = np.arange(items) if not warm_only or counts_N is None else np.flatnonzero(counts_N)
        self._counts_N = counts_N if spec.logq_correction else None
        self._interactions = 0 if counts_N is None else int(counts_N.sum())

    def draw(self, share: BatchSlice, epoch: int, step: int) -> IntArray:
        """Rows of the item table, int64: the pool (C,), or ``count`` for each example of ``share`` (B·count,).

        Negatives from the batch are not among them.
        """
        if len(share.interactions) == 0 or self._spec.kind == "in_batch":
            return np.empty(0, dtype=np.int64)
        if self._spec.kind == "all":
            return self._all_N
        if self._spec.kind in {"shared", "mixed"}:
            return self._rows(self._uniform(np.arange(self._spec.count), epoch, step, slot=0))
        draws_BN = np.empty((len(share.positions_B), self._spec.count))
        for slot in range(self._spec.count):
            draws_BN[:, slot] = self._uniform(share.positions_B, epoch, step, slot)
        return self._rows(draws_BN.ravel())

    def log_q(self, rows_N: IntArray, share: BatchSlice) -> FloatArray:
        """The log of how often each of ``rows_N`` is expected among an example's negatives: float32 (N,).

        From the batch, an item is expected in proportion to its count. Empty where scores are not corrected.
        """
        if not self._spec.logq_correction or len(share.interactions) == 0:
            return np.empty(0, np.float32)
        expected_N = np.zeros(len(rows_N))
        if self._spec.kind != "in_batch":
            expected_N += self._spec.count * self._probability(rows_N)
        if self._spec.kind in IN_BATCH_KINDS:
            assert self._counts_N is not None
            expected_N += (
                share.global_size / share.partitions * np.maximum(self._counts_N[rows_N], 1) / self._interactions
            )
        # An item that is never drawn may be an example's own all the same.
        log_N: FloatArray = np.log(np.maximum(expected_N, _SMALLEST)).astype(np.float32)
        return log_N

    def _probability(self, rows_N: IntArray) -> FloatArray:
        """With what probability one draw is each of ``rows_N``: float64 (N,)."""
        if self._cumulative_N is None:
            return np.full(len(rows_N), 1.0 / self._items)
        before_N = np.where(rows_N > 0, self._cumulative_N[rows_N - 1], 0.0)
        probability_N: FloatArray = self._cumulative_N[rows_N] - before_N
        return probability_N

    def _uniform(self, positions_N: IntArray, epoch: int, step: int, slot: int) -> FloatArray:
        return uniform(positions_N, seed=self._seed, stream=_STREAM, epoch=epoch, step=step, slot=slot)

    def _rows(self, uniform_N: FloatArray) -> IntArray:
        if self._cumulative_N is None:
            return (uniform_N * self._items).astype(np.int64)
        return np.minimum(np.searchsorted(self._cumulative_N, uniform_N, side="right"), self._items - 1)
