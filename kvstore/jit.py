"""Numba's decorators for the kernels of this project, whose compiled code is kept as ``kernel_cache.py`` says.

    from crossfade.kvstore.jit import inner_kernel, intrinsic, njit

Loops are shared among threads by ``threads.py``: numba's ``prange`` takes seconds to compile.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from crossfade.base.environment import environment_integer
from crossfade.base.errors import InputError
from crossfade.base.packages import hidden

environment_integer("NUMBA_NUM_THREADS", 1, 1, 4096)  # numba crashes with more
with hidden("scipy"):
    import numba
    from numba import extending, get_num_threads
    from numba.core.compiler_lock import global_compiler_lock
    from numba.core.registry import cpu_target
    from numba.np.ufunc.parallel import _launch_threads

    from crossfade.kvstore.kernel_code import kernel_libraries
    from crossfade.kvstore.portable_kernels import KernelCache

if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
    raise InputError("NUMBA_DISABLE_JIT is set, but kernels must be compiled; unset it")
_LAYERS = ("default", "forksafe", "omp", "safe", "tbb", "threadsafe", "workqueue")
if (_layer := str(numba.config.THREADING_LAYER)) not in _LAYERS:  # type: ignore[attr-defined]
    raise InputError(f"NUMBA_THREADING_LAYER is '{_layer}', expected {' or '.join(_LAYERS)}; correct it, or unset it")
if _layer in ("safe", "tbb"):
    try:
        from numba.np.ufunc import tbbpool  # type: ignore[attr-defined]  # noqa: F401
    except ImportError as error:
        raise InputError(f"NUMBA_THREADING_LAYER is {_layer}, which needs TBB; install it, or unset it") from error

__all__ = ["allocating_kernel", "chosen_kernel", "compiled_for", "get_num_threads", "inner_kernel", "intrinsic", "njit"]

_NO_WRAPPER: dict[str, Any] = {"no_cfunc_wrapper": True}
"""Leave out the code by which C calls a kernel: it contains the kernel a second time."""
KERNELS: list[Any] = []
"""The cached kernels of all modules that were imported."""


def njit(**options: Any) -> Callable[[Any], Any]:
    """Decorate a kernel as ``numba.njit`` does, but keep its compiled code as ``kernel_cache.py`` says."""

    is_cached = options.pop("cache", False)

    def decorate(function: Any) -> Any:
        kernel: Any = numba.njit(**_NO_WRAPPER, **options)(function)
        if is_cached:
            KERNELS.append(kernel)
        load_or_compile = kernel.compile

        def load_or_compile_portable(signature: Any) -> Any:
            if signature in kernel.overloads:
                return load_or_compile(signature)
            if is_cached and not isinstance(kernel._cache, KernelCache):  # most kernels of a module are never called
                kernel._cache = _open_cache(function)
            with global_compiler_lock, kernel_libraries():
                _launch_threads()  # type: ignore[no-untyped-call]  # defines what loops call, those from the cache too
                return load_or_compile(signature)

        kernel.compile = load_or_compile_portable
        # Finding numba's extensions takes time, and its compiler does so as well.
        kernel._compilation_chain_init_hook = lambda: None
        return kernel

    return decorate


def _open_cache(function: Any) -> KernelCache:
    try:
        return KernelCache(function)
    except RuntimeError as error:
        raise InputError(
            "NUMBA_CACHE_DIR: numba found no folder for compiled kernels that it can write; set it to one"
        ) from error


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
