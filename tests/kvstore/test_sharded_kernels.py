"""Sums over ranks are those of a tree, bit for bit, whatever rows each has; this rank's gradients stay as given."""

import numpy as np
import pytest
from partition_trees import add_rows_as_tree

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.kvstore.optimizer_spec import OptimizerSpec
from crossfade.kvstore.optimizers import make_optimizer
from crossfade.kvstore.sharded.kernels import OwnGradients, SentGradients, apply_gradients

pytestmark = [pytest.mark.slow, pytest.mark.numbers]


def drawn(ranks: int, share: float, rows: int, dim: int, seed: int) -> list[tuple[IntArray, FloatArray]]:
    """Return for each rank sorted rows, about ``share`` of all, and their gradients."""
    draws = np.random.default_rng(seed)
    found = []
    for _ in range(ranks):
        positions_N = np.flatnonzero(draws.random(rows) < share)
        found.append((positions_N, draws.standard_normal((len(positions_N), dim)).astype(np.float32)))
    return found


def joined(parts: list[tuple[IntArray, FloatArray]], rows: int, own: int) -> tuple[int, FloatArray]:
    """Return how many rows a step of SGD updates on rank ``own``, and by how much: the sum of each row's gradients."""
    dim = parts[0][1].shape[1]
    sent = [
        (np.empty(0, np.int64), values_ND[:0]) if rank == own else (at_N, values_ND.copy())
        for rank, (at_N, values_ND) in enumerate(parts)
    ]
    order_A = np.random.default_rng(own).permutation(len(parts[own][0]))
    given_RD = np.empty_like(parts[own][1])
    given_RD[order_A] = parts[own][1]
    before_RD, weights_ND = given_RD.copy(), np.zeros((rows, dim), np.float32)
    updated, divergent = apply_gradients(
        own,
        weights_ND,
        make_optimizer(OptimizerSpec("sgd", learning_rate=1.0), rows, dim).for_kernels(),
        OwnGradients(parts[own][0], order_A, given_RD),
        SentGradients(
            np.concatenate([at_N for at_N, _ in sent]).astype(np.uint32),
            np.cumsum([0, *(len(at_N) for at_N, _ in sent)]),
            np.array([values_ND.ctypes.data for _, values_ND in sent]),
        ),
    )
    assert divergent == 0
    np.testing.assert_array_equal(given_RD, before_RD)
    return updated, -weights_ND


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5, 8, 13, 64, 65, 130])
@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_sum_is_that_of_the_tree(ranks: int, share: float) -> None:
    for dim in (1, 16, 20, 64):
        parts = drawn(ranks, share, 60, dim, seed=ranks)
        expected_A, expected_AD = add_rows_as_tree(*zip(*parts, strict=True))
        for own in {0, ranks // 2, ranks - 1}:
            updated, sum_ND = joined(parts, 60, own)
            assert updated == len(expected_A)
            np.testing.assert_array_equal(sum_ND[expected_A], expected_AD)


def test_several_threads_sum_many_rows() -> None:
    parts = drawn(4, 0.7, 20_000, 32, seed=1)
    updated, sum_ND = joined(parts, 20_000, own=1)
    dense_WRD = np.zeros((4, 20_000, 32), np.float32)
    for rank, (positions_N, gradient_ND) in enumerate(parts):
        dense_WRD[rank, positions_N] = gradient_ND
    # A rank without the row counts as 0 here, which changes no sum.
    np.testing.assert_array_equal(sum_ND, (dense_WRD[0] + dense_WRD[1]) + (dense_WRD[2] + dense_WRD[3]))
    assert updated == np.count_nonzero(dense_WRD.any(axis=(0, 2)))
