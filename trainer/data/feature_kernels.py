"""Gather the values of features, compiled.

Shapes: R rows of the entity, A some of them, N values.
"""

from __future__ import annotations

import numpy as np

from crossfade.kvstore.jit import njit


@njit(cache=True, nogil=True)
def gather_values(starts_R1, values_N, rows_A, starts_A1):  # type: ignore[no-untyped-def]
    """Return the values of ``rows_A``, row after row, int64: those of the a-th from ``starts_A1[a]`` on."""
    out_N = np.empty(starts_A1[-1], np.int64)
    for a in range(rows_A.shape[0]):
        first = starts_R1[rows_A[a]]
        for n in range(starts_A1[a + 1] - starts_A1[a]):
            out_N[starts_A1[a] + n] = values_N[first + n]
    return out_N
