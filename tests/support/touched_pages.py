"""Count the pages of an array that are touched: release all of them to the kernel, and count those that are back."""

import ctypes
import mmap
from typing import Any

import numpy as np

from crossfade.kvstore.store import RowGradient, TableSpec

TABLE = TableSpec("track", rows=200_000, dim=64, init_std=0.1)
ACTIVE_ROWS = 40


def make_step() -> RowGradient:
    """Return gradients of a few rows all over the table."""
    rows_A = np.linspace(3, TABLE.rows - 3, ACTIVE_ROWS).astype(np.int64)
    return RowGradient(rows_A, np.ones((ACTIVE_ROWS, TABLE.dim), np.float32))


def release_pages(array: Any) -> None:
    """Release the pages of ``array``, which then is all zeros, and have small ones back it from now on."""
    for advice in (mmap.MADV_NOHUGEPAGE, mmap.MADV_DONTNEED):
        _call("madvise", *_pages(array), ctypes.c_int(advice))
    assert touched_pages(array) == 0


def touched_pages(array: Any) -> int:
    """Return the number of pages of ``array`` that were read or written since they were released."""
    address, size = _pages(array)
    present = (ctypes.c_ubyte * (size.value // mmap.PAGESIZE))()
    _call("mincore", address, size, present)
    return sum(page & 1 for page in present)


def _pages(array: Any) -> tuple[ctypes.c_void_p, ctypes.c_size_t]:
    begin, size = array.ctypes.data, array.nbytes
    first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
    return ctypes.c_void_p(first), ctypes.c_size_t((begin + size - first) // mmap.PAGESIZE * mmap.PAGESIZE)


def _call(name: str, *arguments: Any) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    assert getattr(libc, name)(*arguments) == 0, (name, ctypes.get_errno())
