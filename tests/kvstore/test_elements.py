"""Unchecked access to elements of arrays in kernels."""

import numpy as np
import pytest
from numba import njit
from numba.core.errors import TypingError

from crossfade.kvstore.elements import get, lower_bound, put


@njit
def _copy_backwards(out_N, x_N):  # type: ignore[no-untyped-def]
    for n in range(x_N.shape[0]):
        put(out_N, n, get(x_N, x_N.shape[0] - 1 - n))


@njit
def _lower_bound(x_N, value):  # type: ignore[no-untyped-def]
    return lower_bound(x_N, value)


def test_lower_bound_is_the_place_that_numpy_finds() -> None:
    for x_N in (np.array([2, 3, 3, 7]), np.empty(0, np.int64), np.array([5])):
        assert [_lower_bound(x_N, value) for value in range(9)] == np.searchsorted(x_N, range(9)).tolist()


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float32])
def test_elements_are_those_of_the_numbers(dtype: type) -> None:
    x_N = np.arange(5).astype(dtype)
    out_N = np.zeros_like(x_N)
    _copy_backwards(out_N, x_N)
    np.testing.assert_array_equal(out_N, x_N[::-1])


@pytest.mark.parametrize("x_N", [np.zeros((2, 2)), np.zeros(8)[::2]])
def test_other_arrays_are_rejected(x_N: np.ndarray) -> None:
    with pytest.raises(TypingError, match="expected a contiguous array with one dimension"):
        _copy_backwards(np.zeros(4), x_N)
