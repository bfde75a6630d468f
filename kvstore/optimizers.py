"""Lazy row optimizers: an update touches active rows and their state, and nothing else.

Each update is one pass over the active rows, in place on the table's memory. ``LocalStore`` and the servers run the
same compiled kernel, so their results agree bit for bit, and so do kernels that compute a row's gradient themselves and
call ``update_row`` (``trainer/model/per_example_kernels.py``). Weight decay is coupled (added to the gradient, as in
MXNet and PyTorch's ``weight_decay``) and, like every other term, applies to active rows only.

    optimizer = make_optimizer(OptimizerSpec("adagrad", learning_rate=0.1), rows=1_000, dim=64)
    optimizer.update(weights_ND, rows_A, gradient_AD)

No kernel uses fastmath: it lets the compiler reorder sums, and freshly compiled code then differs in the last bit from
code read from numba's cache, so a server would differ from an in-process run. With numba's default error model a
division may raise, and a loop that may raise is not vectorized.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.errors import DivergedError, option_named
from crossfade.kvstore.cache_prefetch import AHEAD, prefetch_row
from crossfade.kvstore.elements import get, put
from crossfade.kvstore.finite import find_largest_row
from crossfade.kvstore.jit import inner_kernel, njit
from crossfade.kvstore.memory import advise_huge_pages
from crossfade.kvstore.optimizer_spec import OptimizerSpec, state_dtype, state_shapes
from crossfade.kvstore.row_kernels import descend, dot, square_of_sum
from crossfade.kvstore.threads import chunk_size, for_chunks

_MAX_MAGNITUDE = np.float32(1e18)
_MAX_SQUARE = np.float32(1e36)
_NEARLY_DIVERGED = 1e17
"""Bound below which no value is a sign of divergence: a sum of squares may exceed its own with values below 1e18."""


class UpdateRule(NamedTuple):
    """Hyperparameters of a step's updates, float32, for kernels."""

    lr: np.float32
    decay: np.float32
    epsilon: np.float32
    beta1: np.float32
    beta2: np.float32


@inner_kernel()
def _is_divergent(gradient, weight):  # type: ignore[no-untyped-def]
    """Return whether a value is NaN, or so large that its square is close to overflow."""
    return (not (abs(gradient) <= _MAX_MAGNITUDE)) | (not (abs(weight) <= _MAX_MAGNITUDE))


@inner_kernel()
def _adagrad(weights_ND, row, gradient_AD, a, sum_of_squares_ND, rule):  # type: ignore[no-untyped-def]
    weight_D, gradient_D, sum_of_squares_D = weights_ND[row], gradient_AD[a], sum_of_squares_ND[row]
    divergent = 0
    for d in range(gradient_D.shape[0]):
        g = gradient_D[d] + rule.decay * weight_D[d]
        sum_of_squares_D[d] += g * g
        weight_D[d] -= rule.lr * g / (math.sqrt(sum_of_squares_D[d]) + rule.epsilon)
        divergent |= _is_divergent(g, weight_D[d])
    return divergent


@inner_kernel()
def _adam(weights_ND, row, gradient_AD, a, exp_avg_ND, exp_avg_sq_ND, step_N, rule):  # type: ignore[no-untyped-def]
    weight_D, gradient_D = weights_ND[row], gradient_AD[a]
    exp_avg_D, exp_avg_sq_D = exp_avg_ND[row], exp_avg_sq_ND[row]
    divergent, one = 0, np.float32(1.0)
    step_N[row] += 1
    correction1 = one - np.float32(rule.beta1 ** step_N[row])
    correction2 = one - np.float32(rule.beta2 ** step_N[row])
    for d in range(gradient_D.shape[0]):
        g = gradient_D[d] + rule.decay * weight_D[d]
        exp_avg_D[d] = rule.beta1 * exp_avg_D[d] + (one - rule.beta1) * g
        exp_avg_sq_D[d] = rule.beta2 * exp_avg_sq_D[d] + (one - rule.beta2) * g * g
        root = math.sqrt(exp_avg_sq_D[d] / correction2)
        weight_D[d] -= rule.lr * (exp_avg_D[d] / correction1) / (root + rule.epsilon)
        divergent |= _is_divergent(g, weight_D[d])
    return divergent


