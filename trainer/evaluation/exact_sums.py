"""Sums of float64 values that do not depend on their order, nor on how they are divided among workers.

    sums = ExactSums((2,), largest=1.0)
    sums.add(values_QM)                          # any number of times
    sums.of_all(all_reduce).values()

Each value is cut into pieces, integers of ``_BITS`` bits times a power of two, whose sums are exact in float64. What is
below the last piece is dropped from each value by itself, so that every order drops the same: ``_PIECES`` · ``_BITS``
bits below the largest value, far beyond what float64 holds (as the bins of Demmel and Nguyen, Fast Reproducible
Floating-Point Summation, 2013).

Shapes: Q queries.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from crossfade.base.arrays import FloatArray
from crossfade.kvstore.store import MAX_ALL_REDUCE_LENGTH

AllReduceFunction = Callable[[FloatArray], FloatArray]
"""Sums up to ``MAX_ALL_REDUCE_LENGTH`` float64 values over all workers; every worker calls it."""
_BITS, _PIECES = 22, 4
"""2^(53 - 22) values, two billion, are summed exactly."""


class ExactSums:
    """Sums of arrays of one shape."""

    def __init__(self, shape: tuple[int, ...], largest: float) -> None:
        """Begin with zeros; ``largest`` bounds the magnitude of values, the same for all workers."""
        self._unit = 2.0 ** math.ceil(math.log2(max(largest, 1.0)))
        self._pieces = np.zeros((_PIECES, *shape))

    def add(self, values: FloatArray, where: tuple[int, ...] = ()) -> None:
        """Add ``values``, float64 (Q, ...): at the places ``where`` of the first axes, or everywhere."""
        rest = values / self._unit
        for piece in range(_PIECES):
            step = 2.0 ** (-_BITS * (piece + 1))
            multiples = np.floor(rest / step)
            rest = rest - multiples * step
            self._pieces[(piece, *where)] += multiples.sum(axis=0)

    def of_all(self, all_reduce: AllReduceFunction) -> ExactSums:
        """Return the sums over all workers. Every worker calls this."""
        found = ExactSums(self._pieces.shape[1:], self._unit)
        found._pieces = sum_over_workers(self._pieces.ravel(), all_reduce).reshape(self._pieces.shape)
        return found

    def values(self) -> FloatArray:
        """Return the sums."""
        total = np.zeros(self._pieces.shape[1:])
        for piece in reversed(range(_PIECES)):  # the smallest first
            total += self._pieces[piece] * (self._unit * 2.0 ** (-_BITS * (piece + 1)))
        return total


def sum_over_workers(values_N: FloatArray, all_reduce: AllReduceFunction) -> FloatArray:
    """Sum any number of values over all workers."""
    starts = range(0, len(values_N), MAX_ALL_REDUCE_LENGTH)
    return np.concatenate(
        [np.empty(0), *(all_reduce(values_N[start : start + MAX_ALL_REDUCE_LENGTH]) for start in starts)]
    )
