"""Active rows: the rows of a table that a step uses, each once.

    active = ActiveRows.of(np.array([7, 3, 7]))
    active.rows_A                               # [3, 7]: what is pulled and pushed
    active.rows_A[active.index_N]               # [7, 3, 7]: the uses again

Where queries have context or histories, the active queries are ``Combinations`` of a query with these.

Shapes: N uses of a table, A active rows, K digits of a row or context entities, V values of a digit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from crossfade.base.arrays import IntArray
from crossfade.kvstore.jit import njit
from crossfade.trainer.data.query_history import HistoryWindows
from crossfade.trainer.data.reader import Interactions
from crossfade.trainer.model.kernel_arguments import Uses

_MAX_USES = 1 << 31
_MAX_DIGIT_BITS = 11
"""Bits of a digit of the radix sort: its counts fit into the first-level cache."""


@dataclass(frozen=True)
class ActiveRows:
    """The distinct rows among the uses of one table, with the mapping in both directions.

    Attributes:
        uses_N: the row of each use, int64.
        rows_A: the active rows, int64, sorted.
        index_N: use n is of row ``rows_A[index_N[n]]``; int32, as the following.
        order_N: the uses, ordered by row; a row's uses keep their order, so that gradients are summed in a fixed order.
        starts_A1: the uses of active row a are ``order_N[starts_A1[a]:starts_A1[a + 1]]``.
    """

    uses_N: IntArray
    rows_A: IntArray
    index_N: IntArray
    order_N: IntArray
    starts_A1: IntArray

    @property
    def uses(self) -> Uses:
        """Return what kernels read."""
        return Uses(self.index_N, self.order_N, self.starts_A1)

    @staticmethod
    def of(uses_N: IntArray) -> ActiveRows:
        """Group ``uses_N``, int64 rows in any order, none below 0.

        There are fewer than 2^31 of them, and their number times the largest row is below 2^62.
        """
        assert len(uses_N) < _MAX_USES
        rows_A, starts_A1, order_N, index_N, _ = _group(uses_N)
        return ActiveRows(uses_N, rows_A, index_N, order_N, starts_A1)

    @staticmethod
    def sorted(uses_N: IntArray) -> tuple[ActiveRows, IntArray]:
        """Sort ``uses_N``, and return its groups and the sorted order, int32 (N,): use n was use ``order_N[n]``."""
        assert len(uses_N) < _MAX_USES
        rows_A, starts_A1, order_N, _, index_N = _group(uses_N)
        in_order_N: IntArray = np.arange(len(uses_N)).astype(order_N.dtype)
        return ActiveRows(uses_N[order_N], rows_A, index_N, in_order_N, starts_A1), order_N


@njit(cache=True, nogil=True)
def _bits(value):  # type: ignore[no-untyped-def]
    """Return the bits of a number, at least 1."""
    bits = 1
    while value >> bits:
        bits += 1
    return bits


@njit(cache=True, nogil=True)
def _sort(uses_N, number_bits):  # type: ignore[no-untyped-def]
    """Return the sorted uses, each as its row followed by its number, of ``number_bits``.

    A radix sort, from the lowest digit of the rows up, so a row's uses keep their order. Numbers travel with their row,
    since looking up the row of a number in each pass takes longer.
    """
    count = uses_N.shape[0]
    largest = np.int64(0)
    for n in range(count):
        largest = max(largest, uses_N[n])
    row_bits = _bits(largest)
    digits = (row_bits + _MAX_DIGIT_BITS - 1) // _MAX_DIGIT_BITS
    digit_bits = (row_bits + digits - 1) // digits
    mask = (np.int64(1) << digit_bits) - 1
    source_N, target_N = np.empty(count, np.int64), np.empty(count, np.int64)
    next_KV = np.zeros((digits, mask + 1), np.int32)
    for n in range(count):
        row = uses_N[n]
        source_N[n] = row << number_bits | n
        for digit in range(digits):
            next_KV[digit, row & mask] += 1
            row >>= digit_bits
    for digit in range(digits):
        first = np.int32(0)
        for value in range(mask + 1):
            next_KV[digit, value], first = first, first + next_KV[digit, value]
        shift = number_bits + digit * digit_bits
        for n in range(count):
            value = (source_N[n] >> shift) & mask
            target_N[next_KV[digit, value]] = source_N[n]
            next_KV[digit, value] += 1
        source_N, target_N = target_N, source_N
    return source_N


@njit(cache=True, nogil=True)
def _group_dense(uses_N, largest):  # type: ignore[no-untyped-def]
    """Return what ``_group`` does by counting the uses of each row up to the ``largest``."""
    count = uses_N.shape[0]
    next_R = np.zeros(largest + 1, np.int32)
    for n in range(count):
        next_R[uses_N[n]] += 1
    rows_A, starts_A = np.empty(largest + 1, np.int64), np.empty(largest + 2, np.int32)
    order_N, index_N, sorted_index_N = np.empty(count, np.int32), np.empty(count, np.int32), np.empty(count, np.int32)
    active, first = 0, np.int32(0)
    active_R = np.empty(largest + 1, np.int32)
    for row in range(largest + 1):
        uses = next_R[row]
        if uses:
            rows_A[active], starts_A[active], active_R[row], next_R[row] = row, first, active, first
            for n in range(first, first + uses):
                sorted_index_N[n] = active
            active, first = active + 1, first + uses
    starts_A[active] = count
    for n in range(count):
        row = uses_N[n]
        order_N[next_R[row]] = n
        next_R[row] += 1
        index_N[n] = active_R[row]
    return rows_A[:active].copy(), starts_A[: active + 1].copy(), order_N, index_N, sorted_index_N


@njit(cache=True, nogil=True)
def _group(uses_N):  # type: ignore[no-untyped-def]
    """Return rows_A, starts_A1, order_N, and the active row of each use, then of each use in order."""
    count, largest = uses_N.shape[0], np.int64(0)
    for n in range(count):
        largest = max(largest, uses_N[n])
    if largest < count:
        return _group_dense(uses_N, largest)
    number_bits = _bits(count)
    sorted_N = _sort(uses_N, number_bits)
    numbers = (np.int64(1) << number_bits) - 1
    rows_A, starts_A = np.empty(count, np.int64), np.empty(count + 1, np.int32)
    order_N, index_N, sorted_index_N = np.empty(count, np.int32), np.empty(count, np.int32), np.empty(count, np.int32)
    active, last = 0, np.int64(-1)
    for n in range(count):
        row, use = sorted_N[n] >> number_bits, sorted_N[n] & numbers
        if row != last:
            rows_A[active] = last = row
            starts_A[active] = n
            active += 1
        order_N[n] = use
        index_N[use] = sorted_index_N[n] = active - 1
    starts_A[active] = count
    return rows_A[:active].copy(), starts_A[: active + 1].copy(), order_N, index_N, sorted_index_N


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
