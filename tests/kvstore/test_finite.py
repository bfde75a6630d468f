"""Rows with values that are not finite, or that are large, are found."""

import numpy as np
import pytest

from crossfade.kvstore.finite import find_largest_row, find_non_finite_row


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(9, 3), (9,)])
def test_first_row_that_is_not_finite_is_found(value: float, shape: tuple[int, ...]) -> None:
    values = np.full(shape, 3e38, np.float32)
    assert find_non_finite_row(values) is None
    values[[4, 7]] = value
    assert find_non_finite_row(values) == 4


def test_empty_arrays_and_integers_are_finite() -> None:
    assert find_non_finite_row(np.empty((0, 3), np.float32)) is None
    assert find_non_finite_row(np.array([7], np.int32)) is None


@pytest.mark.parametrize(("value", "row"), [(np.nan, 2), (np.inf, 2), (-1e18, 2), (1e17, None)])
def test_largest_row_is_found_beyond_the_bound(value: float, row: int | None) -> None:
    values_ND = np.ones((4, 3), np.float32)
    values_ND[2, 1] = value
    assert find_largest_row(values_ND, 1e17) == row
    assert find_largest_row(values_ND[:0], 1e17) is None
