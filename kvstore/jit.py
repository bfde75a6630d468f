"""Numba's decorators for the kernels of this project, whose compiled code is kept as ``kernel_cache.py`` says.

    from crossfade.kvstore.jit import inner_kernel, intrinsic, njit

Loops are shared among threads by ``threads.py``: numba's ``prange`` takes seconds to compile.

Of the processes that need a kernel which is not in the cache, such as the roles on a host, one compiles it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from crossfade.base.errors import InputError
from crossfade.base.io.file_lock import try_lock
from crossfade.base.packages import hidden

_THREADS_VARIABLE, _MAX_THREADS = "NUMBA_NUM_THREADS", 4096
_INTERPRETER_VARIABLE = "NUMBA_DISABLE_JIT"
_LAYER_VARIABLE, _PRIORITY_VARIABLE = "NUMBA_THREADING_LAYER", "NUMBA_THREADING_LAYER_PRIORITY"
_LAYERS = ("default", "omp", "workqueue")
"""The threading layers that kernels are tested with. 'safe' and 'threadsafe' may need TBB."""
_FOLDER_VARIABLE, _LOCATORS_VARIABLE = "NUMBA_CACHE_DIR", "NUMBA_CACHE_LOCATOR_CLASSES"
_LIBRARIES = ("omp", "workqueue", "tbb")


def _check_environment() -> None:
    """Check the variables that numba reads: it crashes with very many threads, and kernels of vectors need it.

    Raises:
        InputError: one of them cannot be used.
    """
    threads = os.environ.get(_THREADS_VARIABLE)
    if threads is not None and not _is_number_of_threads(threads.strip()):
        raise InputError(
            f"{_THREADS_VARIABLE}: expected a number of threads from 1 to {_MAX_THREADS:,}, but found '{threads}'; "
            "correct it, or unset it to use all cores"
        )
    layer = os.environ.get(_LAYER_VARIABLE, _LAYERS[0])
    if layer not in _LAYERS:
        raise InputError(
            f"{_LAYER_VARIABLE}: expected {', '.join(_LAYERS[:-1])}, or {_LAYERS[-1]}, but found '{layer}'; "
            "correct it, or unset it"
        )
    priority = os.environ.get(_PRIORITY_VARIABLE)
    if priority is not None and sorted(priority.split()) != sorted(_LIBRARIES):
        raise InputError(
            f"{_PRIORITY_VARIABLE}: expected {', '.join(_LIBRARIES[:-1])}, and {_LIBRARIES[-1]} in any order, but "
            f"found '{priority}'; correct it, or unset it"
        )
    if os.environ.get(_INTERPRETER_VARIABLE, "0").strip() not in {"", "0"}:
        raise InputError(f"{_INTERPRETER_VARIABLE}: kernels must be compiled; unset it")


def _is_number_of_threads(text: str) -> bool:
    return text.isdecimal() and len(text) <= len(str(_MAX_THREADS)) and 1 <= int(text) <= _MAX_THREADS


_check_environment()
with hidden("scipy"):
    import numba
    from numba import extending, get_num_threads
    from numba.core.compiler_lock import global_compiler_lock
    from numba.core.registry import cpu_target
    from numba.np.ufunc.parallel import _launch_threads

    from crossfade.kvstore.kernel_code import kernel_libraries
    from crossfade.kvstore.portable_kernels import KernelCache

__all__ = ["allocating_kernel", "chosen_kernel", "compiled_for", "get_num_threads", "inner_kernel", "intrinsic", "njit"]

_MAX_WAIT_SECONDS = 60.0
"""Seconds to wait for another process that compiles the same kernel, before this one compiles it too."""
_POLL_SECONDS = 0.02
_NO_WRAPPER: dict[str, Any] = {"no_cfunc_wrapper": True}
"""Leave out the code by which C calls a kernel: it contains the kernel a second time."""
KERNELS: list[Any] = []
"""The cached kernels of all modules that were imported."""
_logger = logging.getLogger(__name__)


def njit(**options: Any) -> Callable[[Any], Any]:
    """Decorate a kernel as ``numba.njit`` does, but compile it in one process at a time: others load the result."""

    is_cached = options.pop("cache", False)

    def decorate(function: Any) -> Any:
        kernel: Any = numba.njit(**_NO_WRAPPER, **options)(function)
        if is_cached:
            KERNELS.append(kernel)
        load_or_compile = kernel.compile

        def compile_once(signature: Any) -> Any:
            if signature in kernel.overloads:
                return load_or_compile(signature)
            if is_cached and not isinstance(kernel._cache, KernelCache):  # most kernels of a module are never called
                kernel._cache = _open_cache(function)
            # Numba's lock comes first: in its order, two threads would each wait for a kernel that the other locked.
            with global_compiler_lock, kernel_libraries(), _locked(kernel._cache):
                _launch_threads()  # type: ignore[no-untyped-call]  # defines what loops call, those from the cache too
                return load_or_compile(signature)

        kernel.compile = compile_once
        # Finding numba's extensions takes time, and its compiler does so as well.
        kernel._compilation_chain_init_hook = lambda: None
        return kernel

    return decorate


def _open_cache(function: Any) -> KernelCache:
    try:
        return KernelCache(function)
    except RuntimeError as error:
        if _LOCATORS_VARIABLE not in str(error):
            raise InputError(
                f"{_FOLDER_VARIABLE}: numba found no folder for compiled kernels that it can write; set it to one"
            ) from error
        raise InputError(f"{_LOCATORS_VARIABLE}: numba has no such class: {error}; unset it") from error


@contextmanager
def _locked(kernel_cache: Any) -> Iterator[None]:
    """Lock a kernel's cache against other processes; go on without a lock where that takes too long or fails."""
    if kernel_cache.cache_path is None:
        yield
        return
    path = Path(kernel_cache.cache_path, f"{kernel_cache._impl.filename_base}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:  # a cache that is read-only
        yield
        return
    try:
        _wait_for(lock, path.stem)
        yield
    finally:
        os.close(lock)


def _wait_for(lock: int, name: str) -> None:
    deadline = time.monotonic() + _MAX_WAIT_SECONDS
    waiting = False
    while time.monotonic() < deadline:
        try:
            try_lock(lock)
        except BlockingIOError:
            if not waiting:
                _logger.debug("waiting for another process that compiles %s", name)
                waiting = True
            time.sleep(_POLL_SECONDS)
        except OSError:  # a file system without locks
            return
        else:
            return


inner_kernel: Any = partial(
    njit, cache=True, error_model="numpy", forceinline=True, _nrt=False, no_cpython_wrapper=True
)
"""Compile a function that kernels call for each row into these kernels, without counting references.

Python cannot call it: the code that would take apart Python's arguments takes time to compile.

LLVM inlines it. Without ``_nrt=False``, each call counts references to its arrays, atomically, in counters that all
threads share. Such a function cannot allocate.
"""

allocating_kernel: Any = partial(njit, cache=True, error_model="numpy", _nrt=True, no_cpython_wrapper=True)
"""Compile a function that allocates and that inner kernels call: it would inherit their ``_nrt=False``.

Python cannot call it either.
"""


def chosen_kernel(choose: Any) -> Any:
    """Decorate a function that returns the function to call for the types of arguments, compiled as inner kernels are.

    Numba also drops a branch on whether an argument is None before it is typed, but not one on an element of a tuple.
    """
    options: Any = {"error_model": "numpy", "forceinline": True, "_nrt": False, **_NO_WRAPPER}
    return extending.overload(choose, jit_options=options)(choose)


intrinsic: Any = extending.intrinsic
"""Define a function that kernels call by the LLVM code that it generates.

Untyped on purpose: numba's annotations give a decorated function the parameters of its definition, among them the
typing context, so mypy would reject every call.
"""

_FLOAT_FEATURES = ("avx", "avx2", "fma", "avx512f")
"""The features of x86-64 that the rounding of sums depends on most."""


def compiled_for() -> str:
    """Return the processor that kernels are compiled for: this one, or ``NUMBA_CPU_NAME``."""
    _, name, features = cpu_target.target_context.codegen().magic_tuple()
    enabled = features.split(",")
    return "".join([str(name), *(f"+{feature}" for feature in _FLOAT_FEATURES if f"+{feature}" in enabled)])
