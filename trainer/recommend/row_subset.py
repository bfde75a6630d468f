"""Rank a few rows of a table, such as those on a list, without reading the others.

    subset = RowSubset(model.vectors, model.spec.item, rows_P)
    ranker = Ranker(subset, subset.table, model.score, subset.candidates(candidates))
    places_QK, scores_QK = ranker.rank(query_QD, subset.places(excluded), count=10)
    subset.rows(places_QK)

A row's place is its position among the rows of the subset.

Shapes: P places, Q queries, K ranks, R rows of the table, N rows or elements of lists, D columns.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.embeddings.files import VectorSource
from crossfade.trainer.evaluation.held_out import ItemLists
from crossfade.trainer.recommend.candidates import Candidates
from crossfade.trainer.recommend.metadata_table import GroupLists


class RowSubset:
    """Some rows of a table, as a source of vectors by place."""

    def __init__(self, source: VectorSource, table: TableSpec, rows_P: IntArray) -> None:
        """Use ``rows_P`` of ``table``, int64, sorted and unique, whose vectors ``source`` provides."""
        self._source = source
        self._rows_P = rows_P
        self._all_rows = table.rows
        self.table = replace(table, rows=len(rows_P))

    def vectors(self, entity: str, places_N: IntArray) -> FloatArray:
        """Return the vectors at ``places_N``, int64, sorted and unique: float32 (N, D)."""
        return self._source.vectors(entity, self._rows_P[places_N])

    def candidates(self, candidates: Candidates) -> Candidates:
        """Return ``candidates`` of the table by place."""
        groups = candidates.groups
        if groups is None:
            return Candidates(candidates.kept_R[self._rows_P])
        starts_P, stops_P = groups.starts_R1[self._rows_P], groups.starts_R1[self._rows_P + 1]
        values = [groups.values_N[start:stop] for start, stop in zip(starts_P, stops_P, strict=True)]
        starts_P1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(stops_P - starts_P)])
        values_N = np.concatenate([np.empty(0, np.int64), *values])
        of_places = GroupLists(starts_P1, values_N, groups.names)
        return Candidates(candidates.kept_R[self._rows_P], of_places, candidates.max_per_group)

    def places(self, lists: ItemLists) -> ItemLists:
        """Return ``lists`` of rows as lists of places, without the rows outside the subset."""
        is_member_R = np.zeros(self._all_rows, np.bool_)
        is_member_R[self._rows_P] = True
        kept = lists.filter_items(is_member_R)
        return ItemLists(kept.starts_Q1, np.searchsorted(self._rows_P, kept.items_N))

    def rows(self, places_QK: IntArray) -> IntArray:
        """Return the rows at ``places_QK``; -1 remains -1."""
        return np.where(places_QK >= 0, self._rows_P[places_QK], -1)
