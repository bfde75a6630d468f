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
from typing import NamedTuple

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.errors import DivergedError, Option
from crossfade.kvstore.cache_prefetch import AHEAD, prefetch_row
from crossfade.kvstore.elements import get, put
from crossfade.kvstore.finite import find_largest_row
from crossfade.kvstore.jit import chosen_kernel, inner_kernel, njit
from crossfade.kvstore.memory import advise_huge_pages
from crossfade.kvstore.optimizer_spec import OptimizerKind, OptimizerSpec, state_dtype, state_shapes
from crossfade.kvstore.row_kernels import descend, dot, square_of_sum
from crossfade.kvstore.threads import chunk_size, for_chunks

_MAX_MAGNITUDE = np.float32(1e18)
_MAX_SQUARE = np.float32(1e36)
_NEARLY_DIVERGED = 1e17
"""Bound below which no value is a sign of divergence: a sum of squares may exceed its own with values below 1e18."""


class Rule(NamedTuple):
    """Hyperparameters of a step's updates, float32, for kernels; ``max_norm`` is None where norms have no bound."""

    lr: np.float32
    decay: np.float32
    epsilon: np.float32
    beta1: np.float32
    beta2: np.float32
    max_norm: np.float32 | None


class Sgd(NamedTuple):
    """The rule of a table's next update, for kernels; as the following, which have its optimizer state as well."""

    rule: Rule


class Adagrad(NamedTuple):
    """The same with ``sum_of_squares`` (rows, dim)."""

    rule: Rule
    sums_ND: FloatArray


class RowwiseAdagrad(NamedTuple):
    """The same with ``sum_of_squares`` (rows,)."""

    rule: Rule
    sums_N: FloatArray


class Adam(NamedTuple):
    """The same with ``exp_avg``, ``exp_avg_sq`` and ``step``."""

    rule: Rule
    exp_avg_ND: FloatArray
    exp_avg_sq_ND: FloatArray
    step_N: IntArray


KernelOptimizer = Sgd | Adagrad | RowwiseAdagrad | Adam
_CLASSES: dict[OptimizerKind, Callable[..., KernelOptimizer]] = {
    "sgd": Sgd,
    "adagrad": Adagrad,
    "rowwise_adagrad": RowwiseAdagrad,
    "adam": Adam,
}


@inner_kernel()
def _is_divergent(gradient, weight):  # type: ignore[no-untyped-def]
    """Return whether a value is NaN, or so large that its square is close to overflow."""
    return (not (abs(gradient) <= _MAX_MAGNITUDE)) | (not (abs(weight) <= _MAX_MAGNITUDE))


def _descend(weights_ND, row, gradient_AD, a, optimizer):  # type: ignore[no-untyped-def]
    rule = optimizer.rule
    return 0 if descend(weights_ND, row, rule.lr, gradient_AD, a, rule.decay, _MAX_SQUARE) else 1


def _adagrad(weights_ND, row, gradient_AD, a, optimizer):  # type: ignore[no-untyped-def]
    weight_D, gradient_D, sum_of_squares_D = weights_ND[row], gradient_AD[a], optimizer.sums_ND[row]
    rule, divergent = optimizer.rule, 0
    for d in range(gradient_D.shape[0]):
        g = gradient_D[d] + rule.decay * weight_D[d]
        sum_of_squares_D[d] += g * g
        weight_D[d] -= rule.lr * g / (math.sqrt(sum_of_squares_D[d]) + rule.epsilon)
        divergent |= _is_divergent(g, weight_D[d])
    return divergent


def _rowwise_adagrad(weights_ND, row, gradient_AD, a, optimizer):  # type: ignore[no-untyped-def]
    rule, sums_N = optimizer.rule, optimizer.sums_N
    square = (
        square_of_sum(gradient_AD, a, rule.decay, weights_ND, row)
        if rule.decay
        else dot(gradient_AD, a, gradient_AD, a)  # the same, without reading the weights
    )
    total = get(sums_N, row) + square / np.float32(gradient_AD.shape[1])
    put(sums_N, row, total)
    step_size = rule.lr / (math.sqrt(total) + rule.epsilon)
    return 0 if descend(weights_ND, row, step_size, gradient_AD, a, rule.decay, _MAX_SQUARE) else 1


def _adam(weights_ND, row, gradient_AD, a, optimizer):  # type: ignore[no-untyped-def]
    weight_D, gradient_D = weights_ND[row], gradient_AD[a]
    exp_avg_D, exp_avg_sq_D = optimizer.exp_avg_ND[row], optimizer.exp_avg_sq_ND[row]
    rule, step_N, divergent, one = optimizer.rule, optimizer.step_N, 0, np.float32(1.0)
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


