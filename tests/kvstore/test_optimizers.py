"""Lazy updates follow their formulas in float64 and change only active rows."""

from collections.abc import Iterator
from contextlib import contextmanager

import numba
import numpy as np
import pytest
from builders import random_rows

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.errors import DivergedError
from crossfade.kvstore.optimizer_spec import KINDS, OptimizerKind, OptimizerSpec, state_bytes_per_row
from crossfade.kvstore.optimizers import LazyOptimizer, make_optimizer
from crossfade.kvstore.threads import MIN_PARALLEL_VALUES

ROWS, DIM = 12, 21


class Reference:
    """Row updates in float64, one row and one formula at a time, with hyperparameters as float32 holds them."""

    def __init__(self, spec: OptimizerSpec, weights_ND: FloatArray) -> None:
        names = ("learning_rate", "weight_decay", "epsilon", "beta1", "beta2")
        self.lr, self.decay, self.epsilon, self.beta1, self.beta2 = (
            float(np.float32(getattr(spec, name))) for name in names
        )
        self.kind = spec.kind
        self.weights_ND = weights_ND.astype(np.float64)
        self.exp_avg_ND, self.exp_avg_sq_ND = np.zeros_like(self.weights_ND), np.zeros_like(self.weights_ND)
        self.sum_of_squares_N = np.zeros(len(weights_ND))
        self.step_N = np.zeros(len(weights_ND), dtype=int)

    def update(self, rows_A: IntArray, gradient_AD: FloatArray, lr_factor: float) -> None:
        for row, gradient_D in zip(rows_A, gradient_AD.astype(np.float64), strict=True):
            decayed_D = gradient_D + self.decay * self.weights_ND[row]
            self.weights_ND[row] -= self.lr * lr_factor * self.direction(row, decayed_D)

    def direction(self, row: int, g_D: FloatArray) -> FloatArray:
        if self.kind == "sgd":
            return g_D
        if self.kind == "adagrad":
            self.exp_avg_sq_ND[row] += g_D**2
            return g_D / (np.sqrt(self.exp_avg_sq_ND[row]) + self.epsilon)
        if self.kind == "rowwise_adagrad":
            self.sum_of_squares_N[row] += np.mean(g_D**2)
            return g_D / (np.sqrt(self.sum_of_squares_N[row]) + self.epsilon)
        self.step_N[row] += 1
        self.exp_avg_ND[row] = self.beta1 * self.exp_avg_ND[row] + (1 - self.beta1) * g_D
        self.exp_avg_sq_ND[row] = self.beta2 * self.exp_avg_sq_ND[row] + (1 - self.beta2) * g_D**2
        exp_avg_D = self.exp_avg_ND[row] / (1 - self.beta1 ** self.step_N[row])
        exp_avg_sq_D = self.exp_avg_sq_ND[row] / (1 - self.beta2 ** self.step_N[row])
        return exp_avg_D / (np.sqrt(exp_avg_sq_D) + self.epsilon)


def spec_of(kind: OptimizerKind, weight_decay: float = 0.0) -> OptimizerSpec:
    return OptimizerSpec(kind, learning_rate=0.05, weight_decay=weight_decay, epsilon=1e-3)


def state_bytes(optimizer: LazyOptimizer, rows: IntArray) -> dict[str, bytes]:
    return {name: values[rows].tobytes() for name, values in optimizer.state.items()}


@contextmanager
def numba_threads(count: int) -> Iterator[None]:
    before = numba.get_num_threads()
    numba.set_num_threads(count)
    try:
        yield
    finally:
        numba.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
