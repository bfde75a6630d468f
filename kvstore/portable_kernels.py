"""Kernels that are installed as portable code, so that a new machine only generates its own machine code for them.

    with compiling_anew():
        ...                                         # trainings
    install(KERNELS)                                # those that this process has compiled
    kernel._cache = KernelCache(kernel.py_func)     # of a kernel that is called: numba's, then the installed ones

They are in ``kernels.zip`` beside this file, each under a hash of its name, its signature, and its stamp
(``kernel_cache.py``): after a change of its code, none is found, and numba compiles from Python as without.
The file is unpickled, so it is as trusted as the code beside it.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import pickle
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from numba.core.runtime.nrt import rtsys
from numba.core.serialize import dumps

from crossfade.kvstore.compile_notice import announce
from crossfade.kvstore.kernel_cache import StampedCache
from crossfade.kvstore.kernel_code import from_portable, portable_parts, triple

FILE = Path(__file__).with_name("kernels.zip")
_DAMAGED = zipfile.BadZipFile, zlib.error
_logger = logging.getLogger(__name__)
_anew: list[bool] = []
"""Not empty while kernels are compiled from Python even if there is code of them."""


class KernelCache(StampedCache):
    """The cache of one kernel, which takes what it lacks from the installed ones."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Load machine code, but not numba's declarations for its compiler, which take half a second."""
        if _anew:
            return None
        rtsys.initialize(target_context)
        try:
            found = self._load_overload(sig, target_context)  # type: ignore[no-untyped-call]
        except (EOFError, ValueError, pickle.UnpicklingError):  # cut off, as when the machine lost power
            self.flush()  # type: ignore[no-untyped-call]
            found = None
        if found is None and self._enabled:
            announce()
            found = _find(self, sig)
            if found is not None:
                self.save_overload(sig, found)  # type: ignore[no-untyped-call]
        return found


def _find(kernel_cache: KernelCache, signature: Any) -> Any:
    """Return the compiled code of a kernel for the types of its arguments; None if it is not installed."""
    installed, name = _installed(), _name(kernel_cache, signature)
    if installed is None or name not in installed.NameToInfo:
        return None
    try:
        return from_portable(pickle.loads(installed.read(name)))  # noqa: S301
    except (OSError, EOFError, ImportError, AttributeError, RuntimeError, pickle.UnpicklingError, *_DAMAGED) as error:
        _logger.debug("%s: %s", FILE, error)
        return None


@cache
def _installed() -> zipfile.ZipFile | None:
    try:
        return zipfile.ZipFile(io.BytesIO(FILE.read_bytes()))
    except (OSError, zipfile.BadZipFile):
        return None


def _name(kernel_cache: KernelCache, signature: Any) -> str:
    """Return the name of a kernel's code in the file."""
    function: Any = kernel_cache._py_func
    parts = triple(), kernel_cache.stamp, function.__code__.co_firstlineno, function.__qualname__, signature
    return hashlib.sha256("\n".join(map(str, (function.__module__, *parts))).encode()).hexdigest()


@contextmanager
def compiling_anew() -> Iterator[None]:
    """Compile kernels from Python even if there is code of them, which need not have its portable form."""
    _anew.append(True)
    try:
        yield
    finally:
        _anew.pop()


def install(kernels: Iterable[Any]) -> int:
    """Write ``kernels.zip``: what Python can call and this process has compiled. Returns how many.

    Raises:
        OSError: it cannot be written.
    """
    codes = {}
    for kernel in kernels:
        for signature, result in kernel.overloads.items():
            if (parts := portable_parts(result)) is not None:
                codes[_name(kernel._cache, signature)] = dumps(parts)  # type: ignore[no-untyped-call]
    descriptor, temporary = tempfile.mkstemp(dir=FILE.parent)
    try:
        with os.fdopen(descriptor, "wb") as written, zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as file:
            for name, code in sorted(codes.items()):
                file.writestr(zipfile.ZipInfo(name), code, zipfile.ZIP_DEFLATED)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(FILE)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return len(codes)
