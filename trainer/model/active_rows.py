"""Active rows: the rows of a table that a step uses, each once, and which use belongs to which row.

    active = ActiveRows.of(np.array([7, 3, 7]))
    active.rows_A                               # [3, 7]: what is pulled and pushed
    active.rows_A[active.index_N]               # [7, 3, 7]: the uses again

Shapes: N uses, A active rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvstore.arrays import IntArray
from kvstore.jit import njit

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

    @staticmethod
    def of(uses_N: IntArray) -> ActiveRows:
        """Group ``uses_N``, int64 rows in any order, none below 0, fewer than 2^31 of them."""
        assert len(uses_N) < _MAX_USES
        return ActiveRows(uses_N, *_group(uses_N, _stable_order(uses_N)))


@njit(cache=True, nogil=True)
def _stable_order(uses_N):  # type: ignore[no-untyped-def]
    """Return the permutation that sorts ``uses_N``, stable: a radix sort, from the lowest digit of the rows up."""
    count = uses_N.shape[0]
    largest = np.int64(0)
    for n in range(count):
        largest = max(largest, uses_N[n])
    bits = 1
    while largest >> bits:
        bits += 1
    digits = (bits + _MAX_DIGIT_BITS - 1) // _MAX_DIGIT_BITS
    digit_bits = (bits + digits - 1) // digits
    mask = (np.int64(1) << digit_bits) - 1
    order_N, sorted_N = np.empty(count, np.int32), np.empty(count, np.int32)
    for n in range(count):
        order_N[n] = n
    next_K = np.empty(mask + 1, np.int32)
    for digit in range(digits):
        shift = digit * digit_bits
        next_K[:] = 0
        for n in range(count):
            next_K[(uses_N[n] >> shift) & mask] += 1
        first = np.int32(0)
        for k in range(mask + 1):
            next_K[k], first = first, first + next_K[k]
        for n in range(count):
            use = order_N[n]
            k = (uses_N[use] >> shift) & mask
            sorted_N[next_K[k]] = use
            next_K[k] += 1
        order_N, sorted_N = sorted_N, order_N
    return order_N


@njit(cache=True, nogil=True)
def _group(uses_N, order_N):  # type: ignore[no-untyped-def]
    count = uses_N.shape[0]
    rows_A = np.empty(count, np.int64)
    starts_A = np.empty(count + 1, np.int32)
    index_N = np.empty(count, np.int32)
    active, last = 0, np.int64(-1)
    for n in range(count):
        use = order_N[n]
        row = uses_N[use]
        if row != last:
            rows_A[active] = last = row
            starts_A[active] = n
            active += 1
        index_N[use] = active - 1
    starts_A[active] = count
    return rows_A[:active].copy(), index_N, order_N, starts_A[: active + 1].copy()
