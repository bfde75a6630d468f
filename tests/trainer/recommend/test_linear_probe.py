"""Linear probes: what is fitted to dense and sparse features, how strengths are chosen, and metrics of rankings."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.recommend.linear_probe import (
    STRENGTHS,
    can_be_ranked,
    choose_strength,
    choosing_steps,
    fit_and_score,
    fit_label,
    rank_metrics,
    sigmoid,
)

pytestmark = pytest.mark.slow  # scikit-learn is imported


class CountingReporter(NullReporter):
    """Counts the units of progress."""

    def __init__(self) -> None:
        self.units = 0

    def advance(self, amount: int) -> None:
        self.units += amount


def test_metrics_of_a_small_ranking() -> None:
    has_NL = np.array([[1, 0, 1], [0, 1, 1], [1, 1, 1]], np.bool_)
    score_NL = np.array([[0.9, 0.3, 0], [0.8, 0.6, 0], [0.7, 0.2, 0]], np.float32)
    found = rank_metrics(has_NL, score_NL)  # the third label is left out
    # By label: the rows 0, 1, 2 with the first and the last right; the rows 1, 0, 2 with the same places right.
    assert found["roc_auc"] == pytest.approx(0.5)
    assert found["pr_auc"] == pytest.approx((1 + 2 / 3) / 2)
    # In one ranking: right, wrong, right, right, wrong, right.
    assert found["pr_auc_micro"] == pytest.approx((1 + 2 / 3 + 3 / 4 + 4 / 6) / 4)
    assert found["precision@1"] == pytest.approx(2 / 3)


def test_labels_of_all_or_no_rows_cannot_be_ranked() -> None:
    assert can_be_ranked(np.array([[1, 0, 1], [0, 0, 1]], np.bool_)).tolist() == [True, False, False]


@pytest.mark.parametrize("sparse", [False, True])
def test_probabilities_follow_the_planted_direction(sparse: bool) -> None:
    random = np.random.default_rng(1)
    features_ND = random.normal(size=(2000, 4))
    has_N = random.random(2000) < sigmoid(features_ND @ np.array([2.0, 0, -1, 0]) + 1.0)
    weight_D, bias = fit_label(csr_matrix(features_ND) if sparse else features_ND, has_N, 10.0)
    np.testing.assert_allclose([*weight_D, bias], [2, 0, -1, 0, 1], atol=0.25)


def test_label_of_all_or_no_rows_keeps_its_frequency() -> None:
    features_ND = np.random.default_rng(1).normal(size=(9, 3))
    for has_N, expected in ((np.ones(9, np.bool_), 0.95), (np.zeros(9, np.bool_), 0.05)):
        weight_D, bias = fit_label(features_ND, has_N, 1.0)
        assert not weight_D.any()
        assert sigmoid(np.array([bias]))[0] == pytest.approx(expected)


def test_strength_is_chosen_by_rows_that_are_not_fitted() -> None:
    random = np.random.default_rng(1)
    # Two informative columns of 60, and few rows: without regularization, the noise is fitted.
    noisy_ND = random.normal(size=(120, 60))
    noisy = noisy_ND[:, :2] @ random.normal(size=(2, 3)) + random.normal(size=(120, 3)) > 0
    fitted_N, validated_N = np.arange(40), np.arange(40, 120)
    reporter = CountingReporter()
    chosen = choose_strength(noisy_ND, noisy, fitted_N, validated_N, reporter)
    assert reporter.units == choosing_steps(3) == 3 * len(STRENGTHS)
    quality = {
        strength: rank_metrics(
            noisy[validated_N], fit_and_score(noisy_ND, noisy, fitted_N, validated_N, strength, NullReporter())
        )["pr_auc"]
        for strength in STRENGTHS
    }
    assert chosen == max(STRENGTHS, key=lambda strength: quality[strength])
    assert len(set(quality.values())) > 1
    assert choosing_steps(10_000) == 50 * len(STRENGTHS)
