"""Numba's decorators for the kernels of this project, with a cache that follows the kernels that a file imports.

    from kvstore.jit import inner_kernel, njit, prange

Numba compiles the functions that a kernel calls into it, and caches the result until the kernel's own file changes.
Importing this module makes numba add the files that a kernel's file imports kernels from, directly or not.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from types import FunctionType
from typing import Any

from numba import config, get_num_threads, njit, prange
from numba.core import caching

__all__ = ["allocating_kernel", "get_num_threads", "inner_kernel", "njit", "prange"]

inner_kernel: Any = partial(njit, cache=True, error_model="numpy", forceinline=True, _nrt=False)
"""Compile a function that kernels call for each row into these kernels, without counting references.

LLVM inlines it. Inlined by Numba (``inline="always"``), arguments become variables, and where a loop of a parallel
kernel writes to an array only in the inlined body, Numba may remove that as dead code. Without ``_nrt=False``, each
call counts references to its arrays, atomically, in counters that all threads share. Such a function cannot allocate.
"""

allocating_kernel: Any = partial(njit, cache=True, error_model="numpy", _nrt=True)
"""Compile a function that allocates and that inner kernels call: it would inherit their ``_nrt=False``."""

_COMPILER = re.compile(r"^(from|import) (numba|llvmlite|kvstore\.jit)\b", re.MULTILINE)
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
