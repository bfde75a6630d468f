"""The comparison of two runs: the test and the interval against plain ones."""

import itertools

import numpy as np
import pytest

from crossfade.trainer.evaluation.comparison import (
    MAX_UNITS,
    confidence_interval,
    holm,
    permutation_test,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("size", "zeros"), [(2, 4), (3, 0), (7, 4), (11, 0)])
def test_p_of_few_differences_counts_all_permutations(size: int, zeros: int) -> None:
    difference_N = np.random.default_rng(size).normal(0.4, 0.5, size)
    signs = np.array(list(itertools.product([-1, 1], repeat=size)))
    means = np.abs(signs @ difference_N)
    expected = (means >= abs(difference_N.sum()) - 1e-12).mean()
    assert permutation_test(np.append(difference_N, np.zeros(zeros))) == pytest.approx(expected)
    assert permutation_test(-difference_N) == pytest.approx(expected)


@pytest.mark.parametrize(("size", "effect"), [(400, 0.0), (400, 3.0), (3 * MAX_UNITS, 2.0)])
def test_p_and_interval_of_many_differences_are_close_to_those_of_the_t_test(size: int, effect: float) -> None:
    from scipy import stats  # type: ignore[import-untyped]  # it takes a second

    difference_N = np.random.default_rng(8).choice([-0.5, -0.1, 0.2, 0.4], size)
    error = difference_N.std(ddof=1) / np.sqrt(size)
    difference_N += effect * error - difference_N.mean()
    expected = stats.ttest_1samp(difference_N, 0.0)
    assert permutation_test(difference_N) == pytest.approx(expected.pvalue, abs=0.02)
    low, high = confidence_interval(difference_N)
    assert [low, high] == pytest.approx([*expected.confidence_interval()], abs=0.15 * error)


def test_holm_correction_matches_a_case_worked_by_hand() -> None:
    # Sorted: 0.005·4, 0.01·3, 0.03·2, and 0.04·1, which may not be below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
