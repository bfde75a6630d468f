"""Lists of items, one for each query: what is held out, and what a ranking leaves out.

Shapes: Q queries, N items of all lists, I items, S selected queries.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crossfade.base.arrays import BoolArray, IntArray, list_places


@dataclass(frozen=True)
class ItemLists:
    """A sorted list of items for each query: query q has ``items_N[starts_Q1[q]:starts_Q1[q + 1]]``, int64."""

    starts_Q1: IntArray
    items_N: IntArray

    @staticmethod
    def empty(queries: int) -> ItemLists:
        """Return an empty list for each of ``queries`` queries."""
        return ItemLists(np.zeros(queries + 1, np.int64), np.empty(0, np.int64))

    def filter_items(self, mask_I: BoolArray) -> ItemLists:
        """Return the lists with only the items in ``mask_I``, bool over all items."""
        kept_N = mask_I[self.items_N]
        kept_before_N1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept_N)])
        return ItemLists(kept_before_N1[self.starts_Q1], self.items_N[kept_N])

    def filter_queries(self, mask_Q: BoolArray) -> ItemLists:
        """Return the lists of the queries in ``mask_Q``."""
        counts_Q = np.diff(self.starts_Q1)
        starts_Q1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts_Q[mask_Q])])
        return ItemLists(starts_Q1, self.items_N[np.repeat(mask_Q, counts_Q)])

    def take(self, queries_S: IntArray) -> ItemLists:
        """Return the lists of ``queries_S``, int64, in this order, at a cost that does not depend on the others."""
        starts_S1, places_N = list_places(self.starts_Q1, queries_S)
        return ItemLists(starts_S1, self.items_N[places_N])

    def slice(self, first: int, end: int) -> ItemLists:
        """Return the lists of queries ``first`` to ``end``."""
        starts_Q1 = self.starts_Q1[first : end + 1]
        return ItemLists(starts_Q1 - starts_Q1[0], self.items_N[starts_Q1[0] : starts_Q1[-1]])
