"""Lazy row optimizers: an update touches active rows and their state, and nothing else.

Each update is one pass over the active rows, in place on the table's memory. ``LocalStore`` and the servers run the
same compiled kernel, so their results agree bit for bit. Weight decay is coupled (added to the gradient, as in MXNet
and PyTorch's ``weight_decay``) and, like every other term, applies to active rows only.

    optimizer = make_optimizer(OptimizerSpec("adagrad", learning_rate=0.1), rows=1_000, dim=64)
    optimizer.update(weights_ND, rows_A, gradient_AD)
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numba import njit, prange

from kvstore.arrays import FloatArray, IntArray
from kvstore.cache_prefetch import prefetch_ahead
from kvstore.errors import DivergedError
from kvstore.memory import advise_huge_pages
from kvstore.optimizer_spec import OptimizerSpec

_MAX_MAGNITUDE = np.float32(1e18)

# No kernel uses fastmath: it lets the compiler reorder sums, and freshly compiled code then differs in the last bit
# from code read from numba's cache, so a server would differ from an in-process run. With numba's default error model a
# division may raise, and a loop that may raise is not vectorized.


@njit(cache=True, error_model="numpy", inline="always")
def _is_divergent(gradient, weight):  # type: ignore[no-untyped-def]
    """Return whether a value is NaN, or so large that its square is close to overflow."""
    return (not (abs(gradient) <= _MAX_MAGNITUDE)) | (not (abs(weight) <= _MAX_MAGNITUDE))


@njit(cache=True, error_model="numpy", parallel=True)
def _sgd(weights_ND, rows_A, gradient_AD, lr, decay):  # type: ignore[no-untyped-def]
    bad_rows = 0
    for a in prange(rows_A.shape[0]):
        prefetch_ahead(weights_ND, rows_A, a)
        weight_D, gradient_D = weights_ND[rows_A[a]], gradient_AD[a]
        divergent = 0
        for d in range(gradient_D.shape[0]):
            g = gradient_D[d] + decay * weight_D[d]
            weight_D[d] -= lr * g
            divergent |= _is_divergent(g, weight_D[d])
        bad_rows += divergent
    return bad_rows


@njit(cache=True, error_model="numpy", parallel=True)
def _adagrad(weights_ND, rows_A, gradient_AD, sum_of_squares_ND, lr, decay, epsilon):  # type: ignore[no-untyped-def]
    bad_rows = 0
    for a in prange(rows_A.shape[0]):
        prefetch_ahead(weights_ND, rows_A, a)
        prefetch_ahead(sum_of_squares_ND, rows_A, a)
        row = rows_A[a]
        weight_D, gradient_D, sum_of_squares_D = weights_ND[row], gradient_AD[a], sum_of_squares_ND[row]
        divergent = 0
        for d in range(gradient_D.shape[0]):
            g = gradient_D[d] + decay * weight_D[d]
            sum_of_squares_D[d] += g * g
            weight_D[d] -= lr * g / (math.sqrt(sum_of_squares_D[d]) + epsilon)
            divergent |= _is_divergent(g, weight_D[d])
        bad_rows += divergent
    return bad_rows


@njit(cache=True, error_model="numpy", parallel=True)
def _rowwise_adagrad(weights_ND, rows_A, gradient_AD, sum_of_squares_N, lr, decay, epsilon):  # type: ignore[no-untyped-def]
    bad_rows = 0
    for a in prange(rows_A.shape[0]):
        prefetch_ahead(weights_ND, rows_A, a)
        prefetch_ahead(sum_of_squares_N, rows_A, a)
        row = rows_A[a]
        weight_D, gradient_D = weights_ND[row], gradient_AD[a]
        total = np.float32(0.0)
        for d in range(gradient_D.shape[0]):
            g = gradient_D[d] + decay * weight_D[d]
            total += g * g
        sum_of_squares_N[row] += total / np.float32(gradient_D.shape[0])
        step_size = lr / (math.sqrt(sum_of_squares_N[row]) + epsilon)
        divergent = 0
        for d in range(gradient_D.shape[0]):
            g = gradient_D[d] + decay * weight_D[d]
            weight_D[d] -= step_size * g
            divergent |= _is_divergent(g, weight_D[d])
        bad_rows += divergent
    return bad_rows


@njit(cache=True, error_model="numpy", parallel=True)
def _adam(weights_ND, rows_A, gradient_AD, exp_avg_ND, exp_avg_sq_ND, step_N, lr, decay, epsilon, beta1, beta2):  # type: ignore[no-untyped-def]
    bad_rows = 0
    one = np.float32(1.0)
    for a in prange(rows_A.shape[0]):
        prefetch_ahead(weights_ND, rows_A, a)
        prefetch_ahead(exp_avg_ND, rows_A, a)
        prefetch_ahead(exp_avg_sq_ND, rows_A, a)
        row = rows_A[a]
        weight_D, gradient_D = weights_ND[row], gradient_AD[a]
        exp_avg_D, exp_avg_sq_D = exp_avg_ND[row], exp_avg_sq_ND[row]
        divergent = 0
        step_N[row] += 1
        correction1 = one - np.float32(beta1 ** step_N[row])
        correction2 = one - np.float32(beta2 ** step_N[row])
        for d in range(gradient_D.shape[0]):
            g = gradient_D[d] + decay * weight_D[d]
            exp_avg_D[d] = beta1 * exp_avg_D[d] + (one - beta1) * g
            exp_avg_sq_D[d] = beta2 * exp_avg_sq_D[d] + (one - beta2) * g * g
            weight_D[d] -= lr * (exp_avg_D[d] / correction1) / (math.sqrt(exp_avg_sq_D[d] / correction2) + epsilon)
            divergent |= _is_divergent(g, weight_D[d])
        bad_rows += divergent
    return bad_rows


@njit(cache=True, error_model="numpy", parallel=True)
def _clip_row_norm(weights_ND, rows_A, max_norm):  # type: ignore[no-untyped-def]
    """Scale active rows whose norm exceeds ``max_norm`` down to it."""
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
    """Updates active rows of one table, or of one server's shard of it, and holds their optimizer state.

    ``state`` maps the name of each state array to the array, whose first axis is the rows. ``lr_factor`` multiplies the
    learning rate of updates from now on: the learning rate schedule sets it.
    """

    state: dict[str, FloatArray]

    def __init__(self, spec: OptimizerSpec, state: dict[str, FloatArray], apply: Callable[..., int]) -> None:
        """Wrap a kernel: ``apply(weights_ND, rows_A, gradient_AD, lr)`` returns the number of divergent rows."""
        self.state = state
        self.lr_factor = 1.0
        self._spec = spec
        self._apply = apply

    def update(self, weights_ND: FloatArray, rows_A: IntArray, gradient_AD: FloatArray) -> None:
        """Apply ``gradient_AD`` to rows ``rows_A`` (sorted, unique) of ``weights_ND``, in place.

        Raises:
            DivergedError: a row's gradient or its new values are not finite, or beyond 1e18, where squares are close to
                overflow. The table is then no longer usable.
        """
        bad_rows = self._apply(weights_ND, rows_A, gradient_AD, np.float32(self._spec.learning_rate * self.lr_factor))
        if bad_rows:
            raise DivergedError(
                f"the gradients or values of {bad_rows} of {len(rows_A)} active rows are not finite, or beyond 1e18: "
                "training has diverged; lower optimizer.learning_rate or raise model.temperature"
            )
        if self._spec.max_norm is not None:
            _clip_row_norm(weights_ND, rows_A, np.float32(self._spec.max_norm))

    def reset(self, rows_A: IntArray) -> None:
        """Reset the state of ``rows_A`` to that of rows that were never updated."""
        for values in self.state.values():
            values[rows_A] = 0


def _zeros(shape: tuple[int, ...], dtype: type[np.generic] = np.float32) -> FloatArray:
    state = np.zeros(shape, dtype=dtype)
    advise_huge_pages(state)
    return state


def make_optimizer(spec: OptimizerSpec, rows: int, dim: int) -> LazyOptimizer:
    """Create an optimizer with zero state for a table of ``rows`` x ``dim``.

    State arrays are named as in PyTorch. All are float32 but ``step``, which is int32.

    - ``sgd``: w -= lr·g
    - ``adagrad`` (Duchi et al. 2011): s += g², w -= lr·g / (√s + ε); ``sum_of_squares`` (rows, dim)
    - ``rowwise_adagrad`` (FBGEMM's EXACT_ROWWISE_ADAGRAD): s += mean(g²); ``sum_of_squares`` (rows,)
    - ``adam`` (Kingma and Ba 2015; lazy as in TensorFlow's LazyAdam): ``exp_avg`` and ``exp_avg_sq`` (rows, dim) change
      when their row is active, and the bias correction uses ``step`` (rows,), the updates of that row, not of the run

    ``max_norm`` projects rows onto a ball, as collaborative metric learning requires (Hsieh et al., WWW 2017).
    """
    decay, epsilon, beta1, beta2 = _f32(spec.weight_decay, spec.epsilon, spec.beta1, spec.beta2)
    if spec.kind == "sgd":
        return LazyOptimizer(spec, {}, lambda w, r, g, lr: _sgd(w, r, g, lr, decay))
    if spec.kind == "adagrad":
        sum_of_squares_ND = _zeros((rows, dim))
        return LazyOptimizer(
            spec,
            {"sum_of_squares": sum_of_squares_ND},
            lambda w, r, g, lr: _adagrad(w, r, g, sum_of_squares_ND, lr, decay, epsilon),
        )
    if spec.kind == "rowwise_adagrad":
        sum_of_squares_N = _zeros((rows,))
        return LazyOptimizer(
            spec,
            {"sum_of_squares": sum_of_squares_N},
            lambda w, r, g, lr: _rowwise_adagrad(w, r, g, sum_of_squares_N, lr, decay, epsilon),
        )
    exp_avg_ND, exp_avg_sq_ND = _zeros((rows, dim)), _zeros((rows, dim))
    step_N = _zeros((rows,), np.int32)
    return LazyOptimizer(
        spec,
        {"exp_avg": exp_avg_ND, "exp_avg_sq": exp_avg_sq_ND, "step": step_N},
        lambda w, r, g, lr: _adam(w, r, g, exp_avg_ND, exp_avg_sq_ND, step_N, lr, decay, epsilon, beta1, beta2),
    )
