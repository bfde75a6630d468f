"""Prefetch scattered rows into the CPU caches from within numba kernels.

Rows of a table of gigabytes are in no cache. A kernel that requests the row several iterations ahead overlaps the
latency of several rows instead of waiting for one after the other. Results do not change.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils

from kvstore.jit import inner_kernel, intrinsic

AHEAD = 8
"""Iterations to look ahead: about as many cache misses as a core can have in flight."""
_LINE_BYTES = 64
_WRITE, _KEEP, _DATA = 1, 3, 1
"""Arguments of llvm.prefetch: for writing, with high temporal locality, into the data cache."""


@intrinsic
def _prefetch_byte(_context: Any, array: Any, row: Any, offset: Any) -> Any:
    """Prefetch the cache line of byte ``offset`` of ``array[row]``; an invalid address is harmless."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        int32, int64, pointer = ir.IntType(32), ir.IntType(64), ir.IntType(8).as_pointer()
        value = context.make_array(signature.args[0])(context, builder, arguments[0])
        number = context.cast(builder, arguments[1], signature.args[1], types.int64)
        start = builder.add(builder.mul(builder.extract_value(value.strides, 0), number), arguments[2])
        address = builder.inttoptr(builder.add(builder.ptrtoint(value.data, int64), start), pointer)
        kind = ir.FunctionType(ir.VoidType(), [pointer, int32, int32, int32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")  # type: ignore[no-untyped-call]
        builder.call(function, [address, int32(_WRITE), int32(_KEEP), int32(_DATA)])
        return context.get_dummy_value()

    return types.void(array, row, offset), generate


@inner_kernel()
def prefetch_row(array, row):  # type: ignore[no-untyped-def]
    """Prefetch ``array[row]``."""
    for offset in range(0, array.strides[0], _LINE_BYTES):
        _prefetch_byte(array, row, offset)


@inner_kernel()
def prefetch_ahead(array, rows_A, a):  # type: ignore[no-untyped-def]
    """Prefetch the row of ``array`` that a loop over ``a`` needs ``AHEAD`` iterations later."""
    if a + AHEAD < rows_A.shape[0]:
        prefetch_row(array, rows_A[a + AHEAD])
