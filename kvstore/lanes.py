"""Sixteen float32 lanes as one value in numba kernels: the same bits in any order of compilation, on any processor.

    lanes = multiply_add(load(x_N, 0), splat(scale), load(y_N, 0))
    total = sum_of(lanes)

LLVM does not reorder sums without fastmath (see ``kvstore/optimizers.py``), so a loop that sums does not vectorize.
With explicit lanes, the order of additions is that of the code: 16 partial sums, added up as a tree. A processor with
shorter vectors computes the same in several instructions. Arrays are contiguous float32.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core.errors import TypingError
from numba.extending import models, register_model

from crossfade.kvstore import vector_ir as vectors
from crossfade.kvstore.jit import intrinsic, njit
from crossfade.kvstore.vector_ir import DOUBLE_VECTOR, INT_VECTOR, LANES, VECTOR


class _LanesType(types.Type):
    """The numba type of a vector of ``LANES`` float32."""

    def __init__(self) -> None:
        super().__init__(name="float32_lanes")


_lanes = _LanesType()


@register_model(_LanesType)
class _LanesModel(models.PrimitiveModel):
    """In LLVM, a vector."""

    def __init__(self, manager: Any, numba_type: Any) -> None:
        super().__init__(manager, numba_type, VECTOR)  # type: ignore[no-untyped-call]


class _SumsType(types.Type):
    """The numba type of a vector of ``LANES`` float64."""

    def __init__(self) -> None:
        super().__init__(name="float64_lanes")


_sums = _SumsType()


@register_model(_SumsType)
class _SumsModel(models.PrimitiveModel):
    """In LLVM, a vector."""

    def __init__(self, manager: Any, numba_type: Any) -> None:
        super().__init__(manager, numba_type, DOUBLE_VECTOR)  # type: ignore[no-untyped-call]


def _check(array: Any) -> None:
    """Reject arrays of other elements, and with gaps between elements, at compile time."""
    if (array.dtype, array.ndim, array.layout) != (types.float32, 1, "C"):
        raise TypingError(f"found {array}: expected a contiguous float32 array with one dimension")


def _address(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Return the address of element ``arguments[1]`` of the array ``arguments[0]``."""
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    return builder.gep(array.data, [arguments[1]])


@intrinsic
def load(_context: Any, array: Any, first: Any) -> Any:
    """Return ``LANES`` elements of an array from ``first`` on."""
    _check(array)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return vectors.load(builder, _address(context, builder, signature, arguments))

    return _lanes(array, types.int64), generate


@intrinsic
def load_first(_context: Any, array: Any, first: Any, count: Any, fill: Any) -> Any:
    """Return ``count`` elements of an array from ``first`` on, and ``fill`` in the other lanes."""
    _check(array)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature, arguments)
        mask, fill = vectors.first_lanes(builder, arguments[2]), vectors.splat(builder, arguments[3])
        return vectors.load(builder, address, mask, fill)

    return _lanes(array, types.int64, types.int64, types.float32), generate


@intrinsic
def store(_context: Any, array: Any, first: Any, lanes: Any) -> Any:
    """Set ``LANES`` elements of an array from ``first`` on."""
    _check(array)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vectors.store(builder, arguments[2], _address(context, builder, signature, arguments))
        return context.get_dummy_value()

    return types.void(array, types.int64, lanes), generate


@intrinsic
def store_first(_context: Any, array: Any, first: Any, count: Any, lanes: Any) -> Any:
    """Set ``count`` elements of an array from ``first`` on."""
    _check(array)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, mask = _address(context, builder, signature, arguments), vectors.first_lanes(builder, arguments[2])
        vectors.store(builder, arguments[3], address, mask)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64, lanes), generate