_STEPS = {Sgd: _descend, Adagrad: _adagrad, RowwiseAdagrad: _rowwise_adagrad, Adam: _adam}


@chosen_kernel
def _step(weights_ND, row, gradient_AD, a, optimizer):  # type: ignore[no-untyped-def]
    """Apply a gradient to a row, without a maximum norm; return 1 if the row has diverged, else 0."""
    return _STEPS[optimizer.instance_class]


@inner_kernel(forceinline=False)
def _clip_norm(weights_ND, row, max_norm):  # type: ignore[no-untyped-def]
    """Scale a row whose norm exceeds ``max_norm`` down to it."""
    if max_norm is not None:  # decided when the kernel is compiled
        square = dot(weights_ND, row, weights_ND, row)
        if square > max_norm * max_norm:
            scale = max_norm / math.sqrt(square)
            for d in range(weights_ND.shape[1]):
                weights_ND[row, d] *= scale


@inner_kernel()
def update_row(weights_ND, row, gradient_AD, a, optimizer):  # type: ignore[no-untyped-def]
    """Apply the gradient ``gradient_AD[a]`` to ``weights_ND[row]``; return 1 if the row has diverged, else 0.

    The class of ``optimizer``, which ``LazyOptimizer.for_kernels()`` returns, selects code when a kernel is compiled.
    """
    divergent = _step(weights_ND, row, gradient_AD, a, optimizer)
    if not divergent:  # one that has diverged stays as it is, so that it is found
        _clip_norm(weights_ND, row, optimizer.rule.max_norm)
    return divergent


@inner_kernel()
def _update_chunk(begin, end, weights_ND, rows_A, gradient_AD, optimizer):  # type: ignore[no-untyped-def]
    divergent_rows = 0
    for a in range(begin, end):
        if a + AHEAD < rows_A.shape[0]:
            prefetch_row(weights_ND, rows_A[a + AHEAD])
            prefetch_row(optimizer, rows_A[a + AHEAD])
        divergent_rows += update_row(weights_ND, rows_A[a], gradient_AD, a, optimizer)
    return divergent_rows


@njit(cache=True, error_model="numpy", nogil=True)
def _update_rows(weights_ND, rows_A, gradient_AD, optimizer):  # type: ignore[no-untyped-def]
    """Update active rows; return how many have diverged."""
    size = chunk_size(rows_A.shape[0], gradient_AD.size)
    return for_chunks(_update_chunk, rows_A.shape[0], size, (weights_ND, rows_A, gradient_AD, optimizer))


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

    def for_kernels(self) -> KernelOptimizer:
        """Return the last argument of ``update_row``: the rule of the next update, and the state."""
        spec = self._spec
        rule = Rule(
            lr=np.float32(spec.learning_rate * self.lr_factor),
            decay=np.float32(spec.weight_decay),
            epsilon=np.float32(spec.epsilon),
            beta1=np.float32(spec.beta1),
            beta2=np.float32(spec.beta2),
            max_norm=None if spec.max_norm is None else np.float32(spec.max_norm),
        )
        return _CLASSES[spec.kind](rule, *self.state.values())

    def update(self, weights_ND: FloatArray, rows_A: IntArray, gradient_AD: FloatArray) -> None:
        """Apply ``gradient_AD`` to rows ``rows_A`` (sorted, unique) of ``weights_ND``, in place.

        Raises:
            DivergedError: a row's gradient or its new values are not finite, or they or their norm exceed 1e18, where
                squares are close to overflow. The table is then no longer usable.
        """
        divergent_rows = _update_rows(weights_ND, rows_A, gradient_AD, self.for_kernels())
        check_convergence(divergent_rows, weights_ND, rows_A, gradient_AD)

    def reset(self, rows_A: IntArray) -> None:
        """Reset the state of ``rows_A``, as if they had never been updated."""
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
    return DivergedError(
        f"the gradients or values of {divergent_rows} of {active_rows} active rows are not finite, or beyond 1e18: "
        "training has diverged; lower optimizer.learning_rate, and ",
        Option("resume"),
        ", or raise model.temperature",
        row=row,
    )


@contextmanager
def name_divergence(table: str, row_of: Callable[[int], int] = int) -> Iterator[None]:
    """Name ``table``, and the row, in a DivergedError of the context; ``row_of`` turns its row into the table's."""
    try:
        yield
    except DivergedError as error:
        row = None if error.row is None else row_of(error.row)
        place = f"table '{table}'" if row is None else f"table '{table}', row {row}"
        raise DivergedError(f"{place}: ", error.args, row=row) from error


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
