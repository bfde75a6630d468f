"""Group rows by the shard that holds them, compiled."""

from __future__ import annotations

import numpy as np

from kvstore.jit import njit


@njit(cache=True)
def group_by_shard(rows_A, num_shards):  # type: ignore[no-untyped-def]
    """Sort by shard, keeping the order within each: the permutation, and where each shard starts in it."""
    starts_P = np.zeros(num_shards + 1, dtype=np.int64)
    for a in range(rows_A.shape[0]):
        starts_P[rows_A[a] % num_shards + 1] += 1
    for p in range(num_shards):
        starts_P[p + 1] += starts_P[p]
    next_P = starts_P[:-1].copy()
    order_A = np.empty_like(rows_A)
    for a in range(rows_A.shape[0]):
        p = rows_A[a] % num_shards
        order_A[next_P[p]] = a
        next_P[p] += 1
    return order_A, starts_P
