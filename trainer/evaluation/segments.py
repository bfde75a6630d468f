"""Segments of queries: by their number of interactions of positive weight in train, or by the context of their events.

    segments = ActivitySegments.from_terciles(counts_R)             # new, casual, regular, heavy
    segments = ActivitySegments.from_bounds([10, 40], counts_R)     # new, from 1, from 10, from 40
    segments = ContextSegments.of(vocabulary, "kind")               # kind=play, kind=like, no kind
    segment_Q = segments.assign(chunk)

Shapes: Q queries, R rows of the query entity, S segments, V values of a context entity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from crossfade.base.arrays import IntArray
from crossfade.base.errors import InputError, Option, format_names
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.evaluation.held_out import HeldOut

NEW = "new"
MAX_CONTEXT_SEGMENTS = 8
"""Values of a context entity that have a segment each: the most frequent ones."""
_OPTION = Option("segments")
_TERCILES = ("casual", "regular", "heavy")


class QuerySegments(Protocol):
    """Divides the queries of an evaluation into segments."""

    @property
    def names(self) -> tuple[str, ...]:
        """Return the name of each segment."""

    def assign(self, chunk: HeldOut) -> IntArray:
        """Return the segment of each query of ``chunk``, int64 (Q,)."""

    def describe(self, segment: int) -> Mapping[str, int | None]:
        """Return what is reported of a segment beside its metrics."""


def parse_segments(texts: Sequence[str], context: Sequence[str]) -> list[int] | str:
    """Parse the option ``segments``: bounds of ranges, none for terciles, or one of the ``context`` entities.

    Raises:
        InputError: they are neither.
    """
    if len(texts) == 1 and texts[0] in context:
        return texts[0]
    try:
        return [int(text) for text in texts]
    except ValueError:
        found = f"its context is: {format_names(context)}" if context else "it has no context"
        raise InputError(
            _OPTION,
            f" {' '.join(texts)}: expected numbers of interactions, or a context entity of the dataset; {found}",
        ) from None


@dataclass(frozen=True)
class ActivitySegments:
    """Divides queries by their interactions in train, ``counts_R``, into consecutive ranges; a ``QuerySegments``.

    Segment s has the counts from ``starts_S[s]`` to below ``starts_S[s + 1]``. The first starts at 0, the last has no
    end.
    """

    names: tuple[str, ...]
    starts_S: IntArray
    counts_R: IntArray

    @staticmethod
    def from_terciles(counts_R: IntArray) -> ActivitySegments:
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
        return ActivitySegments(tuple(names), np.array(starts), counts_R)

    @staticmethod
    def from_bounds(bounds: Sequence[int], counts_R: IntArray) -> ActivitySegments:
        """Start a segment at 0, 1 and each of ``bounds``.

        Raises:
            InputError: the bounds do not rise, or begin below 2.
        """
        if any(later <= earlier for earlier, later in pairwise([1, *bounds])):
            raise InputError(
                _OPTION, f" {' '.join(map(str, bounds))}: expected rising numbers of interactions, each 2 or more"
            )
        names = [f"from {start:,}" for start in (1, *bounds)]
        return ActivitySegments((NEW, *names), np.array([0, 1, *bounds]), counts_R)

    def assign(self, chunk: HeldOut) -> IntArray:
        """Return the segment of each query, by its row, whatever its context."""
        segment_Q: IntArray = np.searchsorted(self.starts_S, self.counts_R[chunk.queries_Q], side="right") - 1
        return segment_Q

    def describe(self, segment: int) -> Mapping[str, int | None]:
        """Return the least and the largest count of the segment; None: there is no largest."""
        largest = None if segment + 1 == len(self.names) else int(self.starts_S[segment + 1]) - 1
        return {"min_interactions": int(self.starts_S[segment]), "max_interactions": largest}


@dataclass(frozen=True)
class ContextSegments:
    """Divides queries by their value of a context ``entity``; implements ``QuerySegments``.

    ``segment_V1`` is the segment of each row of the entity and, at the end, of no value, which row -1 stands for.
    """

    entity: str
    names: tuple[str, ...]
    segment_V1: IntArray

    @staticmethod
    def of(vocabulary: Vocabulary, entity: str) -> ContextSegments:
        """Give a segment to each of the values that train has most often, to all others, and to no value."""
        counts_V = vocabulary.counts()
        most_N = np.argsort(-counts_V, kind="stable")[:MAX_CONTEXT_SEGMENTS]
        frequent_N = np.sort(most_N[counts_V[most_N] > 0])
        names = [f"{entity}={value}" for value in vocabulary.take(frequent_N, ["id"]).column("id").to_pylist()]
        segment_V1 = np.full(len(counts_V) + 1, len(names))
        segment_V1[frequent_N] = np.arange(len(names))
        if len(names) < len(counts_V):
            names.append(f"other {entity}")
        segment_V1[-1] = len(names)
        return ContextSegments(entity, (*names, f"no {entity}"), segment_V1)

    def assign(self, chunk: HeldOut) -> IntArray:
        """Return the segment of each query, by the context of its held-out events."""
        segment_Q: IntArray = self.segment_V1[chunk.context[self.entity]]
        return segment_Q

    def describe(self, segment: int) -> Mapping[str, int | None]:
        """Return nothing: the name has all."""
        return {}
