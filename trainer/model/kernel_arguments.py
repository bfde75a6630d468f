"""Arguments that kernels of several modules take. Numba takes apart tuples by the places of their fields.

A module with kernels imports what they take, and so compiles them again when it changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crossfade.base.arrays import FloatArray, IntArray

if TYPE_CHECKING:
    from crossfade.trainer.model.spec import Score


class TopK(NamedTuple):
    """By what the weights of examples depend on their place in the list of their query, under softmax.

    Attributes:
        k: K; 0: they do not.
        sharpness: T/τ, which differences of scores are multiplied by.
    """

    k: np.int64
    sharpness: np.float32


class Uses(NamedTuple):
    """The uses of active rows; as in ``ActiveRows``."""

    index_N: IntArray
    order_N: IntArray
    starts_A1: IntArray


class Leaves(NamedTuple):
    """By what gradients are summed: the leaves of a tree of partitions (``kvstore/tree_sums.py``).

    Attributes:
        leaf_B: the leaf of each example, uint8.
        leaf_count: how many leaves there are, up to the last one.
    """

    leaf_B: NDArray[np.uint8]
    leaf_count: int


class Vectors(NamedTuple):
    """The vectors of active rows.

    Attributes:
        rows_AD: the vectors.
        norm_A: norms of the rows that they are unit vectors of, which gradients are passed back to; empty: they are the
            rows.
    """

    rows_AD: FloatArray
    norm_A: FloatArray


class ScoreScales(NamedTuple):
    """Factors of dot products and of squared norms in a score, float32."""

    dot: np.float32
    norm: np.float32

    @staticmethod
    def of(score: Score) -> ScoreScales:
        """Return those of ``score``."""
        return ScoreScales(np.float32(score.dot_scale), np.float32(score.norm_scale))
