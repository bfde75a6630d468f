"""Advise the kernel about the memory of large arrays: release pages, or back them with huge ones.

Arrays of MXNet and numpy are private anonymous memory, in which a released page reads as zeros and takes no memory
until it is written. Linux only: elsewhere the advice is skipped.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import sys
from typing import Any

import numpy as np

_LINE_BYTES = 64
"""Bytes of a cache line, and of the widest vector that a processor loads at once."""


def empty_rows(rows: int, dim: int) -> Any:
    """Allocate a float32 table, (rows, dim), without setting its values, on huge pages.

    It begins on a cache line, unlike large arrays of numpy, so that a row of 16 values lies in one line, not in two.
    """
    values_B = np.empty(rows * dim * 4 + _LINE_BYTES, np.uint8)
    begin = -values_B.ctypes.data % _LINE_BYTES
    table_ND = values_B[begin : begin + rows * dim * 4].view(np.float32).reshape(rows, dim)
    advise_huge_pages(table_ND)
    return table_ND


def release_free_memory() -> None:
    """Return to the system what the allocators keep of arrays and tables of Arrow that are gone."""
    import pyarrow as pa  # takes time to import

    gc.collect()
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # glibc has it, musl does not
        trim(0)


def release_pages(array: Any) -> None:
    """Zero a contiguous array by releasing its pages, so that it takes no memory until it is written."""
    values_B = array.reshape(-1).view(np.uint8)
    begin, end = _complete_pages(values_B)
    if not _advise(values_B, begin, end, getattr(mmap, "MADV_DONTNEED", None)):
        begin = end = 0
    values_B[:begin] = 0
    values_B[end:] = 0


def advise_huge_pages(array: Any) -> None:
    """Request huge pages where a contiguous array is touched from now on: fewer page faults and TLB misses."""
    values_B = array.reshape(-1).view(np.uint8)
    _advise(values_B, *_complete_pages(values_B), getattr(mmap, "MADV_HUGEPAGE", None))


def _complete_pages(values_B: Any) -> tuple[int, int]:
    """Return begin and end, in bytes of ``values_B``, of the pages that lie completely in it; equal if none does."""
    begin = -values_B.ctypes.data % mmap.PAGESIZE
    pages = max(0, len(values_B) - begin) // mmap.PAGESIZE
    return (begin, begin + pages * mmap.PAGESIZE) if pages else (0, 0)


def _advise(values_B: Any, begin: int, end: int, advice: int | None) -> bool:
    """Return whether there were pages and the kernel accepted the advice about them."""
    if begin == end or advice is None or not sys.platform.startswith("linux"):
        return False
    address = ctypes.c_void_p(values_B.ctypes.data + begin)
    return bool(ctypes.CDLL(None).madvise(address, ctypes.c_size_t(end - begin), ctypes.c_int(advice)) == 0)
