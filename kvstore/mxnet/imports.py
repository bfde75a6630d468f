"""The one way in which Crossfade imports MXNet, and views of MXNet's memory as numpy arrays."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import warnings
from typing import Any

import numpy as np

from kvstore import memory as pages
from kvstore.arrays import FloatArray, IntArray
from kvstore.errors import InputError, MissingExtraError
from kvstore.mxnet.deferred_operators import deferred_operators

ROLE_VARIABLE = "DMLC_ROLE"


def require_mxnet() -> None:
    """Look whether MXNet is installed, without the seconds that an import takes.

    Raises:
        MissingExtraError: it is not.
    """
    if importlib.util.find_spec("mxnet") is None:
        raise MissingExtraError("mxnet", extra="mxnet", purpose="training with servers or with 'engine: mxnet'")


def import_mxnet() -> Any:
    """Import MXNet 1.x beside a numpy that has lost the aliases it uses, without letting it seize the process.

    In a process whose ``DMLC_ROLE`` is server or scheduler, ``import mxnet`` runs the role's loop and exits. The role
    is hidden meanwhile, so that a main of our own runs it.

    Raises:
        MissingExtraError: MXNet is not installed.
        InputError: it is, but a system library that it needs is not.
    """
    require_mxnet()
    role = os.environ.pop(ROLE_VARIABLE, None)
    numpy_bool = np.__dict__.get("bool")
    np.bool = np.bool_  # type: ignore[attr-defined]
    try:
        with warnings.catch_warnings(), deferred_operators():
            warnings.simplefilter("ignore")
            import mxnet
    except OSError as error:
        raise InputError(
            f"mxnet is installed but cannot be loaded: {error}; it needs the system libraries libgomp1 and libquadmath0"
        ) from error
    finally:
        if numpy_bool is None:
            del np.bool  # type: ignore[attr-defined]
        if role is not None:
            os.environ[ROLE_VARIABLE] = role
    return mxnet


def _library() -> Any:
    from mxnet.base import _LIB

    return _LIB


def _check(status: int) -> None:
    from mxnet.base import check_call

    check_call(status)


def dense_view(array: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """A numpy array on the memory of a dense NDArray, or of a row_sparse one's values; no copy.

    It is valid for as long as somebody holds the NDArray, and its pending operations must have been waited for.
    """
    if 0 in shape:
        return np.empty(shape, dtype=dtype)
    pointer = ctypes.c_void_p()
    _check(_library().MXNDArrayGetData(array.handle, ctypes.byref(pointer)))
    assert pointer.value is not None
    bytes_wanted = int(np.prod(shape)) * np.dtype(dtype).itemsize
    buffer = (ctypes.c_byte * bytes_wanted).from_address(pointer.value)
    return np.frombuffer(memoryview(buffer), dtype=dtype).reshape(shape)


def row_sparse_ids(array: Any) -> IntArray:
    """The row ids that a row_sparse NDArray stores, int64 (A,): a copy, MXNet offers no view. It must be written."""
    from mxnet.base import NDArrayHandle
    from mxnet.ndarray import NDArray

    handle = NDArrayHandle()
    _check(_library().MXNDArrayGetAuxNDArray(array.handle, 0, ctypes.byref(handle)))
    ids_A: IntArray = NDArray(handle).asnumpy()
    return ids_A


def row_sparse_from(rows_A: IntArray, values_RD: FloatArray, order_A: IntArray, shape: tuple[int, int]) -> Any:
    """A row_sparse float32 NDArray of ``shape`` that stores ``values_RD[order_A]`` as its rows ``rows_A``.

    ``rows_A`` are sorted, unique int64 (a float32 id, MXNet's default, is wrong above 2^24).
    """
    result, values_AD = _row_sparse_unwritten(rows_A, shape)
    if len(rows_A):
        np.take(values_RD, order_A, axis=0, out=values_AD)
    return result


def row_sparse_zeros(shape: tuple[int, int], *, stored: bool) -> Any:
    """Zeros in row_sparse form: with every row stored, values that take no memory unless written, or with none."""
    result, values_AD = _row_sparse_unwritten(np.arange(shape[0] if stored else 0, dtype=np.int64), shape)
    pages.advise_huge_pages(values_AD)
    pages.release_pages(values_AD)
    return result


def _row_sparse_unwritten(rows_A: IntArray, shape: tuple[int, int]) -> tuple[Any, FloatArray]:
    """A row_sparse float32 NDArray that stores ``rows_A``, and its values, yet to be written where they lie."""
    import mxnet as mx
    from mxnet.ndarray.sparse import RowSparseNDArray, _new_alloc_handle

    if len(rows_A) == 0:
        return mx.nd.sparse.zeros("row_sparse", shape), np.empty((0, shape[1]), dtype=np.float32)
    ids = mx.nd.empty(len(rows_A), dtype=np.int64)
    dense_view(ids, ids.shape, np.int64)[:] = rows_A
    result = RowSparseNDArray(
        _new_alloc_handle("row_sparse", shape, mx.cpu(), False, np.float32, [np.int64], [rows_A.shape])
    )
    _check(_library().MXNDArraySyncCopyFromNDArray(result.handle, ids.handle, ctypes.c_int(0)))
    return result, dense_view(result, (len(rows_A), shape[1]), np.float32)