@intrinsic
def splat(_context: Any, value: Any) -> Any:
    """Return ``value`` in all lanes."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return vectors.splat(builder, arguments[0])

    return _lanes(types.float32), generate


@intrinsic
def add(_context: Any, x: Any, y: Any) -> Any:
    """Return x + y."""
    return _lanes(x, y), lambda _context, builder, _signature, arguments: builder.fadd(*arguments)


@intrinsic
def subtract(_context: Any, x: Any, y: Any) -> Any:
    """Return x − y."""
    return _lanes(x, y), lambda _context, builder, _signature, arguments: builder.fsub(*arguments)


@intrinsic
def multiply(_context: Any, x: Any, y: Any) -> Any:
    """Return x·y."""
    return _lanes(x, y), lambda _context, builder, _signature, arguments: builder.fmul(*arguments)


@intrinsic
def multiply_add(_context: Any, x: Any, y: Any, z: Any) -> Any:
    """Return x·y + z, rounded once."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return vectors.multiply_add(builder, *arguments)

    return _lanes(x, y, z), generate


@intrinsic
def no_products(_context: Any) -> Any:
    """Return 0 in all lanes of float64, to add products to."""
    return _sums(), lambda _context, _builder, _signature, _arguments: ir.Constant(DOUBLE_VECTOR, [0.0] * LANES)


@intrinsic
def add_products(_context: Any, sums: Any, x: Any, y: Any) -> Any:
    """Return sums + x·y in float64, where products of float32 are exact: only the sum is rounded."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        x, y = (builder.fpext(lanes, DOUBLE_VECTOR) for lanes in arguments[1:])
        return builder.fadd(arguments[0], builder.fmul(x, y))

    return _sums(sums, x, y), generate


@intrinsic
def sum_of_products(_context: Any, sums: Any) -> Any:
    """Return the sum of all lanes of float64, added up as a tree."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return vectors.reduce(builder, arguments[0], builder.fadd)

    return types.float64(sums), generate


@intrinsic
def maximum(_context: Any, x: Any, y: Any) -> Any:
    """Return the larger of x and y in each lane; y where either is NaN."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *arguments), *arguments)

    return _lanes(x, y), generate


@intrinsic
def power_of_two(_context: Any, shifted: Any) -> Any:
    """Return 2ⁿ, n in −126 to 127, where ``shifted`` is n + 1.5·2²³: its lowest bits are the bits of n."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        biased = builder.add(builder.bitcast(arguments[0], INT_VECTOR), ir.Constant(INT_VECTOR, [127] * LANES))
        return builder.bitcast(builder.shl(biased, ir.Constant(INT_VECTOR, [23] * LANES)), VECTOR)

    return _lanes(shifted), generate


@intrinsic
def sum_of(_context: Any, lanes: Any) -> Any:
    """Return the sum of all lanes, added up as a tree."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return vectors.reduce(builder, arguments[0], builder.fadd)

    return types.float32(lanes), generate


@intrinsic
def largest_of(_context: Any, lanes: Any) -> Any:
    """Return the largest lane."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        def larger(x: Any, y: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", x, y), x, y)

        return vectors.reduce(builder, arguments[0], larger)

    return types.float32(lanes), generate


@njit(cache=True, error_model="numpy", inline="always")
def dot_lanes(x_D, y_D):  # type: ignore[no-untyped-def]
    """Return x·y, in 16 partial sums."""
    total = splat(0.0)
    whole = x_D.shape[0] // LANES * LANES
    for d in range(0, whole, LANES):
        total = multiply_add(load(x_D, d), load(y_D, d), total)
    if whole < x_D.shape[0]:
        rest = x_D.shape[0] - whole
        total = multiply_add(load_first(x_D, whole, rest, 0.0), load_first(y_D, whole, rest, 0.0), total)
    return sum_of(total)


@njit(cache=True, error_model="numpy", inline="always")
def exact_dot(x_D, y_D):  # type: ignore[no-untyped-def]
    """Return x·y as float64: the sum of exact products, in 16 partial sums."""
    total = no_products()
    whole = x_D.shape[0] // LANES * LANES
    for d in range(0, whole, LANES):
        total = add_products(total, load(x_D, d), load(y_D, d))
    if whole < x_D.shape[0]:
        rest = x_D.shape[0] - whole
        total = add_products(total, load_first(x_D, whole, rest, 0.0), load_first(y_D, whole, rest, 0.0))
    return sum_of_products(total)
