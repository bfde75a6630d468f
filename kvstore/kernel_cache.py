"""Numba's cache of a kernel, valid while the code that it is compiled from stays the same.

Numba keeps kernels in ``NUMBA_CACHE_DIR``, in ``__pycache__`` beside their file, or in its folder of the user, until
the file changes. But a kernel contains the kernels that it calls: the stamp here is a hash of its file and of all files
that it imports kernels from. It is a hash of content, so a file with a new time is not compiled again.
"""

from __future__ import annotations

import hashlib
import re
import sys
from functools import cache
from pathlib import Path
from types import FunctionType

import llvmlite  # type: ignore[import-untyped]
import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile

_COMPILER = re.compile(r"^(?:from|import) (?:numba|llvmlite|crossfade\.kvstore\.jit)\b", re.MULTILINE)
"""What a file that defines kernels, or parts of them, imports."""
_IMPORT = re.compile(r"^(?:from|import) ([\w.]+)(?: import (\([^)]*\)|.*))?", re.MULTILINE)
_NAME = re.compile(r"\w+")
_OF_ALL = tuple(Path(__file__).with_name(name) for name in ("jit.py", "kernel_code.py"))
"""The files that change the code of all kernels: the options of decorators, and how it is linked."""
_VERSIONS = f"{numba.__version__} {llvmlite.__version__} {sys.version_info[:2]}"


class StampedCache(FunctionCache):
    """Numba's cache of one kernel, under the stamp of its code."""

    def __init__(self, function: FunctionType) -> None:
        """Open the cache of ``function``; raises RuntimeError if numba finds no folder that it can write."""
        super().__init__(function)  # type: ignore[no-untyped-call]
        self.stamp = _stamp(Path(function.__code__.co_filename))
        self._cache_file = IndexDataCacheFile(self._cache_path, self._impl.filename_base, self.stamp)  # type: ignore[no-untyped-call]


@cache
def _stamp(file: Path) -> str:
    """Return a hash of what the kernels of a file are compiled from and by."""
    files, left = {file, *_OF_ALL}, [file]
    while left:
        imported = _kernel_files(left.pop()) - files
        files |= imported
        left += imported
    digests = sorted(hashlib.sha256(_text(path).encode()).digest() for path in files)
    return hashlib.sha256(b"".join([_VERSIONS.encode(), *digests])).hexdigest()


@cache
def _kernel_files(file: Path) -> set[Path]:
    """Return the files with kernels that a file imports, of modules that this process has imported."""
    found = set()
    for module, names in _IMPORT.findall(_text(file)):
        for name in (module, *(f"{module}.{part}" for part in _NAME.findall(names))):
            path = getattr(sys.modules.get(name), "__file__", None) or ""
            if path.endswith(".py") and name.partition(".")[0] not in {"numba", "llvmlite"}:
                found.add(Path(path))
    return {path for path in found if _COMPILER.search(_text(path))}


@cache
def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")
