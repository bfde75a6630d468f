"""Prefetch scattered rows into the CPU caches from within numba kernels.

Rows of a table of gigabytes are in no cache. A kernel that requests the row several iterations ahead overlaps the
latency of several rows instead of waiting for one after the other. Results do not change.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils

from crossfade.kvstore.jit import intrinsic

AHEAD = 4
"""Iterations to look ahead: with a few rows in each, about as many cache misses as a core can have in flight."""
_LINE_BYTES = 64
_USUAL_BYTES = 256
"""Rows of 64 columns are prefetched without a loop, which is a tenth faster."""
_WRITE, _KEEP, _DATA = 1, 3, 1
"""Arguments of llvm.prefetch: for writing, with high temporal locality, into the data cache."""


@intrinsic
def prefetch_row(_context: Any, arrays: Any, row: Any) -> Any:
    """Prefetch ``arrays[row]``, or the row of each array in a tuple; an invalid row is harmless."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = context.cast(builder, arguments[1], signature.args[1], types.int64)
        kinds, values = [arrays], [arguments[0]]
        if isinstance(arrays, types.BaseTuple):
            kinds, values = list(arrays), cgutils.unpack_tuple(builder, arguments[0])  # type: ignore[call-overload,no-untyped-call]
        for kind, value in zip(kinds, values, strict=True):
            if isinstance(kind, types.Array):
                _prefetch(builder, context.make_array(kind)(context, builder, value), number)
        return context.get_dummy_value()

    return types.void(arrays, row), generate


def _prefetch(builder: Any, array: Any, number: Any) -> None:
    """Generate the prefetching of row ``number`` of an array."""
    int32, int64, pointer = ir.IntType(32), ir.IntType(64), ir.IntType(8).as_pointer()
    size = builder.extract_value(array.strides, 0)
    start = builder.add(builder.ptrtoint(array.data, int64), builder.mul(size, number))
    kind = ir.FunctionType(ir.VoidType(), [pointer, int32, int32, int32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")  # type: ignore[no-untyped-call]

    def prefetch(offset: Any) -> None:
        address = builder.inttoptr(builder.add(start, offset), pointer)
        builder.call(function, [address, int32(_WRITE), int32(_KEEP), int32(_DATA)])

    with builder.if_else(builder.icmp_signed("==", size, int64(_USUAL_BYTES)), likely=True) as (then, otherwise):
        with then:
            for at in range(0, _USUAL_BYTES, _LINE_BYTES):
                prefetch(int64(at))
        lines = int64(0), size, int64(_LINE_BYTES), int64
        with otherwise, cgutils.for_range_slice(builder, *lines) as (offset, _):
            prefetch(offset)
