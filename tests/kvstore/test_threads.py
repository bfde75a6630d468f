"""Threads that claim chunks of a loop share it out completely."""

import numba
import numpy as np
import pytest
from numba import njit, prange

from kvstore.threads import claim_chunk


@njit(parallel=True)
def _count_iterations(counts_N, size, threads):  # type: ignore[no-untyped-def]
    next_1 = np.zeros(1, np.int64)
    for _ in prange(threads):
        begin = claim_chunk(next_1, size)
        while begin < counts_N.shape[0]:
            counts_N[begin : begin + size] += 1
            begin = claim_chunk(next_1, size)


@pytest.mark.parametrize("count", [0, 1, 7, 10_000])
@pytest.mark.parametrize("size", [1, 7])
def test_each_iteration_belongs_to_one_thread(count: int, size: int) -> None:
    counts_N = np.zeros(count, np.int64)
    _count_iterations(counts_N, size, numba.get_num_threads())
    assert (counts_N == 1).all()
