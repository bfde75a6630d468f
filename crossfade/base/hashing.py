"""Hash integers without a state: the same value has the same hash in every process and version.

key_N = mix(row_N)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Unsigned = NDArray[np.uint64]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(value_N: NDArray[Any]) -> Unsigned:
    """Hash each value with the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): uint64 (N,)."""
    mixed_N: Unsigned = value_N.astype(np.uint64) + GOLDEN
    mixed_N = (mixed_N ^ (mixed_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed_N = (mixed_N ^ (mixed_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed_N ^ (mixed_N >> np.uint64(31))