@inner_kernel(forceinline=False)
def _clip_norm(weights_ND, row, max_norm):  # type: ignore[no-untyped-def]
    """Scale a row whose norm exceeds ``max_norm`` down to it."""
    square = dot(weights_ND, row, weights_ND, row)
    if square > max_norm * max_norm:
        scale = max_norm / math.sqrt(square)
        for d in range(weights_ND.shape[1]):
            weights_ND[row, d] *= scale


@inner_kernel()
def update_row(  # type: ignore[no-untyped-def]
    weights_ND, row, gradient_AD, a, sums_ND, sums_N, exp_avg_ND, exp_avg_sq_ND, step_N, max_norm, rule
):
    """Apply the gradient ``gradient_AD[a]`` to ``weights_ND[row]``; return 1 if the row has diverged, else 0.

    The arguments from ``sums_ND`` on are ``LazyOptimizer.kernel_arguments()``. Those that are None select the optimizer
    when the kernel is compiled. They are separate arguments, since access to an array in a tuple counts references.
    """
    if sums_N is not None:
        square = (
            square_of_sum(gradient_AD, a, rule.decay, weights_ND, row)
            if rule.decay
            else dot(gradient_AD, a, gradient_AD, a)  # the same, without reading the weights
        )
        total = get(sums_N, row) + square / np.float32(gradient_AD.shape[1])
        put(sums_N, row, total)
        step_size = rule.lr / (math.sqrt(total) + rule.epsilon)
        divergent = 0 if descend(weights_ND, row, step_size, gradient_AD, a, rule.decay, _MAX_SQUARE) else 1
    elif sums_ND is not None:
        divergent = _adagrad(weights_ND, row, gradient_AD, a, sums_ND, rule)
    elif step_N is not None:
        divergent = _adam(weights_ND, row, gradient_AD, a, exp_avg_ND, exp_avg_sq_ND, step_N, rule)
    else:
        divergent = 0 if descend(weights_ND, row, rule.lr, gradient_AD, a, rule.decay, _MAX_SQUARE) else 1
    if max_norm is not None and not divergent:  # one that has diverged stays as it is, so that it is found
        _clip_norm(weights_ND, row, max_norm)
    return divergent


@inner_kernel()
def prefetch_state(row, sums_ND, sums_N, exp_avg_ND, exp_avg_sq_ND):  # type: ignore[no-untyped-def]
    """Prefetch the state of a row."""
    if sums_N is not None:
        prefetch_row(sums_N, row)
    if sums_ND is not None:
        prefetch_row(sums_ND, row)
    if exp_avg_ND is not None:
        prefetch_row(exp_avg_ND, row)
        prefetch_row(exp_avg_sq_ND, row)


@inner_kernel()
def _update_chunk(  # type: ignore[no-untyped-def]
    begin, end, weights_ND, rows_A, gradient_AD, sums_ND, sums_N, exp_avg_ND, exp_avg_sq_ND, step_N, max_norm, rule
):
    divergent_rows = 0
    for a in range(begin, end):
        if a + AHEAD < rows_A.shape[0]:
            prefetch_row(weights_ND, rows_A[a + AHEAD])
            prefetch_state(rows_A[a + AHEAD], sums_ND, sums_N, exp_avg_ND, exp_avg_sq_ND)
        divergent_rows += update_row(
            weights_ND, rows_A[a], gradient_AD, a, sums_ND, sums_N, exp_avg_ND, exp_avg_sq_ND, step_N, max_norm, rule
        )
    return divergent_rows


@njit(cache=True, error_model="numpy", nogil=True)
def _update_rows(weights_ND, rows_A, gradient_AD, optimizer):  # type: ignore[no-untyped-def]
    """Update active rows; return how many have diverged."""
    size = chunk_size(rows_A.shape[0], gradient_AD.size)
    return for_chunks(_update_chunk, rows_A.shape[0], size, (weights_ND, rows_A, gradient_AD, *optimizer))


