"""Vector arithmetic on table rows, for kernels; ``lanes.py`` has the same for tiles of scores.

    score = dot(query_AD, a, item_RD, r)

Pass the array and a row number, not a view: numba counts references to each view in an atomic counter that all threads
contend for. For the same reason, each function is one intrinsic: numba would count references to arrays within a
function that it compiles from Python.

Sums have sixteen partial sums, added up as a tree, so results are the same bits on every machine, and whether code was
freshly compiled or comes from numba's cache.

Arrays are float32 and contiguous, and their rows equally long. Row numbers are not checked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError

from crossfade.kvstore import vector_ir as vectors
from crossfade.kvstore.jit import intrinsic
from crossfade.kvstore.vector_ir import INT64, LANES

_USUAL_COLUMNS = 64
"""Rows of this length take instructions without a loop, which is a tenth faster."""


@dataclass(frozen=True)
class _Columns:
    """``LANES`` columns of rows from ``first`` on, or only the columns in ``mask``."""

    builder: Any
    first: Any
    mask: Any = None

    def load(self, row: Any) -> Any:
        """Load the columns of the row at pointer ``row``; lanes that are not in the mask are 0."""
        return vectors.load(self.builder, self.builder.gep(row, [self.first]), self.mask)

    def store(self, vector: Any, row: Any) -> None:
        """Store the columns of the row at pointer ``row``."""
        vectors.store(self.builder, vector, self.builder.gep(row, [self.first]), self.mask)

    def multiply_add(self, x: Any, y: Any, z: Any) -> Any:
        """Return x·y + z."""
        return vectors.multiply_add(self.builder, x, y, z)


def _for_columns(builder: Any, length: Any, body: Callable[[_Columns], None]) -> None:
    """Generate a loop over the columns of a row, ``LANES`` at a time, then what is left."""
    usual = builder.icmp_signed("==", length, INT64(_USUAL_COLUMNS))
    with builder.if_else(usual, likely=True) as (then, otherwise):
        with then:
            for first in range(0, _USUAL_COLUMNS, LANES):
                body(_Columns(builder, INT64(first)))
        with otherwise:
            whole = builder.and_(length, INT64(-LANES))
            with cgutils.for_range_slice(builder, INT64(0), whole, INT64(LANES), INT64) as (at, _):
                body(_Columns(builder, at))
            with builder.if_then(builder.icmp_signed("<", whole, length)):
                body(_Columns(builder, whole, vectors.first_lanes(builder, builder.sub(length, whole))))


class _Sum:
    """A sum over columns that a loop adds to."""

    def __init__(self, builder: Any) -> None:
        self._builder = builder
        self._lanes = cgutils.alloca_once_value(builder, vectors.constant(0.0))  # type: ignore[no-untyped-call]

    def add_product(self, columns: _Columns, x: Any, y: Any) -> None:
        """Add x·y of some columns."""
        self._builder.store(columns.multiply_add(x, y, self._builder.load(self._lanes)), self._lanes)

    def lanes(self) -> Any:
        """Return the sums of every sixteenth column."""
        return self._builder.load(self._lanes)

    def total(self) -> Any:
        """Return the sum of all columns."""
        return vectors.reduce(self._builder, self._builder.load(self._lanes), self._builder.fadd)


def _rows(context: Any, builder: Any, signature: Any, arguments: Any) -> tuple[list[Any], Any]:
    """Return pointers to the rows among the arguments, each an array followed by a number, and their length."""
    rows, length = [], None
    for at, kind in enumerate(signature.args):
        if isinstance(kind, types.Array):
            array = context.make_array(kind)(context, builder, arguments[at])
            length = builder.extract_value(array.shape, 1)
            rows.append(builder.gep(array.data, [builder.mul(arguments[at + 1], length)]))
    return rows, length


def _signature(result: Any, *kinds: Any) -> Any:
    """Return the types of an intrinsic; check the types of arrays while a kernel is compiled."""
    for kind in kinds:
        if isinstance(kind, types.Array) and (kind.dtype, kind.ndim, kind.layout) != (types.float32, 2, "C"):
            raise TypingError(f"found {kind}: expected a contiguous float32 array with two dimensions")
    return result(*kinds)


@intrinsic
def dot(_context: Any, x_ND: Any, n: Any, y_MD: Any, m: Any) -> Any:
    """Return x·y, where x is ``x_ND[n]`` and y is ``y_MD[m]``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (x, y), length = _rows(context, builder, signature, arguments)
        total = _Sum(builder)
        _for_columns(builder, length, lambda columns: total.add_product(columns, columns.load(x), columns.load(y)))
        return total.total()

    return _signature(types.float32, x_ND, types.int64, y_MD, types.int64), generate


