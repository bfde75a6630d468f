"""Context and history: queries that are combinations, such as a customer at an hour of the day on a device.

    combinations = group_combinations(interactions)     # each distinct combination once
    inputs = query_sum_inputs(combinations.query.rows_A, combinations.context_AK, combinations.history, model)

The vector of a combination is that of its query row, plus those of its context rows, plus the mean of its history
(``trainer/data/query_history.py``); row -1 of a context entity and an empty history add nothing. So an hour has one
vector, which all customers share, and a customer has one at all hours.

Shapes: N uses, A combinations, K context entities.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from crossfade.base.arrays import IntArray
from crossfade.trainer.config.model_sections import HISTORY
from crossfade.trainer.data.query_history import HistoryWindows, recency_shares
from crossfade.trainer.data.reader import Interactions
from crossfade.trainer.model.active_rows import ActiveRows
from crossfade.trainer.model.spec import ModelSpec
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


@dataclass(frozen=True)
class Combinations:
    """The distinct combinations of some interactions.

    Attributes:
        query: them as active rows, whose ``rows_A`` are their query rows, sorted but, where there is context or
            history, not unique.
        context_AK: their context rows, int64; None without context.
        history: their histories; None without.
        same_query: the same without the histories; None without.
    """

    query: ActiveRows
    context_AK: IntArray | None = None
    history: HistoryWindows | None = None
    same_query: ActiveRows | None = None


def group_combinations(interactions: Interactions) -> Combinations:
    """Group interactions by combination."""
    columns = _columns(interactions)
    if len(columns) == 1:
        return Combinations(ActiveRows.of(interactions.query_N))
    first_A, number_N = number_distinct(np.column_stack(columns))
    found = _combinations(replace(ActiveRows.of(number_N), uses_N=interactions.query_N), first_A, interactions)
    if interactions.history is None:
        return found
    return replace(found, same_query=group_combinations(replace(interactions, history=None)).query)


def sort_combinations(interactions: Interactions) -> tuple[Combinations, IntArray]:
    """Sort interactions by combination; returns their combinations and the order, as ``ActiveRows.sorted`` does."""
    columns = _columns(interactions)
    if len(columns) == 1:
        query, order_N = ActiveRows.sorted(interactions.query_N)
        return Combinations(query), order_N
    first_A, number_N = number_distinct(np.column_stack(columns))
    query, order_N = ActiveRows.sorted(number_N)
    return _combinations(replace(query, uses_N=interactions.query_N[order_N]), first_A, interactions), order_N


def _columns(interactions: Interactions) -> list[IntArray]:
    """Return what distinguishes combinations. Where there are histories, each interaction is one."""
    context = [] if interactions.context_NK is None else list(interactions.context_NK.T)
    number = [] if interactions.history is None else [np.arange(len(interactions))]
    return [interactions.query_N, *context, *number]


def _combinations(query: ActiveRows, first_A: IntArray, interactions: Interactions) -> Combinations:
    firsts = interactions.take(first_A)
    return Combinations(replace(query, rows_A=firsts.query_N), firsts.context_NK, firsts.history)


def query_sum_inputs(
    query_A: IntArray, context_AK: IntArray | None, history: HistoryWindows | None, model: ModelSpec
) -> TowerInputs:
    """Gather what the vectors of combinations are made of: the parts of ``model.query_sum``.

    Args:
        query_A: their query rows, int64.
        context_AK: their context rows; None: no combination has context.
        history: their histories; None: they are empty.
        model: names the parts.
    """
    if context_AK is None:
        context_AK = np.full((len(query_A), len(model.context)), -1)
    bags = {}
    rows = [(model.query.name, query_A)] if model.has_query_vectors else []
    for name, row_A in [*rows, *zip((table.name for table in model.context), context_AK.T, strict=True)]:
        has_A = row_A >= 0
        starts_A1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(has_A)])
        bags[name] = FeatureBag.of(row_A[has_A], starts_A1)
    if model.history is not None:
        bags[HISTORY] = history_bag(history, len(query_A), model.history.half_life)
    return TowerInputs(np.zeros(len(query_A), np.bool_), np.empty(0, np.int64), bags, None)


def history_bag(history: HistoryWindows | None, queries: int, half_life: float | None) -> FeatureBag:
    """Return the items of the histories of ``queries`` combinations, with their shares in the mean of each."""
    if history is None:
        return FeatureBag.of(np.empty(0, np.int64), np.zeros(queries + 1, np.int64))
    compact = history.compact()
    return FeatureBag.of(compact.items_S, compact.starts_N1, recency_shares(compact.starts_N1, half_life))
