"""Invalidate numba's cache of a kernel when a file that it takes other kernels from changes.

Numba compiles the functions that a kernel calls into it, and caches the result until the kernel's own file changes. The
locators here add to the stamp of a file those of the files that its module imports kernels from, directly or not.
``kvstore/__init__.py`` installs them by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

from numba.core import caching


class _StampOfImports:
    """Adds the content of the files that kernels are imported from to the stamp of a kernel's file."""

    _imported_stamps: tuple[Any, ...] = ()

    @classmethod
    def from_function(cls, py_func: FunctionType, py_file: str) -> Any:
        locator = super().from_function(py_func, py_file)  # type: ignore[misc]
        if locator is not None:
            files = sorted(_imported_files(py_func.__globals__, {py_file}))
            locator._imported_stamps = tuple(map(_content_stamp, files))
        return locator

    def get_source_stamp(self) -> Any:
        return super().get_source_stamp(), self._imported_stamps  # type: ignore[misc]


def _imported_files(module_globals: dict[str, Any], seen: set[str]) -> Iterator[str]:
    """Yield the files of kernels that a module imports, and of those that their modules import."""
    for value in list(module_globals.values()):
        # A dispatcher holds its function as ``py_func``, and an intrinsic as ``_defn``.
        function = getattr(value, "py_func", None) or getattr(value, "_defn", None)
        if isinstance(function, FunctionType):
            file = inspect.getfile(function)
            if file not in seen and Path(file).exists():
                seen.add(file)
                yield file
                yield from _imported_files(function.__globals__, seen)


def _content_stamp(file: str) -> bytes:
    status = Path(file).stat()
    stamp: bytes = caching._hash_source_file(file, status.st_mtime, status.st_size)
    return stamp


class UserProvidedCacheLocator(_StampOfImports, caching.UserProvidedCacheLocator):
    """Locates caches in ``NUMBA_CACHE_DIR``."""


class InTreeCacheLocator(_StampOfImports, caching.InTreeCacheLocator):
    """Locates caches in ``__pycache__`` beside the file."""


class UserWideCacheLocator(_StampOfImports, caching.UserWideCacheLocator):
    """Locates caches in the user's cache folder."""
