"""Vectors of 16 lanes against numpy."""

import numpy as np
import pytest
from numba import njit
from numba.core.errors import TypingError

from crossfade.base.arrays import FloatArray
from crossfade.kvstore.lanes import dot_lanes, largest_of, load, load_first, store, store_first, sum_of
from crossfade.kvstore.vector_ir import LANES


@njit
def _reduce(x_N, first):  # type: ignore[no-untyped-def]
    return sum_of(load(x_N, first)), largest_of(load(x_N, first))


@njit
def _reduce_first(x_N, first, count, fill):  # type: ignore[no-untyped-def]
    return sum_of(load_first(x_N, first, count, fill)), largest_of(load_first(x_N, first, count, fill))


@njit
def _copy(x_N, y_N, count):  # type: ignore[no-untyped-def]
    store(y_N, 0, load(x_N, 1))
    store_first(y_N, LANES, count, load(x_N, 0))


def random(count: int, seed: int = 1) -> FloatArray:
    return np.random.default_rng(seed).normal(size=count).astype(np.float32)


def test_sum_is_a_tree_of_lanes() -> None:
    x_N = random(LANES + 3)
    tree_N = x_N[3:]
    while len(tree_N) > 1:
        tree_N = tree_N[: len(tree_N) // 2] + tree_N[len(tree_N) // 2 :]
    assert _reduce(x_N, 3) == (tree_N[0], x_N[3:].max())


@pytest.mark.parametrize("count", [1, 7, 15])
def test_other_lanes_are_filled(count: int) -> None:
    x_N = np.arange(1, 20, dtype=np.float32)
    expected = x_N[2 : 2 + count].sum() + (LANES - count) * 100
    assert _reduce_first(x_N, 2, count, np.float32(100)) == (expected, 100.0)
    assert _reduce_first(x_N, 2, count, np.float32(-100))[1] == x_N[1 + count]


@pytest.mark.parametrize("count", [0, 1, 15, 16])
def test_only_first_lanes_are_stored(count: int) -> None:
    x_N, y_N = random(LANES + 1), np.zeros(2 * LANES, np.float32)
    _copy(x_N, y_N, count)
    np.testing.assert_array_equal(y_N, [*x_N[1:], *x_N[:count], *[0] * (LANES - count)])


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 64, 100])
def test_dot_product_is_accurate(count: int) -> None:
    x_N, y_N = random(count), random(count, seed=2)
    expected = np.dot(x_N.astype(np.float64), y_N.astype(np.float64))
    assert dot_lanes(x_N, y_N) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("x_N", [np.zeros(40, np.float32)[::2], np.zeros(20), np.zeros((20, 20), np.float32)])
def test_other_arrays_are_rejected(x_N: FloatArray) -> None:
    with pytest.raises(TypingError, match="expected a contiguous float32 array with one dimension"):
        dot_lanes(x_N, x_N)
