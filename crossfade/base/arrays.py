"""Array types of the public interfaces, and lists in one array: list q is ``values_N[starts_Q1[q]:starts_Q1[q + 1]]``.

Names of arrays end in the letters of their dimensions, as in ``block_AD``: A active rows, D columns. CONTRIBUTING.md
("Shape suffixes") lists the letters.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[Any]
"""float32, or float64 where the docstring states it."""
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


def list_places(starts_Q1: IntArray, numbers_S: IntArray) -> tuple[IntArray, IntArray]:
    """Return where the lists ``numbers_S`` start if only these are kept, in this order, and their places now.

    List q has the places ``starts_Q1[q]`` to ``starts_Q1[q + 1]``; number -1 stands for an empty list.
    """
    first_S = starts_Q1[numbers_S]
    counts_S = np.where(numbers_S < 0, 0, starts_Q1[numbers_S + 1] - first_S)
    starts_S1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts_S, dtype=np.int64)])
    return starts_S1, np.arange(starts_S1[-1]) + np.repeat(first_S - starts_S1[:-1], counts_S)
