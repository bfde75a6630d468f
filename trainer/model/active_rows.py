"""Active rows: the rows of a table that a step uses, each once, and which use belongs to which row.

    active = ActiveRows.of(np.array([7, 3, 7]))
    active.rows_A                               # [3, 7]: what is pulled and pushed
    active.rows_A[active.index_N]               # [7, 3, 7]: the uses again

Shapes: N uses, A active rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from kvstore.arrays import IntArray


@dataclass(frozen=True)
class ActiveRows:
    """The distinct rows among the uses of one table, with the mapping in both directions. All arrays are int64.

    Attributes:
        rows_A: the active rows, sorted.
        index_N: use n is of row ``rows_A[index_N[n]]``.
        order_N: the uses, ordered by row; a row's uses keep their order, so that gradients are summed in a fixed order.
        starts_A1: the uses of active row a are ``order_N[starts_A1[a]:starts_A1[a + 1]]``.
    """

    rows_A: IntArray
    index_N: IntArray
    order_N: IntArray
    starts_A1: IntArray

    @staticmethod
    def of(uses_N: IntArray) -> ActiveRows:
        """Group ``uses_N``, int64 rows in any order."""
        order_N = np.argsort(uses_N, kind="stable")
        rows_A, index_N, starts_A1 = _group(uses_N, order_N)
        return ActiveRows(rows_A, index_N, order_N, starts_A1)


@njit(cache=True, nogil=True)
def _group(uses_N, order_N):  # type: ignore[no-untyped-def]
    count = uses_N.shape[0]
    rows_A = np.empty(count, np.int64)
    starts_A = np.empty(count + 1, np.int64)
    index_N = np.empty(count, np.int64)
    active = 0
    for n in range(count):
        use = order_N[n]
        if n == 0 or uses_N[use] != rows_A[active - 1]:
            rows_A[active] = uses_N[use]
            starts_A[active] = n
            active += 1
        index_N[use] = active - 1
    starts_A[active] = count
    return rows_A[:active].copy(), index_N, starts_A[: active + 1].copy()
