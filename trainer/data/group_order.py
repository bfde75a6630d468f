"""The order of a shuffle block's rows: single rows in random order, or the rows of a query together.

    order_N = group_order(query_N, group_rows=None, seed=1, stream="shuffle", epoch=0, position=0)

A softmax over all items scores a query once for all its rows of a step. Where a step holds all interactions of a few
queries, rather than a few interactions of most queries, an epoch scores every query about once, and pulls and pushes
its row about once.

Shapes: N rows, R runs of equal queries, C chunks.
"""

from __future__ import annotations

import numpy as np

from crossfade.base.arrays import IntArray
from crossfade.kvstore.jit import njit
from crossfade.kvstore.philox import permutation


def group_order(
    query_N: IntArray, *, group_rows: int | None, seed: int, stream: str, epoch: int, position: int
) -> IntArray:
    """Return a random order of rows, int64 (N,), that keeps rows of a query together.

    Args:
        query_N: the query of each row, int64, in any order. It is fastest if the rows of a query are consecutive.
        group_rows: rows of a query that stay together, at most; None: all of them.
        seed: seed of the permutation of the chunks, as the following.
        stream: label of the random stream.
        epoch: the epoch.
        position: the position of the permutation within the epoch.
    """
    if group_rows == 1 or len(query_N) == 0:
        return permutation(len(query_N), seed=seed, stream=stream, epoch=epoch, position=position)
    starts_R = np.flatnonzero(np.concatenate([[True], query_N[1:] != query_N[:-1]]))
    sizes_R = np.diff(starts_R, append=len(query_N))
    by_query_R = np.argsort(query_N[starts_R], kind="stable")
    rows_N = concatenate_ranges(starts_R[by_query_R], sizes_R[by_query_R])
    chunk_starts_C = _chunk_starts(query_N, rows_N, group_rows or len(query_N))
    chunk_sizes_C = np.diff(chunk_starts_C, append=len(rows_N))
    order_C = permutation(len(chunk_starts_C), seed=seed, stream=stream, epoch=epoch, position=position)
    order_N: IntArray = rows_N[concatenate_ranges(chunk_starts_C[order_C], chunk_sizes_C[order_C])]
    return order_N


@njit(cache=True, error_model="numpy", nogil=True)
def concatenate_ranges(starts_R, sizes_R):  # type: ignore[no-untyped-def]
    """Return the numbers of all ranges, one range after the other: each starts at ``starts_R``, with ``sizes_R``."""
    numbers_N, n = np.empty(sizes_R.sum(), np.int64), 0
    for r in range(starts_R.shape[0]):
        for number in range(starts_R[r], starts_R[r] + sizes_R[r]):
            numbers_N[n] = number
            n += 1
    return numbers_N


@njit(cache=True, error_model="numpy", nogil=True)
def _chunk_starts(query_N, rows_N, chunk_rows):  # type: ignore[no-untyped-def]
    """Return where the chunks start in ``rows_N``, rows ordered by query: at a new query, or after ``chunk_rows``."""
    starts_C, chunks = np.empty(rows_N.shape[0], np.int64), 0
    for n in range(rows_N.shape[0]):
        is_new = n == 0 or query_N[rows_N[n]] != query_N[rows_N[n - 1]]
        if is_new or n - starts_C[chunks - 1] == chunk_rows:
            starts_C[chunks] = n
            chunks += 1
    return starts_C[:chunks].copy()