@intrinsic
def square_of_sum(_context: Any, x_ND: Any, n: Any, factor: Any, y_MD: Any, m: Any) -> Any:
    """Return |x + factor·y|², where x is ``x_ND[n]`` and y is ``y_MD[m]``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (x, y), length = _rows(context, builder, signature, arguments)
        total, factors = _Sum(builder), vectors.splat(builder, arguments[2])

        def add(columns: _Columns) -> None:
            value = columns.multiply_add(factors, columns.load(y), columns.load(x))
            total.add_product(columns, value, value)

        _for_columns(builder, length, add)
        return total.total()

    return _signature(types.float32, x_ND, types.int64, types.float32, y_MD, types.int64), generate


@intrinsic
def copy_row(_context: Any, out_ND: Any, n: Any, x_MD: Any, m: Any) -> Any:
    """Set ``out_ND[n]`` to x, another row, ``x_MD[m]``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (out, x), length = _rows(context, builder, signature, arguments)
        _for_columns(builder, length, lambda columns: columns.store(columns.load(x), out))
        return context.get_dummy_value()

    return _signature(types.void, out_ND, types.int64, x_MD, types.int64), generate


@intrinsic
def set_scaled(_context: Any, out_ND: Any, n: Any, factor: Any, x_MD: Any, m: Any) -> Any:
    """Set ``out_ND[n]`` to factor·x, where x is another row, ``x_MD[m]``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (out, x), length = _rows(context, builder, signature, arguments)
        factors = vectors.splat(builder, arguments[2])
        _for_columns(builder, length, lambda columns: columns.store(builder.fmul(factors, columns.load(x)), out))
        return context.get_dummy_value()

    return _signature(types.void, out_ND, types.int64, types.float32, x_MD, types.int64), generate


@intrinsic
def add_scaled(_context: Any, out_ND: Any, n: Any, factor: Any, x_MD: Any, m: Any) -> Any:
    """Add factor·x to ``out_ND[n]``, where x is another row, ``x_MD[m]``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (out, x), length = _rows(context, builder, signature, arguments)
        factors = vectors.splat(builder, arguments[2])

        def add(columns: _Columns) -> None:
            columns.store(columns.multiply_add(factors, columns.load(x), columns.load(out)), out)

        _for_columns(builder, length, add)
        return context.get_dummy_value()

    return _signature(types.void, out_ND, types.int64, types.float32, x_MD, types.int64), generate


@intrinsic
def descend(_context: Any, out_ND: Any, n: Any, step_size: Any, x_MD: Any, m: Any, decay: Any, limit: Any) -> Any:
    """Subtract step_size·g from ``out_ND[n]``, where g is x + decay·out and x is ``x_MD[m]``.

    Returns whether |g|² + |out|², with the new values of out, is at most ``limit`` in each of the sums over every
    sixteenth column; not so if it is NaN.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (out, x), length = _rows(context, builder, signature, arguments)
        step_sizes = vectors.splat(builder, builder.fneg(arguments[2]))
        decays = vectors.splat(builder, arguments[5])
        gradient_square, square = _Sum(builder), _Sum(builder)

        def step(columns: _Columns) -> None:
            value = columns.load(out)
            gradient = columns.multiply_add(decays, value, columns.load(x))
            value = columns.multiply_add(step_sizes, gradient, value)
            columns.store(value, out)
            gradient_square.add_product(columns, gradient, gradient)
            square.add_product(columns, value, value)

        _for_columns(builder, length, step)
        sums = builder.fadd(gradient_square.lanes(), square.lanes())
        within = builder.fcmp_ordered("<=", sums, vectors.splat(builder, arguments[6]))
        return builder.icmp_unsigned("==", builder.bitcast(within, ir.IntType(LANES)), ir.IntType(LANES)(-1))

    kinds = out_ND, types.int64, types.float32, x_MD, types.int64, types.float32, types.float32
    return _signature(types.boolean, *kinds), generate
