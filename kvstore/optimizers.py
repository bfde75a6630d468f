"""Lazy row optimizers: a push touches its active rows, their state and nothing else.

Each update is one pass over the active rows, in place on the memory of whoever holds the table: ``LocalStore`` and the
servers run the same compiled kernel, so both give the same bits. Weight decay is coupled (added to the gradient, as in
MXNet and PyTorch's ``weight_decay``) and, like everything else here, reaches active rows alone.

    optimizer = make_optimizer(OptimizerSpec("adagrad", learning_rate=0.1), rows=1_000, dim=64)
    optimizer.update(weights_ND, rows_A, gradient_AD)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numba import njit, prange

from kvstore.arrays import FloatArray, IntArray
from kvstore.cache_prefetch import prefetch_ahead
from kvstore.errors import DivergedError
from kvstore.memory import advise_huge_pages

OptimizerKind = Literal["sgd", "adagrad", "rowwise_adagrad", "adam"]
KINDS: tuple[OptimizerKind, ...] = get_args(OptimizerKind)


@dataclass(frozen=True)
class OptimizerSpec:
    """How active rows are updated. Plain values, so that it travels as JSON.

    ``learning_rate`` and ``weight_decay`` are per step; ``epsilon`` is added to the root of the second moment;
    ``beta1`` and ``beta2`` are Adam's. A row that an update leaves longer than ``max_norm`` is shortened to it.
    """

    kind: OptimizerKind = "adagrad"
    learning_rate: float = 0.1
    weight_decay: float = 0.0
    epsilon: float = 1e-8
    beta1: float = 0.9
    beta2: float = 0.999
    max_norm: float | None = None


_LARGEST = np.float32(1e18)

# No kernel has fastmath: a sum that may be reordered comes out differently where the code was compiled a moment ago and
# where it was read from the cache, and then a server and a process of its own would differ in the last bit. With
# numba's own error model a division may raise, and a loop that may raise does not vectorise.


@njit(cache=True, error_model="numpy", inline="always")
def _is_divergent(gradient, weight):  # type: ignore[no-untyped-def]
    """Whether a value is NaN, or so large that its square soon overflows."""
    return (not (abs(gradient) <= _LARGEST)) | (not (abs(weight) <= _LARGEST))


@njit(cache=True, error_model="numpy", parallel=True)
def _sgd(weights_ND, rows_A, gradient_AD, rate, decay):  # type: ignore[no-untyped-def]
    bad = 0
    for a in prange(rows_A.shape[0]):
        prefetch_ahead(weights_ND, rows_A, a)
        weight_D, gradient_D = weights_ND[rows_A[a]], gradient_AD[a]
        lost = 0
        for d in range(gradient_D.shape[0]):
            g = gradient_D[d] + decay * weight_D[d]
            weight_D[d] -= rate * g
            lost |= _is_divergent(g, weight_D[d])
        bad += lost
    return bad


@njit(cache=True, error_model="numpy", parallel=True)
def _adagrad(weights_ND, rows_A, gradient_AD, squares_ND, rate, decay, epsilon):  # type: ignore[no-untyped-def]
    bad = 0
    for a in prange(rows_A.shape[0]):
        prefetch_ahead(weights_ND, rows_A, a)
        prefetch_ahead(squares_ND, rows_A, a)
        row = rows_A[a]
        weight_D, gradient_D, squares_D = weights_ND[row], gradient_AD[a], squares_ND[row]
        lost = 0
        for d in range(gradient_D.shape[0]):
            g = gradient_D[d] + decay * weight_D[d]
            squares_D[d] += g * g
            weight_D[d] -= rate * g / (math.sqrt(squares_D[d]) + epsilon)
            lost |= _is_divergent(g, weight_D[d])
        bad += lost
    return bad


@njit(cache=True, error_model="numpy", parallel=True)
def _rowwise_adagrad(weights_ND, rows_A, gradient_AD, squares_N, rate, decay, epsilon):  # type: ignore[no-untyped-def]
    bad = 0
    for a in prange(rows_A.shape[0]):
        prefetch_ahead(weights_ND, rows_A, a)
        prefetch_ahead(squares_N, rows_A, a)
        row = rows_A[a]
        weight_D, gradient_D = weights_ND[row], gradient_AD[a]
        total = np.float32(0.0)
        for d in range(gradient_D.shape[0]):
            g = gradient_D[d] + decay * weight_D[d]
            total += g * g
        squares_N[row] += total / np.float32(gradient_D.shape[0])
        step = rate / (math.sqrt(squares_N[row]) + epsilon)
        lost = 0
        for d in range(gradient_D.shape[0]):
            g = gradient_D[d] + decay * weight_D[d]
            weight_D[d] -= step * g
            lost |= _is_divergent(g, weight_D[d])
        bad += lost
    return bad


@njit(cache=True, error_model="numpy", parallel=True)
def _adam(weights_ND, rows_A, gradient_AD, first_ND, second_ND, steps_N, rate, decay, epsilon, beta1, beta2):  # type: ignore[no-untyped-def]
    bad = 0
    one = np.float32(1.0)
    for a in prange(rows_A.shape[0]):
        prefetch_ahead(weights_ND, rows_A, a)
        prefetch_ahead(first_ND, rows_A, a)
        prefetch_ahead(second_ND, rows_A, a)
        row = rows_A[a]
        weight_D, gradient_D = weights_ND[row], gradient_AD[a]
        first_D, second_D = first_ND[row], second_ND[row]
        lost = 0
        steps_N[row] += 1
        correction1 = one - np.float32(beta1 ** steps_N[row])
        correction2 = one - np.float32(beta2 ** steps_N[row])
        for d in range(gradient_D.shape[0]):
            g = gradient_D[d] + decay * weight_D[d]
            first_D[d] = beta1 * first_D[d] + (one - beta1) * g
            second_D[d] = beta2 * second_D[d] + (one - beta2) * g * g
            weight_D[d] -= rate * (first_D[d] / correction1) / (math.sqrt(second_D[d] / correction2) + epsilon)
            lost |= _is_divergent(g, weight_D[d])
        bad += lost
    return bad


@njit(cache=True, error_model="numpy", parallel=True)
def _clip_row_norm(weights_ND, rows_A, max_norm):  # type: ignore[no-untyped-def]
    """Scale active rows that are longer than ``max_norm`` back to it."""
    for a in prange(rows_A.shape[0]):
        weight_D = weights_ND[rows_A[a]]
        square = np.float32(0.0)
        for d in range(weight_D.shape[0]):
            square += weight_D[d] * weight_D[d]
        if square > max_norm * max_norm:
            scale = max_norm / math.sqrt(square)
            for d in range(weight_D.shape[0]):
                weight_D[d] *= scale


def _f32(*values: float) -> tuple[np.float32, ...]:
    return tuple(np.float32(value) for value in values)


class LazyOptimizer:
    """Updates active rows of one table, or of one server's part of it, and holds their state.

    ``rate_factor`` multiplies the learning rate of the updates to come: a schedule's place for this step.
    """

    state: dict[str, FloatArray]

    def __init__(self, spec: OptimizerSpec, state: dict[str, FloatArray], apply: Callable[..., int]) -> None:
        """``state`` by name, first axis the rows; ``apply(weights_ND, rows_A, gradient_AD, rate)`` counts bad rows."""
        self.state = state
        self.lr_factor = 1.0
        self._spec = spec
        self._apply = apply

    def update(self, weights_ND: FloatArray, rows_A: IntArray, gradient_AD: FloatArray) -> None:
        """Apply ``gradient_AD`` to rows ``rows_A`` (sorted, unique) of ``weights_ND``, in place.

        Raises:
            DivergedError: a row's gradient or its new values are not finite, or beyond 1e18, where squares soon
                overflow. The table is then no longer usable.
        """
        bad = self._apply(weights_ND, rows_A, gradient_AD, np.float32(self._spec.learning_rate * self.lr_factor))
        if bad:
            raise DivergedError(
                f"the gradients or values of {bad} of {len(rows_A)} active rows are not finite, or beyond 1e18: "
                "training has diverged; "
                "lower optimizer.learning_rate or raise model.temperature"
            )
        if self._spec.max_norm is not None:
            _clip_row_norm(weights_ND, rows_A, np.float32(self._spec.max_norm))

    def reset(self, rows_A: IntArray) -> None:
        """Give ``rows_A`` the state of rows that were never updated."""
        for values in self.state.values():
            values[rows_A] = 0


def _zeros(shape: tuple[int, ...], dtype: type[np.generic] = np.float32) -> FloatArray:
    state = np.zeros(shape, dtype=dtype)
    advise_huge_pages(state)
    return state


def state_bytes_per_row(kind: OptimizerKind, dim: int) -> int:
    """The optimizer state of one row, in bytes."""
    return {"sgd": 0, "adagrad": 4 * dim, "rowwise_adagrad": 4, "adam": 8 * dim + 4}[kind]


def make_optimizer(spec: OptimizerSpec, rows: int, dim: int) -> LazyOptimizer:
    """A fresh optimizer, its state zero, for a table of ``rows`` x ``dim``.

    - ``sgd``: w -= lr·g
    - ``adagrad`` (Duchi et al. 2011): s += g², w -= lr·g / (√s + ε)
    - ``rowwise_adagrad`` (FBGEMM's EXACT_ROWWISE_ADAGRAD): s += mean(g²) with one s a row
    - ``adam`` (Kingma and Ba 2015; lazy as in TensorFlow's LazyAdam): moments move when their row is active, and the
      bias correction counts the updates of that row, not the steps of the run

    A norm bound keeps rows in a ball by projection, as collaborative metric learning asks (Hsieh et al., WWW 2017).
    """
    decay, epsilon, beta1, beta2 = _f32(spec.weight_decay, spec.epsilon, spec.beta1, spec.beta2)
    if spec.kind == "sgd":
        return LazyOptimizer(spec, {}, lambda w, r, g, rate: _sgd(w, r, g, rate, decay))
    if spec.kind == "adagrad":
        squares_ND = _zeros((rows, dim))
        return LazyOptimizer(
            spec, {"squares": squares_ND}, lambda w, r, g, rate: _adagrad(w, r, g, squares_ND, rate, decay, epsilon)
        )
    if spec.kind == "rowwise_adagrad":
        squares_N = _zeros((rows,))
        return LazyOptimizer(
            spec,
            {"squares": squares_N},
            lambda w, r, g, rate: _rowwise_adagrad(w, r, g, squares_N, rate, decay, epsilon),
        )
    first_ND, second_ND = _zeros((rows, dim)), _zeros((rows, dim))
    steps_N = _zeros((rows,), np.int32)
    return LazyOptimizer(
        spec,
        {"first": first_ND, "second": second_ND, "steps": steps_N},
        lambda w, r, g, rate: _adam(w, r, g, first_ND, second_ND, steps_N, rate, decay, epsilon, beta1, beta2),
    )
