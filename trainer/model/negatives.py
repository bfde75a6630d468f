"""Sample negatives: the items that an interaction is contrasted with.

    sampler = NegativeSampler(job.negatives, items, counts_N, seed=1)
    rows_N = sampler.draw(batch_slice, epoch=0, step=0)

A draw depends on the seed, the epoch, the step and a position: within the pool, or of the example in the global batch.
It does not depend on the worker, so several workers contrast the same examples with the same items as one would.

In-batch negatives (``in_batch`` and, next to a pool, ``mixed``) do not depend on the number of workers either: an
example is contrasted with the items of its partition in that step, and a partition is read by exactly one worker.

Shapes: N draws or items, B examples.
"""

from __future__ import annotations

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.kvstore.philox import uniform
from crossfade.trainer.config.sections import NegativesConfig
from crossfade.trainer.data.schedule import BatchSlice

IN_BATCH_KINDS = frozenset({"in_batch", "mixed"})
"""Kinds of negatives that include the items of other examples."""

_STREAM = "negatives"
"""Label of the random stream; it seeds the draws, so it never changes."""
_MIN_EXPECTED_DRAWS = 1e-12


def needs_counts(spec: NegativesConfig, warm_only: bool) -> bool:
    """Return whether a ``NegativeSampler`` needs the items' counts in train."""
    return warm_only or spec.sampling == "popularity" or (spec.logq_correction and spec.kind in IN_BATCH_KINDS)


class NegativeSampler:
    """Draws the negatives of a step, and computes their logQ correction."""

    def __init__(
        self, spec: NegativesConfig, items: int, counts_N: IntArray | None, seed: int, warm_only: bool = False
    ) -> None:
        """Prepare to draw among ``items`` rows.

        Args:
            spec: kind, number and distribution of the negatives, with ``auto`` resolved.
            items: rows of the item table.
            counts_N: interactions of each item in train, int64 (items,); required where ``needs_counts`` is true.
            seed: of the draws.
            warm_only: whether items without an interaction in train are never drawn; else they count as having one.
        """
        self._spec = spec
        self._items = items
        self._seed = seed
        self._cumulative_N: FloatArray | None = None
        if warm_only or spec.sampling == "popularity":
            assert counts_N is not None
            assert len(counts_N) == items
            self._cumulative_N = _cumulative_probability(spec, counts_N, warm_only)
        self._all_N = np.empty(0, np.int64)
        if spec.kind == "all":
            self._all_N = np.arange(items) if not warm_only or counts_N is None else np.flatnonzero(counts_N)
        self._counts_N = counts_N if spec.logq_correction else None
        self._interactions = 0 if counts_N is None else int(counts_N.sum())

    @property
    def draws_per_example(self) -> bool:
        """Whether each example has negatives of its own."""
        return self._spec.kind == "per_example"

    def draw(self, batch_slice: BatchSlice, epoch: int, step: int) -> IntArray:
        """Draw rows of the item table, int64: a pool (C,), or ``count`` for each example of the slice (B·count,).

        In-batch negatives are not included.
        """
        if len(batch_slice.interactions) == 0 or self._spec.kind == "in_batch":
            return np.empty(0, dtype=np.int64)
        if self._spec.kind == "all":
            return self._all_N
        if self._spec.kind in {"shared", "mixed"}:
            return self._rows(self._uniform(np.arange(self._spec.count), epoch, step, slot=0))
        draws_BN = np.empty((len(batch_slice.positions_B), self._spec.count))
        for slot in range(self._spec.count):
            draws_BN[:, slot] = self._uniform(batch_slice.positions_B, epoch, step, slot)
        return self._rows(draws_BN.ravel())

    def log_q(self, rows_N: IntArray, batch_slice: BatchSlice) -> FloatArray:
        """Compute the log of how often each of ``rows_N`` is expected among an example's negatives, float32 (N,).

        An item is expected among in-batch negatives in proportion to its count. Empty without logQ correction.
        """
        if not self._spec.logq_correction or len(batch_slice.interactions) == 0:
            return np.empty(0, np.float32)
        expected_N = np.zeros(len(rows_N))
        if self._spec.kind != "in_batch":
            expected_N += self._spec.count * self._probability(rows_N)
        if self._spec.kind in IN_BATCH_KINDS:
            assert self._counts_N is not None
            expected_N += (
                batch_slice.global_size
                / batch_slice.partitions
                * np.maximum(self._counts_N[rows_N], 1)
                / self._interactions
            )
        # An item with probability 0 may still be an example's positive.
        log_N: FloatArray = np.log(np.maximum(expected_N, _MIN_EXPECTED_DRAWS)).astype(np.float32)
        return log_N

    def _probability(self, rows_N: IntArray) -> FloatArray:
        """Return the probability that one draw is each of ``rows_N``, float64 (N,)."""
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


def _cumulative_probability(spec: NegativesConfig, counts_N: IntArray, warm_only: bool) -> FloatArray:
    power = spec.power if spec.sampling == "popularity" else 0.0
    mass_N = np.maximum(counts_N, 1).astype(np.float64) ** power
    if warm_only:
        mass_N[counts_N == 0] = 0.0
    summed_N = np.cumsum(mass_N)
    # Divided by its own last value, the sum reaches 1 at the last item with mass, so that no draw lies beyond it.
    cumulative_N: FloatArray = summed_N / (summed_N[-1] if warm_only else mass_N.sum())
    return cumulative_N
