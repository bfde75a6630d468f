"""Import MXNet safely, view its memory as numpy arrays, and free its stores.

Other modules call ``import_mxnet`` first.

While it is imported, MXNet 1.x writes and compiles the Python source of some 4,000 operator functions, four times over
(NDArray, symbol and their numpy forms), of which a role of a job calls a dozen. A restarted job waits for that in each
of its processes. ``deferred_operators`` makes each function a stub that generates the real one when it is first called,
which cuts the time of the import to a third. A release whose registration code differs is imported unchanged.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.errors import InputError, MissingExtraError
from crossfade.base.packages import hidden
from crossfade.kvstore.memory import advise_huge_pages, release_pages

ROLE_VARIABLE = "DMLC_ROLE"

_WRITABLE = 0x200  # PyBUF_WRITE
_memory_at = ctypes.pythonapi.PyMemoryView_FromMemory
"""View memory as bytes; a ctypes array would be a new type for each size, and a cycle for the garbage collector."""
_memory_at.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)
_memory_at.restype = ctypes.py_object


def require_mxnet() -> None:
    """Check that MXNet is installed, without the seconds that an import takes.

    Raises:
        MissingExtraError: it is not.
    """
    if importlib.util.find_spec("mxnet") is None:
        raise MissingExtraError("mxnet", extra="mxnet", purpose="training with servers or with 'engine: mxnet'")


def import_mxnet() -> Any:
    """Import MXNet 1.x with a numpy that lacks the aliases it uses, and without starting its server.

    In a process whose ``DMLC_ROLE`` is server or scheduler, ``import mxnet`` runs the role's loop and exits. The
    role is hidden during the import, so that ``scheduler.run_until_done`` runs it instead.

    Raises:
        MissingExtraError: MXNet is not installed.
        InputError: a system library that it needs is not installed.
    """
    require_mxnet()
    role = os.environ.pop(ROLE_VARIABLE, None)
    numpy_bool = np.__dict__.get("bool")
    np.bool = np.bool_  # type: ignore[attr-defined]
    try:
        with warnings.catch_warnings(), deferred_operators(), hidden("scipy", "sklearn", "onnx"):
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


def free_store(store: Any) -> None:
    """Free what MXNet has behind ``store``, whatever else still refers to it, and let a worker leave the job.

    MXNet would do so once Python deletes ``store``. While the interpreter ends, that may never happen: then ps-lite's
    thread still runs when its destructors do, which aborts the process.
    """
    handle, store.handle = store.handle, None  # to free None, as Python's deletion then does, is allowed
    _check(_library().MXKVStoreFree(handle))


def dense_view(array: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """View the memory of a dense NDArray, or the values of a row_sparse one, as a numpy array without a copy.

    The view is valid while the NDArray is alive. Pending operations on the NDArray must have finished.
    """
    if 0 in shape:
        return np.empty(shape, dtype=dtype)
    pointer = ctypes.c_void_p()
    _check(_library().MXNDArrayGetData(array.handle, ctypes.byref(pointer)))
    assert pointer.value is not None
    num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    return np.frombuffer(_memory_at(pointer, num_bytes, _WRITABLE), dtype=dtype).reshape(shape)


def row_sparse_ids(array: Any) -> IntArray:
    """Copy the row ids of a row_sparse NDArray, int64 (A,); MXNet offers no view. Pending operations must be done."""
    from mxnet.base import NDArrayHandle
    from mxnet.ndarray import NDArray

    handle = NDArrayHandle()
    _check(_library().MXNDArrayGetAuxNDArray(array.handle, 0, ctypes.byref(handle)))
    ids_A: IntArray = NDArray(handle).asnumpy()
    return ids_A


def int64_array(values_A: IntArray) -> Any:
    """Copy int64 values into a new dense NDArray (``mx.nd.array`` takes ten times as long)."""
    import mxnet as mx

    result = mx.nd.empty(values_A.shape, dtype=np.int64)
    dense_view(result, values_A.shape, np.int64)[:] = values_A
    return result


def row_sparse_from(rows_A: IntArray, values_RD: FloatArray, order_A: IntArray, shape: tuple[int, int]) -> Any:
    """Create a row_sparse float32 NDArray of ``shape`` that stores ``values_RD[order_A]`` as its rows ``rows_A``.

    ``rows_A`` are sorted, unique int64 (float32 ids, MXNet's default, are inexact above 2^24).
    """
    result, values_AD = _row_sparse_uninitialized(rows_A, shape)
    if len(rows_A):
        np.take(values_RD, order_A, axis=0, out=values_AD)
    return result


def row_sparse_zeros(shape: tuple[int, int], *, stored: bool) -> Any:
    """Create row_sparse zeros: with every row stored, whose values take no memory until written, or with none."""
    result, values_AD = _row_sparse_uninitialized(np.arange(shape[0] if stored else 0, dtype=np.int64), shape)
    advise_huge_pages(values_AD)
    release_pages(values_AD)
    return result


def _row_sparse_uninitialized(rows_A: IntArray, shape: tuple[int, int]) -> tuple[Any, FloatArray]:
    """Create a row_sparse float32 NDArray that stores ``rows_A``; also return its uninitialized values, a view."""
    import mxnet as mx
    from mxnet.ndarray.sparse import RowSparseNDArray, _new_alloc_handle

    if len(rows_A) == 0:
        return mx.nd.sparse.zeros("row_sparse", shape), np.empty((0, shape[1]), dtype=np.float32)
    ids = int64_array(rows_A)
    result = RowSparseNDArray(
        _new_alloc_handle("row_sparse", shape, mx.cpu(), False, np.float32, [np.int64], [rows_A.shape])
    )
    _check(_library().MXNDArraySyncCopyFromNDArray(result.handle, ids.handle, ctypes.c_int(0)))
    return result, dense_view(result, (len(rows_A), shape[1]), np.float32)


_MAKERS = {
    "mxnet.ndarray.register": "_make_ndarray_function",
    "mxnet.symbol.register": "_make_symbol_function",
}
"""The modules that register operators, and what makes the function of one: maker(handle, name, func_name)."""

_DEFER = "__crossfade_defer__"


@contextmanager
def deferred_operators() -> Iterator[None]:
    """Import MXNet inside the block with operator functions that are generated at their first call."""
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def _defer(maker: Callable[..., Callable[..., Any]]) -> Callable[..., Callable[..., Any]]:
    def make_stub(handle: object, name: str, func_name: str) -> Callable[..., Any]:
        generated: list[Callable[..., Any]] = []

        def operator(*arguments: Any, **keywords: Any) -> Any:
            if not generated:
                generated.append(maker(handle, name, func_name))
            return generated[0](*arguments, **keywords)

        operator.__name__ = func_name
        operator.__doc__ = ""  # MXNet edits the text of some
        return operator

    return make_stub


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _MAKERS:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(fullname, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        module.__dict__[_DEFER] = _defer
        super().exec_module(module)

    def get_code(self, fullname: str) -> CodeType | None:
        maker = _MAKERS[fullname]
        source = self.get_data(self.path).decode("utf-8")
        registration = "\n_init_op_module("
        if source.count(registration) != 1 or f"\ndef {maker}(" not in source:
            return super().get_code(fullname)
        # The numpy forms import the maker from here, so that theirs are stubs too.
        source = source.replace(registration, f"\n{maker} = {_DEFER}({maker}){registration}")
        code: CodeType = compile(source, self.path, "exec")
        return code