class LazyOptimizer:
    """Updates active rows of one table, or of one server's shard of it, and holds their optimizer state.

    Attributes:
        state: arrays by name, whose first axis is the rows.
        lr_factor: multiplies the learning rate of updates from now on; the learning rate schedule sets it.
    """

    def __init__(self, spec: OptimizerSpec, state: dict[str, FloatArray]) -> None:
        """Update by ``spec``, with ``state``."""
        self.state = state
        self.lr_factor = 1.0
        self._spec = spec

    def kernel_arguments(self) -> tuple[Any, ...]:
        """Return the last arguments of ``update_row``: the state, the maximum norm, and the rule of the next update."""
        spec = self._spec
        sums = self.state.get("sum_of_squares")
        sums_by_kind = (sums, None) if spec.kind == "adagrad" else (None, sums)
        adam = tuple(map(self.state.get, ("exp_avg", "exp_avg_sq", "step")))
        max_norm = None if spec.max_norm is None else np.float32(spec.max_norm)
        lr = spec.learning_rate * self.lr_factor
        rule = UpdateRule(*map(np.float32, (lr, spec.weight_decay, spec.epsilon, spec.beta1, spec.beta2)))
        return (*sums_by_kind, *adam, max_norm, rule)

    def update(self, weights_ND: FloatArray, rows_A: IntArray, gradient_AD: FloatArray) -> None:
        """Apply ``gradient_AD`` to rows ``rows_A`` (sorted, unique) of ``weights_ND``, in place.

        Raises:
            DivergedError: a row's gradient or its new values are not finite, or they or their norm exceed 1e18, where
                squares are close to overflow. The table is then no longer usable.
        """
        divergent_rows = _update_rows(weights_ND, rows_A, gradient_AD, self.kernel_arguments())
        check_convergence(divergent_rows, weights_ND, rows_A, gradient_AD)

    def reset(self, rows_A: IntArray) -> None:
        """Reset the state of ``rows_A`` to that of rows that were never updated."""
        for values in self.state.values():
            values[rows_A] = 0


def check_convergence(
    divergent_rows: int, weights_ND: FloatArray, rows_A: IntArray, gradient_AD: FloatArray | None = None
) -> None:
    """Check what an update of rows ``rows_A`` of ``weights_ND`` returned; ``gradient_AD`` helps to find a row.

    Raises:
        DivergedError: some rows have diverged.
    """
    if divergent_rows:
        found = find_largest_row(weights_ND[rows_A], _NEARLY_DIVERGED)
        if found is None and gradient_AD is not None:
            found = find_largest_row(gradient_AD, _NEARLY_DIVERGED)
        raise divergence(divergent_rows, len(rows_A), None if found is None else int(rows_A[found]))


def divergence(divergent_rows: int, active_rows: int, row: int | None) -> DivergedError:
    """Return the error for an update in which ``divergent_rows`` rows have diverged, ``row`` among them."""
    resume = option_named("resume")
    return DivergedError(
        f"the gradients or values of {divergent_rows} of {active_rows} active rows are not finite, or beyond 1e18: "
        f"training has diverged; lower optimizer.learning_rate, and {resume}, or raise model.temperature",
        row,
    )


@contextmanager
def name_divergence(table: str, row_of: Callable[[int], int] = int) -> Iterator[None]:
    """Name ``table``, and the row, in a DivergedError of the context; ``row_of`` turns its row into the table's."""
    try:
        yield
    except DivergedError as error:
        row = None if error.row is None else row_of(error.row)
        place = f"table '{table}'" if row is None else f"table '{table}', row {row}"
        raise DivergedError(f"{place}: {error}", row) from error


def _zeros(name: str, shape: tuple[int, ...]) -> FloatArray:
    array = np.zeros(shape, state_dtype(name))
    advise_huge_pages(array)
    return array


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
    shapes = state_shapes(spec.kind, rows, dim)
    return LazyOptimizer(spec, {name: _zeros(name, shape) for name, shape in shapes.items()})
