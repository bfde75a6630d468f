"""Threads that claim chunks of a loop share it out completely."""

import numba
import numpy as np
import pytest
from numba import njit, prange

from crossfade.kvstore.threads import claim_chunk

REPEATS = 5


@njit(parallel=True)
def _claims(count, size, threads):  # type: ignore[no-untyped-def]
    """Return the chunks that each thread claims, -1 where there is none."""
    claimed_TN = np.full((threads, count), -1)
    next_1 = np.zeros(1, np.int64)
    for t in prange(threads):
        number = 0
        begin = claim_chunk(next_1, size)
        while begin < count:
            claimed_TN[t, number] = begin
            number += 1
            begin = claim_chunk(next_1, size)
    return claimed_TN


@pytest.mark.parametrize("count", [0, 1, 7, 500_000])
@pytest.mark.parametrize("size", [1, 7])
def test_each_chunk_is_claimed_once(count: int, size: int) -> None:
    for _ in range(REPEATS):
        claimed_TN = _claims(count, size, numba.get_num_threads())
        claimed_N = np.sort(claimed_TN[claimed_TN >= 0])
        np.testing.assert_array_equal(claimed_N, np.arange(0, count, size))
