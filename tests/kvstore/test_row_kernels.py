"""Arithmetic of rows against numpy, for rows of any length."""

import numpy as np
import pytest
from builders import random_rows
from numba import njit
from numba.core.errors import TypingError

from crossfade.kvstore import row_kernels
from crossfade.kvstore.vector_ir import LANES

DIMS = [1, 5, 15, 16, 17, 33, 64, 100]
ROWS = 4
LIMIT = np.float32(1e36)


@njit
def _dot(x_ND, n, y_MD, m):  # type: ignore[no-untyped-def]
    return row_kernels.dot(x_ND, n, y_MD, m)


@njit
def _square_of_sum(x_ND, n, factor, y_MD, m):  # type: ignore[no-untyped-def]
    return row_kernels.square_of_sum(x_ND, n, factor, y_MD, m)


@njit
def _copy_row(out_ND, n, x_MD, m):  # type: ignore[no-untyped-def]
    row_kernels.copy_row(out_ND, n, x_MD, m)


@njit
def _set_scaled(out_ND, n, factor, x_MD, m):  # type: ignore[no-untyped-def]
    row_kernels.set_scaled(out_ND, n, factor, x_MD, m)


@njit
def _add_scaled(out_ND, n, factor, x_MD, m):  # type: ignore[no-untyped-def]
    row_kernels.add_scaled(out_ND, n, factor, x_MD, m)


@njit
def _descend(out_ND, n, step_size, x_MD, m, decay, limit):  # type: ignore[no-untyped-def]
    return row_kernels.descend(out_ND, n, step_size, x_MD, m, decay, limit)


@pytest.mark.parametrize("dim", DIMS)
def test_products_and_squares_are_those_of_the_rows(dim: int) -> None:
    x_ND, y_MD = random_rows(ROWS, dim, seed=1), random_rows(ROWS, dim, seed=2)
    x_D, y_D = x_ND[2].astype(np.float64), y_MD[1].astype(np.float64)
    assert _dot(x_ND, 2, y_MD, 1) == pytest.approx(x_D @ y_D, abs=1e-5)
    assert _square_of_sum(x_ND, np.int32(2), 0.5, y_MD, 1) == pytest.approx(((x_D + 0.5 * y_D) ** 2).sum(), rel=1e-6)


def test_sum_has_sixteen_partial_sums_that_are_added_as_a_tree() -> None:
    x_ND = random_rows(1, 3 * LANES, seed=1)
    lanes_L = np.zeros(LANES)
    for part_L in np.square(x_ND.astype(np.float64)).reshape(3, LANES):
        lanes_L = (lanes_L + part_L).astype(np.float32).astype(np.float64)  # a product and a sum, rounded once
    while len(lanes_L) > 1:
        lanes_L = (lanes_L[: len(lanes_L) // 2] + lanes_L[len(lanes_L) // 2 :]).astype(np.float32).astype(np.float64)
    assert _dot(x_ND, 0, x_ND, 0) == lanes_L[0]


@pytest.mark.parametrize("dim", DIMS)
def test_only_the_row_is_changed(dim: int) -> None:
    x_MD, out_ND = random_rows(ROWS, dim, seed=1), random_rows(ROWS, dim, seed=2)
    copied_ND, set_ND, added_ND, descended_ND = (out_ND.copy() for _ in range(4))
    _copy_row(copied_ND, 2, x_MD, 1)
    _set_scaled(set_ND, 2, 0.5, x_MD, 1)
    _add_scaled(added_ND, 2, 0.5, x_MD, 1)
    assert _descend(descended_ND, 2, 0.25, x_MD, 1, 0.125, LIMIT)
    np.testing.assert_array_equal(copied_ND[2], x_MD[1])
    np.testing.assert_array_equal(set_ND[2], np.float32(0.5) * x_MD[1])
    np.testing.assert_allclose(added_ND[2], out_ND[2] + 0.5 * x_MD[1], atol=1e-6)
    np.testing.assert_allclose(descended_ND[2], out_ND[2] - 0.25 * (x_MD[1] + 0.125 * out_ND[2]), atol=1e-6)
    for changed_ND in (copied_ND, set_ND, added_ND, descended_ND):
        np.testing.assert_array_equal(np.delete(changed_ND, 2, axis=0), np.delete(out_ND, 2, axis=0))


@pytest.mark.parametrize("column", [0, 18])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2e18])
@pytest.mark.parametrize("of_gradient", [True, False])
def test_descent_is_not_within_the_limit_where_a_value_is_not(column: int, value: float, of_gradient: bool) -> None:
    x_MD, out_ND = random_rows(ROWS, 19, seed=1), random_rows(ROWS, 19, seed=2)
    if of_gradient:
        x_MD[1, column] = value
    else:
        out_ND[2, column] = value
    assert not _descend(out_ND, 2, 1e-30, x_MD, 1, 0.0, LIMIT)


@pytest.mark.parametrize("x_ND", [np.zeros((4, 8), np.float32)[:, ::2], np.zeros((4, 8)), np.zeros(8, np.float32)])
def test_other_arrays_are_rejected(x_ND: np.ndarray) -> None:
    with pytest.raises(TypingError, match="expected a contiguous float32 array with two dimensions"):
        _dot(x_ND, 0, x_ND, 0)
