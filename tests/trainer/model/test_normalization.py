"""Rows of unit length and gradients through them: the same bits for few rows, in one thread, and for many."""

import numpy as np
import pytest
from builders import random_rows

from crossfade.kvstore.threads import MIN_PARALLEL_VALUES
from crossfade.trainer.model.kernel_arguments import ScoreScales
from crossfade.trainer.model.normalization_kernels import normalize, through_normalize
from crossfade.trainer.model.pool_kernels import sum_chunks

pytestmark = pytest.mark.numbers

ROWS, DIM = 8_001, 33
HALVES = np.array_split(np.arange(ROWS), 2)


def test_few_rows_are_normalized_as_many_are() -> None:
    assert ROWS // 2 * DIM < MIN_PARALLEL_VALUES < ROWS * DIM
    rows_AD, gradient_AD = random_rows(ROWS, DIM, seed=1), random_rows(ROWS, DIM, seed=2)
    unit_AD, norm_A = normalize(rows_AD)
    through_AD = gradient_AD.copy()
    through_normalize(through_AD, unit_AD, norm_A)
    np.testing.assert_allclose(np.linalg.norm(unit_AD, axis=1), 1, rtol=1e-6)
    for half in HALVES:
        of_half_AD, norm_of_half_A = normalize(rows_AD[half])
        np.testing.assert_array_equal(of_half_AD, unit_AD[half])
        through_half_AD = gradient_AD[half]
        through_normalize(through_half_AD, of_half_AD, norm_of_half_A)
        np.testing.assert_array_equal(through_half_AD, through_AD[half])


def test_sums_of_few_rows_are_those_of_many() -> None:
    sums_KAD, slope_KA, item_AD = (
        np.stack([random_rows(ROWS, DIM, seed=seed) for seed in range(3)]),
        random_rows(3, ROWS, seed=3),
        random_rows(ROWS, DIM, seed=4),
    )
    scales = ScoreScales(np.float32(0.5), np.float32(0.25))
    expected_AD = sum_chunks(sums_KAD, slope_KA, item_AD, scales)
    for half in HALVES:
        of_half = np.ascontiguousarray(sums_KAD[:, half]), np.ascontiguousarray(slope_KA[:, half]), item_AD[half]
        np.testing.assert_array_equal(sum_chunks(*of_half, scales), expected_AD[half])
