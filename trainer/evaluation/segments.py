"""Segments of queries by their activity: the number of their interactions of positive weight in train.

    segments = Segments.from_terciles(counts_R)         # new, casual, regular, heavy
    segments = Segments.from_bounds([10, 40])           # new, from 1, from 10, from 40
    segment_Q = segments.find(counts_R[queries_Q])

Shapes: Q queries, R rows of the query entity, S segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from crossfade.kvstore.arrays import IntArray
from crossfade.kvstore.errors import InputError

NEW = "new"
_TERCILES = ("casual", "regular", "heavy")


@dataclass(frozen=True)
class Segments:
    """Consecutive ranges of counts: segment s has the counts from ``starts_S[s]`` to below ``starts_S[s + 1]``.

    The first starts at 0, the last has no end.
    """

    names: tuple[str, ...]
    starts_S: IntArray

    @staticmethod
    def from_terciles(counts_R: IntArray) -> Segments:
        """Divide the queries with interactions into thirds: a third has at most as many as the last ``casual`` query.

        Equal counts are in the same segment, so thirds may differ in size, and one without a query is left out.
        """
        sorted_N = np.sort(counts_R[counts_R > 0])
        starts, names = [0], [NEW]
        if len(sorted_N):
            ends = [int(sorted_N[-(-len(sorted_N) * third // 3) - 1]) for third in (1, 2, 3)]
            for (before, end), name in zip(pairwise([0, *ends]), _TERCILES, strict=True):
                if end > before:
                    starts.append(before + 1)
                    names.append(name)
        return Segments(tuple(names), np.array(starts))

    @staticmethod
    def from_bounds(bounds: Sequence[int]) -> Segments:
        """Start a segment at 0, 1 and each of ``bounds``.

        Raises:
            InputError: the bounds do not rise, or begin below 2.
        """
        if any(later <= earlier for earlier, later in pairwise([1, *bounds])):
            raise InputError(
                f"--segments {' '.join(map(str, bounds))}: expected rising numbers of interactions, each 2 or more"
            )
        names = [f"from {start:,}" for start in (1, *bounds)]
        return Segments((NEW, *names), np.array([0, 1, *bounds]))

    def find(self, counts_Q: IntArray) -> IntArray:
        """Return the segment of each count."""
        segment_Q: IntArray = np.searchsorted(self.starts_S, counts_Q, side="right") - 1
        return segment_Q

    def limits(self, segment: int) -> tuple[int, int | None]:
        """Return the least and the largest count of a segment; None: there is no largest."""
        is_last = segment + 1 == len(self.names)
        return int(self.starts_S[segment]), None if is_last else int(self.starts_S[segment + 1]) - 1
