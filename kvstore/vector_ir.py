"""LLVM code for vectors of sixteen float32, from which the intrinsics of ``lanes.py`` and ``row_kernels.py`` are made.

Each function appends instructions to a builder's block. Vectors are of ``LANES`` float32; a processor with shorter
vectors computes the same in several instructions. Memory may have any address that a float32 has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils

LANES = 16
FLOAT, INT32, INT64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
VECTOR, INT_VECTOR = ir.VectorType(FLOAT, LANES), ir.VectorType(INT32, LANES)
DOUBLE_VECTOR = ir.VectorType(ir.DoubleType(), LANES)
_FLOAT_BYTES = 4


def constant(value: float) -> Any:
    """Return ``value`` in all lanes."""
    return ir.Constant(VECTOR, [value] * LANES)


def splat(builder: Any, value: Any, vector: Any = VECTOR) -> Any:
    """Return the scalar ``value`` in all lanes of a ``vector``."""
    single = builder.insert_element(ir.Constant(vector, ir.Undefined), value, INT32(0))
    return builder.shuffle_vector(single, single, ir.Constant(INT_VECTOR, [0] * LANES))


def first_lanes(builder: Any, count: Any) -> Any:
    """Return the mask of the first ``count`` lanes."""
    counts = splat(builder, builder.trunc(count, INT32), INT_VECTOR)
    return builder.icmp_signed("<", ir.Constant(INT_VECTOR, list(range(LANES))), counts)


def load(builder: Any, pointer: Any, mask: Any = None, fill: Any = None) -> Any:
    """Load the vector at a pointer to float32; lanes outside ``mask`` are taken from ``fill``, by default 0."""
    address = builder.bitcast(pointer, VECTOR.as_pointer())
    if mask is None:
        return builder.load(address, align=_FLOAT_BYTES)
    arguments = [address, INT32(_FLOAT_BYTES), mask, constant(0.0) if fill is None else fill]
    return call(builder, "llvm.masked.load.v16f32.p0v16f32", VECTOR, arguments)


def store(builder: Any, vector: Any, pointer: Any, mask: Any = None) -> None:
    """Store a vector at a pointer to float32; lanes that are not in ``mask`` are not written."""
    address = builder.bitcast(pointer, VECTOR.as_pointer())
    if mask is None:
        builder.store(vector, address, align=_FLOAT_BYTES)
    else:
        arguments = [vector, address, INT32(_FLOAT_BYTES), mask]
        call(builder, "llvm.masked.store.v16f32.p0v16f32", ir.VoidType(), arguments)


def multiply_add(builder: Any, x: Any, y: Any, z: Any) -> Any:
    """Return x·y + z, rounded once."""
    return call(builder, "llvm.fma.v16f32", VECTOR, [x, y, z])


def reduce(builder: Any, vector: Any, combine: Callable[[Any, Any], Any]) -> Any:
    """Combine lanes as a tree: 8 apart, then 4, 2, 1."""
    for width in (8, 4, 2, 1):
        other = ir.Constant(INT_VECTOR, [(lane + width) % LANES for lane in range(LANES)])
        vector = combine(vector, builder.shuffle_vector(vector, vector, other))
    return builder.extract_element(vector, INT32(0))


def call(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    """Call an intrinsic of LLVM."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)  # type: ignore[no-untyped-call]