@pytest.mark.parametrize("kind", KINDS)
def test_optimizer_follows_its_formula_over_several_steps(kind: OptimizerKind, weight_decay: float) -> None:
    spec = spec_of(kind, weight_decay)
    weights_ND = random_rows(ROWS, DIM, seed=1)
    reference = Reference(spec, weights_ND)
    optimizer = make_optimizer(spec, ROWS, DIM)
    rng = np.random.default_rng(2)
    for step in range(8):
        rows_A = np.sort(rng.choice(ROWS, size=5, replace=False))
        gradient_AD = random_rows(len(rows_A), DIM, seed=10 + step)
        optimizer.lr_factor = (1.0, 0.5, 0.25)[step % 3]
        optimizer.update(weights_ND, rows_A, gradient_AD)
        reference.update(rows_A, gradient_AD, optimizer.lr_factor)
        np.testing.assert_allclose(weights_ND, reference.weights_ND, rtol=0, atol=3e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_max_norm_scales_longer_active_rows_only(kind: OptimizerKind) -> None:
    bound, free = 2 * random_rows(ROWS, DIM, seed=1), 2 * random_rows(ROWS, DIM, seed=1)
    active, gradient_AD = np.arange(8), random_rows(8, DIM, seed=2)
    make_optimizer(OptimizerSpec(kind, max_norm=8.0), ROWS, DIM).update(bound, active, gradient_AD)
    make_optimizer(OptimizerSpec(kind), ROWS, DIM).update(free, active, gradient_AD)
    norm_A1 = np.linalg.norm(free[active], axis=1, keepdims=True)
    assert 1 < (norm_A1 > 8.0).sum() < 8
    np.testing.assert_allclose(bound[active], free[active] * np.minimum(1, 8.0 / norm_A1), rtol=1e-6)
    short = active[norm_A1[:, 0] <= 8.0]
    np.testing.assert_array_equal(bound[short], free[short])
    assert np.linalg.norm(bound[8:], axis=1).max() > 3.5
    np.testing.assert_array_equal(bound[8:], free[8:])


@pytest.mark.parametrize("kind", KINDS)
def test_inactive_rows_and_their_state_keep_every_bit(kind: OptimizerKind) -> None:
    weights_ND = random_rows(ROWS, DIM, seed=1)
    optimizer = make_optimizer(spec_of(kind, weight_decay=0.1), ROWS, DIM)
    optimizer.update(weights_ND, np.arange(ROWS), random_rows(ROWS, DIM, seed=2))  # make all state nonzero
    active = np.array([0, 3, 4, 11])
    inactive = np.setdiff1d(np.arange(ROWS), active)
    weights_before, state_before = weights_ND[inactive].tobytes(), state_bytes(optimizer, inactive)
    active_before = weights_ND[active].copy()
    for step in range(3):
        optimizer.update(weights_ND, active, random_rows(len(active), DIM, seed=3 + step))
    assert weights_ND[inactive].tobytes() == weights_before
    assert state_bytes(optimizer, inactive) == state_before
    assert (weights_ND[active] != active_before).all()


def test_adam_corrects_bias_by_the_updates_of_the_row() -> None:
    weights_ND = np.tile(random_rows(1, DIM, seed=1), (2, 1))
    start_D, gradient_1D = weights_ND[0].copy(), random_rows(1, DIM, seed=2)
    optimizer = make_optimizer(spec_of("adam"), 2, DIM)
    optimizer.update(weights_ND, np.array([0]), gradient_1D)
    early_D = weights_ND[0].copy()
    for _ in range(8):
        optimizer.update(weights_ND, np.array([0]), gradient_1D)
    optimizer.update(weights_ND, np.array([0, 1]), np.tile(gradient_1D, (2, 1)))
    np.testing.assert_array_equal(weights_ND[1], early_D)
    # Up to epsilon, the first step of Adam is -lr·sign(g).
    np.testing.assert_allclose(weights_ND[1], start_D - 0.05 * np.sign(gradient_1D[0]), atol=2e-3)
    assert optimizer.state["step"].tolist() == [10, 1]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30], ids=["nan", "inf", "minus inf", "square overflows"])
@pytest.mark.parametrize("kind", KINDS)
def test_non_finite_gradient_raises_with_the_number_of_rows(kind: OptimizerKind, value: float) -> None:
    weights_ND = random_rows(ROWS, DIM, seed=1)
    gradient_AD = random_rows(6, DIM, seed=2)
    gradient_AD[1, 0] = gradient_AD[4, DIM - 1] = value
    with pytest.raises(DivergedError, match="2 of 6 active rows"):
        make_optimizer(spec_of(kind), ROWS, DIM).update(weights_ND, np.arange(6), gradient_AD)


@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_row_that_grows_beyond_all_bounds_is_named(max_norm: float | None) -> None:
    weights_ND, gradient_AD = random_rows(ROWS, DIM, seed=1), np.zeros((2, DIM), np.float32)
    gradient_AD[1] = 1.0
    optimizer = make_optimizer(OptimizerSpec("sgd", 1e25, max_norm=max_norm), ROWS, DIM)
    with pytest.raises(DivergedError, match="1 of 2 active rows") as caught:
        optimizer.update(weights_ND, np.array([3, 7]), gradient_AD)
    assert caught.value.row == 7


@pytest.mark.parametrize("kind", KINDS)
def test_results_do_not_depend_on_the_number_of_threads(kind: OptimizerKind) -> None:
    rows, dim = 16_001, 33
    assert rows // 2 * dim > MIN_PARALLEL_VALUES
    results = []
    for threads in (1, numba.config.NUMBA_NUM_THREADS):
        weights_ND = random_rows(rows, dim, seed=1)
        optimizer = make_optimizer(spec_of(kind, weight_decay=0.01), rows, dim)
        with numba_threads(threads):
            for step in range(3):
                active = np.arange(step, rows, 2)
                optimizer.update(weights_ND, active, random_rows(len(active), dim, seed=2 + step))
        results.append((weights_ND.tobytes(), state_bytes(optimizer, np.arange(rows))))
    assert results[0] == results[1]


@pytest.mark.parametrize("dim", [1, 7, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_state_bytes_per_row_match_the_arrays(kind: OptimizerKind, dim: int) -> None:
    state = make_optimizer(spec_of(kind), ROWS, dim).state
    assert all(len(values) == ROWS for values in state.values())
    assert sum(values.nbytes for values in state.values()) == ROWS * state_bytes_per_row(kind, dim)
