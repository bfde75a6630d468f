"""Vectorized eˣ and log(1 + eˣ) against float64."""

import math

import numpy as np
import pytest

from crossfade.trainer.model.loss_math import exp, log1p_of_exp

pytestmark = pytest.mark.numbers


def test_exp_is_accurate_to_one_ulp() -> None:
    x_N = np.concatenate([np.linspace(-87, 88, 20_001), np.linspace(-1, 1, 2_001)]).astype(np.float32)
    expected_N = np.exp(x_N.astype(np.float64))
    found_N = np.array([exp(x) for x in x_N])
    assert (np.abs(found_N - expected_N) / np.spacing(expected_N.astype(np.float32))).max() < 1.01
    assert exp(np.float32(0.0)) == 1.0


def test_exp_clamps_below_its_range_and_propagates_nan() -> None:
    assert exp(np.float32(-1000.0)) == exp(np.float32(-np.inf)) == exp(np.float32(-87.0)) > 0.0
    assert math.isnan(exp(np.float32(np.nan)))


def test_log1p_of_exp_is_accurate_over_its_range() -> None:
    e_N = np.concatenate([np.linspace(0, 1, 10_001), np.geomspace(1e-37, 1, 2_001)]).astype(np.float32)
    found_N = np.array([log1p_of_exp(e) for e in e_N])
    np.testing.assert_allclose(found_N, np.log1p(e_N.astype(np.float64)), rtol=3e-7, atol=0)
