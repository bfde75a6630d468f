"""Memory that threads reuse from step to step, and sums of matrix products in it.

scratch = Scratch()
scores_TC = scratch.array("scores", len(query_TD), len(rows_CD))
"""

from __future__ import annotations

import threading
from math import prod

import numpy as np

from crossfade.base.arrays import FloatArray
from crossfade.trainer.model.pool_kernels import add_to

_ALIGNMENT = 64
_PRODUCT_ROWS = 2048
"""Rows of a product that are added to a sum at a time, to stay in the cache."""


class Scratch(threading.local):
    """Arrays of float32 that each thread keeps, since fresh pages cost more than scores."""

    def __init__(self) -> None:
        self._memory: dict[str, FloatArray] = {}

    def array(self, name: str, *shape: int) -> FloatArray:
        """Return the calling thread's array ``name``, with any contents; the next such call overwrites it."""
        size = prod(shape)
        memory = self._memory.get(name)
        if memory is None or memory.size < size:
            memory = np.empty(size + _ALIGNMENT // 4, np.float32)
            memory = self._memory[name] = memory[-memory.ctypes.data % _ALIGNMENT // 4 :]
        return memory[:size].reshape(shape)

    def sum_product(self, sums_CD: FloatArray, slope_TC: FloatArray, query_TD: FloatArray, *, first: bool) -> None:
        """Add ``slope_TC.T @ query_TD`` to ``sums_CD``; ``first``: nothing has been added before."""
        if first:
            np.matmul(slope_TC.T, query_TD, out=sums_CD)
            return
        for start in range(0, len(sums_CD), _PRODUCT_ROWS):
            part_CD = sums_CD[start : start + _PRODUCT_ROWS]
            product_CD = self.array("product", *part_CD.shape)
            np.matmul(slope_TC[:, start : start + _PRODUCT_ROWS].T, query_TD, out=product_CD)
            add_to(part_CD, product_CD)
