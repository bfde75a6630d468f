"""K-th highest scores of rows of any length, with ties, and estimates of them from negatives that stand for items."""

import numpy as np
import pytest

from crossfade.trainer.model.top_k_kernels import kept_scores, kth_score, sampled_kth_score

SCALE = np.float32(2.0)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["any", "rising", "falling", "tied"])
def test_kth_score_is_that_of_sorted_scores(order: str) -> None:
    draws = np.random.default_rng(1)
    for count in (1, 15, 64, 65, 200, 1000):
        row_C, offset_C = draws.normal(size=(2, count)).astype(np.float32)
        if order == "tied":
            row_C, offset_C = draws.integers(-2, 3, count).astype(np.float32), np.zeros(count, np.float32)
        if order in {"rising", "falling"}:
            row_C = np.sort(row_C)[:: 1 if order == "rising" else -1].copy()
        sorted_C = -np.sort(-(SCALE * row_C - offset_C))
        for k in (1, 2, 20, 64, 65, 300):
            found = kth_score(row_C, offset_C, SCALE, k, np.empty(kept_scores(k), np.float32))
            assert found == sorted_C[min(k, count) - 1], (count, k)


def test_negatives_count_by_the_items_that_they_stand_for() -> None:
    scores_C = np.array([3.0, -np.inf, 1.0, 0.0, 2.0], np.float32)
    shares_C = np.array([5.0, 90.0, 0.5, 7.0, 0.0], np.float32)
    # From the highest: 3 stands for 5 items, the item itself, 1.5, is the 6th, 1 adds half of one, and 0 seven more.
    for k, expected in ((1, 3.0), (5, 3.0), (6, 1.5), (7, 0.0), (13, 0.0), (99, 0.0)):
        assert sampled_kth_score(scores_C, shares_C, np.float32(1.5), k) == pytest.approx(expected, abs=1e-5), k


def test_item_without_negatives_is_the_lowest() -> None:
    nothing = np.empty(0, np.float32)
    assert sampled_kth_score(nothing, nothing, np.float32(0.25), 20) == 0.25
