"""K-th highest scores of rows of any length, with ties."""

import numpy as np
import pytest

from crossfade.trainer.model.top_k_kernels import kept_scores, kth_score

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
