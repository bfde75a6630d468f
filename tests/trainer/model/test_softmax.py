"""Powers of rows of scores, in explicit vector code: accurate, and with NaN where a score is."""

import numpy as np
import pytest

from crossfade.trainer.model.softmax_kernels import store_powers

pytestmark = pytest.mark.numbers


@pytest.mark.parametrize("count", [1, 16, 63, 64, 20_001])
def test_powers_are_accurate_to_two_ulp(count: int) -> None:
    # The row has dot products: a score is half of one, less an offset.
    score_C = np.linspace(-87, 0, count).astype(np.float32)
    offset_C = np.linspace(-3, 3, count).astype(np.float32)
    row_C = 2 * (score_C + offset_C)
    expected_C = np.exp((row_C * np.float32(0.5) - offset_C).astype(np.float64))
    total = store_powers(row_C, offset_C, np.float32(0.5), np.float32(0.0))
    assert (np.abs(row_C - expected_C) / np.spacing(expected_C.astype(np.float32))).max() < 2
    assert total == pytest.approx(expected_C.sum(), rel=1e-6)


def test_powers_are_clamped_below_their_range_and_propagate_nan() -> None:
    row_C = np.array([-1000, -np.inf, -87, np.nan, 0], np.float32)
    store_powers(row_C, np.zeros(5, np.float32), np.float32(1.0), np.float32(0.0))
    assert row_C[0] == row_C[1] == row_C[2] == pytest.approx(np.exp(-87.0), rel=1e-5)
    assert np.isnan(row_C[3])
    assert row_C[4] == 1.0
