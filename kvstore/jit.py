"""Numba's decorators for the kernels of this project, with a cache that follows the kernels that a file imports.

    from crossfade.kvstore.jit import inner_kernel, intrinsic, njit, prange

Numba compiles the functions that a kernel calls into it, and caches the result until the kernel's own file changes.
Importing this module makes numba add the files that a kernel's file imports kernels from, directly or not.

Of the processes that need a kernel which is not in the cache, such as the roles on a host, one compiles it.
"""

from __future__ import annotations

import ast
import hashlib
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from types import FunctionType
from typing import Any

from crossfade.base.errors import InputError
from crossfade.base.io.file_lock import try_lock
from crossfade.base.packages import hidden

_THREADS_VARIABLE, _MAX_THREADS = "NUMBA_NUM_THREADS", 4096
_INTERPRETER_VARIABLE = "NUMBA_DISABLE_JIT"
_LAYER_VARIABLE, _PRIORITY_VARIABLE = "NUMBA_THREADING_LAYER", "NUMBA_THREADING_LAYER_PRIORITY"
_LAYERS = ("default", "omp", "workqueue")
"""The threading layers that kernels are tested with. 'safe' and 'threadsafe' may need TBB."""
_LOCATORS_VARIABLE = "NUMBA_CACHE_LOCATOR_CLASSES"
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
    from numba import config, extending, get_num_threads, prange
    from numba.core import caching
    from numba.core.compiler_lock import global_compiler_lock
    from numba.core.registry import cpu_target

__all__ = ["allocating_kernel", "compiled_for", "get_num_threads", "inner_kernel", "intrinsic", "njit", "prange"]

_MAX_WAIT_SECONDS = 60.0
"""Seconds to wait for another process that compiles the same kernel, before this one compiles it too."""
_POLL_SECONDS = 0.02
_logger = logging.getLogger(__name__)


def njit(**options: Any) -> Callable[[Any], Any]:
    """Decorate a kernel as ``numba.njit`` does, but compile it in one process at a time: others load the result."""

    def decorate(function: Any) -> Any:
        try:
            kernel: Any = numba.njit(**options)(function)
        except RuntimeError as error:
            if _LOCATORS_VARIABLE not in str(error):
                raise
            raise InputError(f"{_LOCATORS_VARIABLE}: numba has no such class: {error}; unset it") from error
        load_or_compile = kernel.compile

        def compile_once(signature: Any) -> Any:
            if signature in kernel.overloads:
                return load_or_compile(signature)
            # Numba's lock comes first: in its order, two threads would each wait for a kernel that the other locked.
            with global_compiler_lock, _locked(kernel._cache):
                return load_or_compile(signature)

        kernel.compile = compile_once
        return kernel

    return decorate


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


inner_kernel: Any = partial(njit, cache=True, error_model="numpy", forceinline=True, _nrt=False)
"""Compile a function that kernels call for each row into these kernels, without counting references.

LLVM inlines it. Inlined by Numba (``inline="always"``), arguments become variables, and where a loop of a parallel
kernel writes to an array only in the inlined body, Numba may remove that as dead code. Without ``_nrt=False``, each
call counts references to its arrays, atomically, in counters that all threads share. Such a function cannot allocate.
"""

allocating_kernel: Any = partial(njit, cache=True, error_model="numpy", _nrt=True)
"""Compile a function that allocates and that inner kernels call: it would inherit their ``_nrt=False``."""

intrinsic: Any = extending.intrinsic
"""Define a function that kernels call by the LLVM code that it generates.

Untyped on purpose: numba's annotations give a decorated function the parameters of its definition, among them the
typing context, so mypy would reject every call.
"""

_FLOAT_FEATURES = ("avx", "avx2", "fma", "avx512f")
"""The features of x86-64 that the rounding of sums depends on most."""


def compiled_for() -> str:
    """Return the processor that kernels are compiled for: this one, or that of ``NUMBA_CPU_NAME``."""
    _, name, features = cpu_target.target_context.codegen().magic_tuple()
    enabled = features.split(",")
    return "".join([str(name), *(f"+{feature}" for feature in _FLOAT_FEATURES if f"+{feature}" in enabled)])


_COMPILER = re.compile(r"^(from|import) (numba|llvmlite|crossfade\.kvstore\.jit)\b", re.MULTILINE)
"""What a file that defines kernels, or parts of them, imports."""


class _StampOfImports:
    """Adds the content of the files that a kernel's file imports kernels from to its stamp."""

    _imported_stamps: tuple[bytes, ...] = ()

    @classmethod
    def from_function(cls, py_func: FunctionType, py_file: str) -> Any:
        locator = super().from_function(py_func, py_file)  # type: ignore[misc]
        if locator is not None and Path(py_file).exists():
            locator._imported_stamps = _stamps_of_imports(Path(py_file))
        return locator

    def get_source_stamp(self) -> Any:
        return super().get_source_stamp(), self._imported_stamps  # type: ignore[misc]


@cache
def _stamps_of_imports(file: Path) -> tuple[bytes, ...]:
    """Return the hashes of the files that a file imports kernels from: once for all of its kernels."""
    return tuple(hashlib.sha256(file.read_bytes()).digest() for file in sorted(_imported_files(file, set())))


def _imported_files(file: Path, seen: set[str]) -> Iterator[Path]:
    """Yield the files with kernels that a file imports, and those that they import; ``seen`` has known modules."""
    for name in _imported_modules(file.read_text(encoding="utf-8")):
        imported = getattr(sys.modules.get(name), "__file__", None)
        if name in seen or imported is None or not imported.endswith(".py") or name.partition(".")[0] == "numba":
            continue
        seen.add(name)
        if _COMPILER.search(Path(imported).read_text(encoding="utf-8")):
            yield Path(imported)
            yield from _imported_files(Path(imported), seen)


def _imported_modules(source: str) -> Iterator[str]:
    """Yield the names of the modules that a source imports at its top level, and names that may be modules."""
    if not _COMPILER.search(source):
        return
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


class UserProvidedCacheLocator(_StampOfImports, caching.UserProvidedCacheLocator):
    """Locates caches in ``NUMBA_CACHE_DIR``."""


class InTreeCacheLocator(_StampOfImports, caching.InTreeCacheLocator):
    """Locates caches in ``__pycache__`` beside the file."""


class UserWideCacheLocator(_StampOfImports, caching.UserWideCacheLocator):
    """Locates caches in the user's cache folder."""


_LOCATORS = UserProvidedCacheLocator, InTreeCacheLocator, UserWideCacheLocator
if not config.CACHE_LOCATOR_CLASSES:  # type: ignore[attr-defined]
    names = [f"{__name__}.{locator.__name__}" for locator in _LOCATORS]
    config.CACHE_LOCATOR_CLASSES = ",".join(  # type: ignore[attr-defined]
        [*names, "IPythonCacheLocator", "ZipCacheLocator"]
    )
