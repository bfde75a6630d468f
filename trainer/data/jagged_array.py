"""Lists of integers in one array, such as the values of a feature, held-out items, or what a ranking leaves out.

    lists = JaggedArray(starts_L1, values_N)            # list l has values_N[starts_L1[l]:starts_L1[l + 1]]
    lists.take(np.array([7, 3]))

Shapes: L lists, A some of them, N values of all lists, V different values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crossfade.base.arrays import BoolArray, IntArray


@dataclass(frozen=True)
class JaggedArray:
    """Lists, one after the other: list l has ``values_N[starts_L1[l]:starts_L1[l + 1]]``.

    Both are int64. Large ones that are kept, or mapped from a file, may be int32: ``take`` returns int64.
    """

    starts_L1: IntArray
    values_N: IntArray

    @staticmethod
    def of(lists: Sequence[IntArray | Sequence[int]]) -> JaggedArray:
        """Join ``lists``."""
        parts = [np.asarray(values, np.int64) for values in lists]
        return JaggedArray(np.cumsum([0, *map(len, parts)]), np.concatenate([np.empty(0, np.int64), *parts]))

    @staticmethod
    def empty(lists: int) -> JaggedArray:
        """Return ``lists`` empty lists."""
        return JaggedArray(np.zeros(lists + 1, np.int64), np.empty(0, np.int64))

    @property
    def counts_L(self) -> IntArray:
        """The number of values of each list."""
        return np.diff(self.starts_L1)

    def places(self, lists_A: IntArray) -> tuple[IntArray, IntArray]:
        """Find the values of ``lists_A``, int64, list after list; list -1 has none.

        Returns:
            Where each list starts among these values, int64 (A + 1,), and their places in ``values_N``, int64 (N,).
        """
        from crossfade.trainer.data.query_history import concatenate_ranges  # loads numba, which takes time

        first_A = self.starts_L1[lists_A].astype(np.int64)
        counts_A = np.where(lists_A < 0, 0, self.starts_L1[lists_A + 1] - first_A)
        starts_A1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts_A)])
        return starts_A1, concatenate_ranges(first_A, counts_A)

    def take(self, lists_A: IntArray) -> JaggedArray:
        """Return ``lists_A``, int64, in this order, at a cost that does not depend on the others; list -1 is empty."""
        starts_A1, places_N = self.places(lists_A)
        return JaggedArray(starts_A1, self.values_N[places_N].astype(np.int64, copy=False))

    def filter_values(self, mask_V: BoolArray) -> JaggedArray:
        """Return the lists with only the values in ``mask_V``, bool over all values."""
        kept_N = mask_V[self.values_N]
        kept_before_N1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept_N)])
        return JaggedArray(kept_before_N1[self.starts_L1], self.values_N[kept_N])
