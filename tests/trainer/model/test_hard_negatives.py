"""Hard negatives are those with the highest scores, however many there are and in whatever order; ties: the first."""

import numpy as np
import pytest

from crossfade.trainer.model.kernel_arguments import TopK
from crossfade.trainer.model.loss_kernels import LOGISTIC, LossParams, hard_negatives_loss

ONE = np.float32(1.0)
PARAMS = LossParams(LOGISTIC, np.float32(0.5), ONE, TopK(np.int64(0), ONE, ONE))


@pytest.mark.slow
@pytest.mark.parametrize("has_ties", [False, True])
def test_highest_scores_are_chosen(has_ties: bool) -> None:
    draws = np.random.default_rng(1)
    for _ in range(300):
        count = int(draws.integers(1, 60))
        num_hard = int(draws.integers(1, count + 1))
        scores_C = (draws.integers(-3, 4, count) if has_ties else draws.normal(size=count)).astype(np.float32)
        expected = np.argsort(-scores_C, kind="stable")[:num_hard]
        negatives_C, parts_C = np.arange(1, count + 1, dtype=np.int32), np.empty(count, np.float32)
        score, weight = np.float32(0.5), np.float32(1.0)
        hard_negatives_loss(PARAMS, score, scores_C, parts_C, 0, negatives_C, weight, num_hard)
        assert sorted(np.flatnonzero(scores_C)) == sorted(expected)
