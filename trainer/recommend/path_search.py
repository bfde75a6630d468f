"""Search the smoothest path through rows in a given order, with limits per group.

    path_K = least_sum_path(unit_ID, length=10, limits=None)

A path has the least sum of the fourth powers of the angles between consecutive rows, which dynamic programming finds.
The fourth power lies between the sum of the angles, which tolerates one long jump, and their maximum, which does not
distinguish the others.

Limits per group are kept by Lagrangian relaxation: every row costs the prices of its groups, which rise while a path
has too many rows of a group, and fall while it has room. The path that is found keeps the limits, but need not be the
best that does; where few rows are left, none may be found although there is one.

Shapes: I rows in order, K places of a path, G groups, N elements of anything else.
"""

from __future__ import annotations

import numpy as np

from crossfade.base.arrays import BoolArray, FloatArray, IntArray
from crossfade.kvstore.jit import njit

_PRICE_STEPS = 40


class GroupLimits:
    """Limits the rows of each group on a path. Both ends count, but are never left out."""

    def __init__(self, place_N: IntArray, group_N: IntArray, rows: int, max_per_group: int) -> None:
        """Limit groups to ``max_per_group`` rows each; row ``place_N[n]``, of ``rows``, is in ``group_N[n]``."""
        from scipy.sparse import csr_matrix

        groups, number_N = np.unique(group_N, return_inverse=True)
        is_end_N = (place_N == 0) | (place_N == rows - 1)
        ends_G = np.bincount(number_N[is_end_N], minlength=len(groups))
        shape = rows, len(groups)
        between_N = ~is_end_N
        self._member_IG = csr_matrix(
            (np.ones(int(between_N.sum())), (place_N[between_N], number_N[between_N])), shape=shape
        )
        self._room_G = np.maximum(0, max_per_group - ends_G)

    def excess(self, path_K: IntArray) -> FloatArray:
        """Return how many rows of each group a path has beyond its limit, negative where it has room, float64 (G,)."""
        excess_G: FloatArray = self._member_IG[path_K].sum(axis=0).A1 - self._room_G
        return excess_G

    def prices(self, price_G: FloatArray) -> FloatArray:
        """Return the sum of the prices of each row's groups, float64 (I,)."""
        price_I: FloatArray = self._member_IG @ price_G
        return price_I

    def surplus(self, path_K: IntArray) -> BoolArray:
        """Return the rows of the group that ``path_K`` has most too often, but the first it has room for, bool (I,)."""
        group = int(self.excess(path_K).argmax())
        surplus_I: BoolArray = self._member_IG[:, [group]].toarray()[:, 0] > 0
        surplus_I[path_K[surplus_I[path_K]][: self._room_G[group]]] = False
        return surplus_I


def least_sum_path(unit_ID: FloatArray, length: int, limits: GroupLimits | None) -> IntArray | None:
    """Return the path of ``length`` places from the first row to the last; None if there is none.

    Args:
        unit_ID: unit vectors in the order that a path visits them in.
        length: places of the path, at least 2.
        limits: limits per group, if any.
    """
    unit_ID = unit_ID.astype(np.float32)
    cost_II = np.arccos(np.clip(unit_ID @ unit_ID.T, -1, 1)) ** 4
    price_I = np.zeros(len(unit_ID))
    path_K = _search(cost_II, price_I, length)
    if path_K is None or limits is None or (limits.excess(path_K) <= 0).all():
        return path_K
    found_K = _search_by_prices(cost_II, length, limits, path_K)
    while found_K is None:
        # No price was right: leave rows out, group by group. Each time one of the path is left out, so this ends.
        price_I[limits.surplus(path_K)] = np.inf
        path_K = _search(cost_II, price_I, length)
        if path_K is None or (limits.excess(path_K) <= 0).all():
            return path_K
    return found_K


def _search_by_prices(cost_II: FloatArray, length: int, limits: GroupLimits, path_K: IntArray) -> IntArray | None:
    """Return the best path within ``limits`` that prices lead to; ``path_K`` is the one without prices."""
    step = cost_II[path_K[:-1], path_K[1:]].mean()
    price_G, best_K, best_cost = np.zeros(len(limits.excess(path_K))), None, np.inf
    for number in range(1, _PRICE_STEPS + 1):
        price_G = np.maximum(0, price_G + step / np.sqrt(number) * limits.excess(path_K))
        found_K = _search(cost_II, limits.prices(price_G), length)
        assert found_K is not None
        path_K = found_K
        cost = float(cost_II[path_K[:-1], path_K[1:]].sum())
        if cost < best_cost and (limits.excess(path_K) <= 0).all():
            best_K, best_cost = path_K, cost
    return best_K


def _search(cost_II: FloatArray, price_I: FloatArray, length: int) -> IntArray | None:
    path_K: IntArray = _least_sum_path(cost_II, price_I, length)
    return path_K if path_K[0] == 0 else None


@njit(cache=True)
def _least_sum_path(cost_II, price_I, length):  # type: ignore[no-untyped-def]
    """Return the places of the best path; all -1 if there is none."""
    rows = cost_II.shape[0]
    total_I = np.full(rows, np.inf)
    total_I[0] = 0.0
    previous_KI = np.zeros((length, rows), np.int64)
    for k in range(1, length):
        next_I = np.full(rows, np.inf)
        for before in range(rows):
            if total_I[before] < np.inf:
                for after in range(before + 1, rows):
                    total = total_I[before] + cost_II[before, after] + price_I[after]
                    if total < next_I[after]:
                        next_I[after] = total
                        previous_KI[k, after] = before
        total_I = next_I
    path_K = np.full(length, -1, np.int64)
    if total_I[-1] < np.inf:
        path_K[-1] = rows - 1
        for k in range(length - 1, 0, -1):
            path_K[k - 1] = previous_KI[k, path_K[k]]
    return path_K
