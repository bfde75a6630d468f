"""Context: queries that are combinations, such as a customer at an hour of the day on a device.

    query, context_AK = group_combinations(query_N, context_NK)     # each distinct combination once
    inputs = context_inputs(query.rows_A, context_AK, model.query_sum)

The vector of a combination is that of its query row plus those of its context rows; row -1 of a context entity adds
nothing. So an hour has one vector, which all customers share, and a customer has one at all hours.

Shapes: N uses, A combinations, K context entities.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from crossfade.kvstore.arrays import IntArray
from crossfade.trainer.model.active_rows import ActiveRows
from crossfade.trainer.model.spec import TowerSpec
from crossfade.trainer.model.tower_inputs import FeatureBag, TowerInputs


def number_distinct(rows_NK: IntArray) -> tuple[IntArray, IntArray]:
    """Assign numbers to the distinct rows of ``rows_NK``, int64, in lexicographic order.

    Returns:
        The first place of each, int64 (A,), and the number of each of the N rows, int64.
    """
    order_N = np.lexsort(rows_NK.T[::-1])
    is_new_N = np.ones(len(rows_NK), np.bool_)
    is_new_N[1:] = (rows_NK[order_N[1:]] != rows_NK[order_N[:-1]]).any(axis=1)
    number_N = np.empty(len(rows_NK), np.int64)
    number_N[order_N] = np.cumsum(is_new_N) - 1
    return order_N[is_new_N], number_N


def group_combinations(query_N: IntArray, context_NK: IntArray) -> tuple[ActiveRows, IntArray]:
    """Group uses by combination.

    Returns:
        The combinations as active rows, whose ``rows_A`` are their query rows, sorted but not unique, and their context
        rows, int64 (A, K).
    """
    first_A, number_N = number_distinct(np.column_stack([query_N, context_NK]))
    return replace(ActiveRows.of(number_N), uses_N=query_N, rows_A=query_N[first_A]), context_NK[first_A]


def sort_combinations(query_N: IntArray, context_NK: IntArray) -> tuple[ActiveRows, IntArray, IntArray]:
    """Sort uses by combination; returns those of ``group_combinations`` and the order, as ``ActiveRows.sorted``."""
    first_A, number_N = number_distinct(np.column_stack([query_N, context_NK]))
    query, order_N = ActiveRows.sorted(number_N)
    return replace(query, uses_N=query_N[order_N], rows_A=query_N[first_A]), context_NK[first_A], order_N


def context_inputs(query_A: IntArray, context_AK: IntArray | None, query_sum: TowerSpec) -> TowerInputs:
    """Gather what the vectors of combinations are made of: the vectors of ``query_sum.features``, of each at most one.

    ``context_AK`` None: no combination has context.
    """
    if context_AK is None:
        context_AK = np.full((len(query_A), len(query_sum.features) - 1), -1)
    bags = {}
    for table, row_A in zip(query_sum.features, [query_A, *context_AK.T], strict=True):
        has_A = row_A >= 0
        starts_A1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(has_A)])
        bags[table.name] = FeatureBag.of(row_A[has_A], starts_A1)
    return TowerInputs(np.zeros(len(query_A), np.bool_), np.empty(0, np.int64), bags, None)
