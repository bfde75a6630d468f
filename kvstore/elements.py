"""Access to elements of arrays whose numbers are not negative, for kernels.

    row = get(rows_A, a)                # rows_A[a]
    put(rows_A, a, row)                 # rows_A[a] = row
    place = lower_bound(rows_A, row)    # np.searchsorted(rows_A, row), which takes long to compile

Numba's indexing counts negative numbers from the end of the array. Where it cannot prove that there are none, each
access computes both cases, which in a loop over rows takes a tenth of the time. Numbers are not checked.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core.errors import TypingError

from crossfade.kvstore.jit import inner_kernel, intrinsic


def _check(array: Any) -> None:
    """Reject arrays with gaps between elements, or several dimensions, at compile time."""
    if not isinstance(array, types.Array) or (array.ndim, array.layout) != (1, "C"):
        raise TypingError(f"found {array}: expected a contiguous array with one dimension")


def _address(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    return builder.gep(array.data, [arguments[1]])


@intrinsic
def get(_context: Any, array: Any, number: Any) -> Any:
    """Return ``array[number]``."""
    _check(array)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_address(context, builder, signature, arguments))

    return array.dtype(array, types.int64), generate


@intrinsic
def put(_context: Any, array: Any, number: Any, value: Any) -> Any:
    """Set ``array[number]`` to ``value``."""
    _check(array)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], _address(context, builder, signature, arguments))
        return context.get_dummy_value()

    return types.void(array, types.int64, array.dtype), generate


@inner_kernel()
def lower_bound_between(values_N, value, low, high):  # type: ignore[no-untyped-def]
    """Return the first place from ``low`` to ``high``, between which values are sorted, whose value is not below."""
    while low < high:
        middle = (low + high) >> 1
        if values_N[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low


@inner_kernel()
def lower_bound(values_N, value):  # type: ignore[no-untyped-def]
    """Return the first place in ``values_N``, which are sorted, whose value is not below ``value``."""
    return lower_bound_between(values_N, value, 0, values_N.shape[0])
