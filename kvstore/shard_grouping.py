"""Group rows by the shard that holds them. Shapes: A rows of a request, P shards."""

from __future__ import annotations

import numpy as np

from crossfade.kvstore.jit import njit


@njit(cache=True, error_model="numpy")
def group_by_shard(rows_A, num_shards):  # type: ignore[no-untyped-def]
    """Sort rows by shard, keeping the order within each.

    Row r is in shard r mod P, at position r // P. Returns the permutation and the position of each row within its
    shard, both int64, and where each shard starts in them.
    """
    rows = rows_A.shape[0]
    starts_P = np.zeros(num_shards + 1, dtype=np.int64)
    shard_A, offset_A = np.empty(rows, dtype=np.int32), np.empty(rows, dtype=np.int64)
    for a in range(rows):
        offset = rows_A[a] // num_shards
        p = rows_A[a] - offset * num_shards
        shard_A[a], offset_A[a] = p, offset
        starts_P[p + 1] += 1
    for p in range(num_shards):
        starts_P[p + 1] += starts_P[p]
    next_P = starts_P[:-1].copy()
    order_A, positions_A = np.empty(rows, dtype=np.int64), np.empty(rows, dtype=np.int64)
    for a in range(rows):
        p = shard_A[a]
        order_A[next_P[p]], positions_A[next_P[p]] = a, offset_A[a]
        next_P[p] += 1
    return order_A, positions_A, starts_P
