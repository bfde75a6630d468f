"""Threads share out all iterations of a loop."""

import numba
import numpy as np
import pytest

from crossfade.kvstore.jit import allocating_kernel, inner_kernel, njit
from crossfade.kvstore.threads import (
    for_chunks,
    for_chunks_by_thread,
    thread_count,
)

REPEATS = 5


@inner_kernel(cache=False)
def _count(begin, end, visits_N, step):  # type: ignore[no-untyped-def]
    for n in range(begin, end):
        visits_N[n] += step
    return end - begin


@njit(nogil=True)
def _visit(visits_N, size, step):  # type: ignore[no-untyped-def]
    return for_chunks(_count, visits_N.shape[0], size, (visits_N, step))


@pytest.mark.parametrize("count", [0, 1, 7, 500_000])
@pytest.mark.parametrize("size", [1, 7, 1_000_000])
def test_each_iteration_is_done_once(count: int, size: int) -> None:
    for _ in range(REPEATS):
        visits_N = np.zeros(count)
        assert _visit(visits_N, size, 1) == count
        assert (visits_N == 1).all()


@inner_kernel(cache=False)
def _count_by_thread(begin, end, thread, visits_KN):  # type: ignore[no-untyped-def]
    for n in range(begin, end):
        visits_KN[thread, n] += 1


@njit(nogil=True)
def _visit_by_thread(visits_KN, size):  # type: ignore[no-untyped-def]
    for_chunks_by_thread(_count_by_thread, visits_KN.shape[1], size, (visits_KN[: thread_count()],))


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 1_000_000])
def test_threads_have_numbers_below_their_count(size: int) -> None:
    for _ in range(REPEATS):
        visits_KN = np.zeros((numba.get_num_threads(), 100_000))
        _visit_by_thread(visits_KN, size)
        assert (visits_KN.sum(axis=0) == 1).all()


@pytest.mark.slow
def test_failure_of_a_thread_is_an_error() -> None:
    @allocating_kernel(cache=False)
    def fail(begin, end, limit):  # type: ignore[no-untyped-def]
        if end > limit:
            raise ValueError

    @njit()
    def run(count, size, limit):  # type: ignore[no-untyped-def]
        return for_chunks(fail, count, size, (limit,))

    assert run(100, 1, 100) == 0
    for size in (1, 100):
        with pytest.raises(MemoryError):
            run(100, size, 99)
