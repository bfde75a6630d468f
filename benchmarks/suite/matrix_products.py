"""Matrix products in threads of single-threaded BLAS, tile by tile: the bare arithmetic of a softmax or a ranking.

    run = Products([(1024, 1024, 64)] * 16, tile_rows=512)
    run()       # scores, then the gradients of both sides, for each (rows, columns, depth)

All buffers exist before, so that nothing but products is timed.

Shapes: T rows of a tile, C columns, D depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from kvstore.arrays import FloatArray


class Products:
    """For each shape X (T, D) and Y (C, D), tile by tile: S = X·Yᵀ and, with ``backward``, S·Y and Sᵀ·X."""

    def __init__(self, shapes: Sequence[tuple[int, int, int]], tile_rows: int, threads: int, backward: bool) -> None:
        """Allocate the operands of ``shapes``: rows, columns, depth."""
        self._pool = ThreadPoolExecutor(threads)
        self._backward = backward
        generator = np.random.default_rng(1)
        self._tiles: list[tuple[FloatArray, FloatArray, FloatArray]] = []
        # A thread's buffer of scores would stay in its cache; so does that of one tile of two.
        largest = max(columns for _, columns, _ in shapes)
        scores = [np.empty(tile_rows * largest, np.float32) for _ in range(threads)]
        for rows, columns, depth in shapes:
            left_RD = generator.standard_normal((rows, depth), np.float32)
            right_CD = generator.standard_normal((columns, depth), np.float32)
            for start in range(0, rows, tile_rows):
                left_TD = left_RD[start : start + tile_rows]
                memory = scores[len(self._tiles) % threads]
                score_TC = memory[: len(left_TD) * columns].reshape(len(left_TD), columns)
                self._tiles.append((left_TD, right_CD, score_TC))
        self._threads = threads
        self.flops = sum(2.0 * rows * columns * depth for rows, columns, depth in shapes) * (3 if backward else 1)

    def __call__(self) -> None:
        """Compute all products; each thread takes every ``threads``-th tile."""
        list(self._pool.map(self._part, range(self._threads)))

    def _part(self, first: int) -> None:
        for left_TD, right_CD, score_TC in self._tiles[first :: self._threads]:
            np.matmul(left_TD, right_CD.T, out=score_TC)
            if self._backward:
                np.matmul(score_TC, right_CD)
                np.matmul(score_TC.T, left_TD)
