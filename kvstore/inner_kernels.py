"""The decorator of functions that kernels call for each row."""

from __future__ import annotations

from functools import partial
from typing import Any

from numba import njit

inner_kernel: Any = partial(njit, cache=True, error_model="numpy", forceinline=True, _nrt=False)
"""Compile a function into the kernels that call it, without counting references.

LLVM inlines it. Inlined by Numba (``inline="always"``), arguments become variables, and where a loop of a parallel
kernel writes to an array only in the inlined body, Numba may remove that as dead code. Without ``_nrt=False``, each
call counts references to its arrays, atomically, in counters that all threads share. Such a function cannot allocate.
"""
