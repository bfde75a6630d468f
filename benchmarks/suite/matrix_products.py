"""Matrix products in threads of single-threaded BLAS, tile by tile: the bare arithmetic of a softmax or a ranking.

    run = Products([(1024, 1024, 64)] * 16, tile_scores=1 << 19, threads=2, backward=True)
    run()       # scores, then the gradients of both sides, for each (rows, columns, depth)

All buffers exist before, so that nothing but products is timed.

Shapes: R rows, T rows of a tile, C columns, D depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from crossfade.base.arrays import FloatArray

TILE_SCORES = (1 << 18, 1 << 19, 1 << 20, 1 << 21)
"""Scores of a tile, 1 to 8 MiB: which is fastest depends on the caches."""


class Products:
    """For each shape X (R, D) and Y (C, D), tile by tile: S = X·Yᵀ and, with ``backward``, S·Y and Sᵀ·X."""

    def __init__(
        self, shapes: Sequence[tuple[int, int, int]], tile_scores: int, threads: int, *, backward: bool
    ) -> None:
        """Allocate the operands of ``shapes``: rows, columns, depth."""
        self._threads = ThreadPoolExecutor(threads)
        generator = np.random.default_rng(1)
        tiles: list[tuple[FloatArray, FloatArray]] = []
        for rows, columns, depth in shapes:
            left_RD = generator.standard_normal((rows, depth), np.float32)
            right_CD = generator.standard_normal((columns, depth), np.float32)
            tile_rows = min(rows, max(1, tile_scores // columns))
            tiles += [(left_RD[start : start + tile_rows], right_CD) for start in range(0, rows, tile_rows)]
        self._parts = [_Part(tiles[first::threads], backward) for first in range(threads)]

    def __call__(self) -> None:
        """Compute all products; each thread takes every ``threads``-th tile."""
        list(self._threads.map(_Part.compute, self._parts))


class _Part:
    """The tiles of one thread, with buffers that all of them share."""

    def __init__(self, tiles: Sequence[tuple[FloatArray, FloatArray]], backward: bool) -> None:
        self._tiles, self._backward = tiles, backward
        self._scores = np.empty(max((len(left) * len(right) for left, right in tiles), default=0), np.float32)
        self._left = np.empty(max((left.size for left, _ in tiles), default=0), np.float32)
        self._right = np.empty(max((right.size for _, right in tiles), default=0), np.float32)

    def compute(self) -> None:
        for left_TD, right_CD in self._tiles:
            score_TC = self._scores[: len(left_TD) * len(right_CD)].reshape(len(left_TD), len(right_CD))
            np.matmul(left_TD, right_CD.T, out=score_TC)
            if self._backward:
                np.matmul(score_TC, right_CD, out=self._left[: left_TD.size].reshape(left_TD.shape))
                np.matmul(score_TC.T, left_TD, out=self._right[: right_CD.size].reshape(right_CD.shape))
