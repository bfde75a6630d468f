"""Draw synthetic listening: reproducible interactions with planted genres, popularity and taste.

    generator = Generator(SyntheticSpec(queries=2_000, items=4_000, interactions=100_000), seed=1)
    for chunk in generator.chunks():
        chunk.query_N, chunk.item_N, chunk.split_N, chunk.timestamp_N

- Item row r belongs to genre r mod G, which is a feature of the item. Its popularity is proportional to the integral of
  x^-a from r + 1 to r + 1 + G, a window on a Zipf law: row 0 is the most popular in expectation.
- Query row r is active in proportion to the integral of x^-b from r + 1 to r + 2, and has one to three genres.
- With moods, a query of raw events, whose positions are in order of time, has one genre at a time instead. It turns to
  another after each of so many parts of the time, the first of which has begun before.
- With drift, raw events change over time: of the own genres of queries, that share is replaced by others (moods change
  anyway), and of items and of queries, that share is new, each at a moment of its own. What is drawn before its time is
  drawn again. The most active query and the most popular item of each genre are always there.
- Most interactions are with an item of the query's own genres, the others ("stray") with any item.
- The hash of a (query, item) pair determines its split, so that no pair of train occurs in test.

Every number is a hash of (seed, purpose, position), so that any chunk can be drawn independently.

Shapes: N interactions of a chunk, G genres.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crossfade.base.hashing import GOLDEN, Unsigned, mix
from crossfade.trainer.prepare.options import SyntheticSpec

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

ITEM_EXPONENT = 0.9
QUERY_EXPONENT = 0.6
MAX_OWN_GENRES = 3
OWN_SHARE = 0.9
START_SECONDS = 1_577_836_800  # 2020-01-01
SPAN_SECONDS = 366 * 86_400
CHUNK_ROWS = 131_072
_MAX_REDRAWS = 32
"""Draws of a row that is not there yet, before the first row of its genre takes its place."""

_GENRE_NAMES = (
    *("rock", "pop", "jazz", "metal", "hip hop", "electronic", "folk", "classical", "country", "blues"),
    *("reggae", "soul", "punk", "techno", "ambient", "indie", "latin", "funk", "gospel", "disco"),
)


def genre_name(genre: int) -> str:
    """Return a name that people can judge neighbors by."""
    return _GENRE_NAMES[genre] if genre < len(_GENRE_NAMES) else f"genre {genre + 1}"


def genre_of(rows_N: Integers, genres: int) -> Integers:
    """Return the planted genre of each item row: int64 (N,)."""
    return rows_N % genres


@dataclass(frozen=True)
class Chunk:
    """Consecutive interactions.

    Attributes:
        query_N: The query rows, int64.
        item_N: The item rows, int64.
        split_N: Indices into ``ALL_SPLITS``, uint8.
        timestamp_N: Seconds since 1970, int64.
        stray_N: Whether the item is of any genre instead of the query's own, bool.
    """

    query_N: Integers
    item_N: Integers
    split_N: npt.NDArray[np.uint8]
    timestamp_N: Integers
    stray_N: npt.NDArray[np.bool_]


class Generator:
    """Draws the interactions of ``spec`` and ``seed`` by position; several threads may draw at the same time."""

    def __init__(self, spec: SyntheticSpec, seed: int) -> None:
        self.spec = spec
        self._key = mix(np.array([seed % 2**64], dtype=np.uint64))[0]
        genre_G = np.arange(spec.genres)
        # The items of genre g are at k + (g + 1) / G on the Zipf law, k = 0, 1, …, in units of G.
        self._offset_G = (genre_G + 1) / spec.genres
        self._size_G: Integers = (spec.items - genre_G + spec.genres - 1) // spec.genres
        share_G = _mass(self._offset_G, self._offset_G + self._size_G, ITEM_EXPONENT)
        self._cumulative_G = np.cumsum(share_G) / share_G.sum()

    def chunks(self) -> Iterator[Chunk]:
        """Yield all interactions in chunks."""
        for start in range(0, self.spec.interactions, CHUNK_ROWS):
            yield self.chunk(start, min(start + CHUNK_ROWS, self.spec.interactions))

    def chunk(self, start: int, stop: int) -> Chunk:
        """Draw the interactions at the positions from ``start`` to before ``stop``."""
        position_N = np.arange(start, stop, dtype=np.uint64)
        queries_1, genres = np.array([self.spec.queries]), self.spec.genres
        query_N = self._present(
            "query", position_N, 1, lambda draw_N, _: _zipf(draw_N, np.ones(1), queries_1, QUERY_EXPONENT)
        )
        stray_N = self.uniform("stray", position_N) >= OWN_SHARE
        genre_N = self._genres(query_N, position_N, stray_N)

        def item(draw_N: Floats, at: slice | Integers) -> Integers:
            of_N = genre_N[at]
            return _zipf(draw_N, self._offset_G[of_N], self._size_G[of_N], ITEM_EXPONENT) * genres + of_N

        item_N = self._present("item", position_N, genres, item)
        pair_N = mix(query_N.astype(np.uint64) ^ self.salt("pair")) + item_N.astype(np.uint64)
        draw_N = self.uniform("split", pair_N)
        split_N = (draw_N < self.spec.valid + self.spec.test).astype(np.uint8) + (draw_N < self.spec.test)
        span_N = self.uniform("timestamp", position_N) * SPAN_SECONDS
        return Chunk(query_N, item_N, split_N, START_SECONDS + span_N.astype(np.int64), stray_N)

    def _genres(self, query_N: Integers, position_N: Unsigned, stray_N: npt.NDArray[np.bool_]) -> Integers:
        """Draw one of the query's own genres, or for stray interactions any genre by its popularity."""
        query_counter_N = query_N.astype(np.uint64)
        many_N = 1 + (self.uniform("mixture", query_counter_N) * MAX_OWN_GENRES).astype(np.uint64)
        choice_N = (self.uniform("choice", position_N) * many_N).astype(np.uint64)
        own_N = self._own_draws(query_counter_N, choice_N, position_N)
        if self.spec.moods:
            elapsed_N = position_N * (self.spec.moods / self.spec.interactions)
            mood_N = (elapsed_N + self.uniform("turn", query_counter_N)).astype(np.uint64)
            own_N = self.uniform("mood", query_counter_N * np.uint64(self.spec.moods + 1) + mood_N)
        any_N = self.uniform("any genre", position_N)
        return self._find_genres(np.where(stray_N, any_N, own_N))

    def _find_genres(self, draw_N: Floats) -> Integers:
        """Return the genre at each number of [0, 1), of which genres have parts by their popularity: int64 (N,)."""
        found_N = np.searchsorted(self._cumulative_G, draw_N, side="right")
        return np.minimum(found_N, self.spec.genres - 1).astype(np.int64)

    def first_genres(self, query_N: Integers, position_N: Unsigned) -> Integers:
        """Return the first of each query's own genres at each position, int64 (N,)."""
        return self._find_genres(self._own_draws(query_N.astype(np.uint64), np.zeros_like(position_N), position_N))

    def _own_draws(self, query_N: Unsigned, choice_N: Unsigned, position_N: Unsigned) -> Floats:
        """Return the number of ``_find_genres`` for one of the own genres of each query: float64 (N,)."""
        counter_N = query_N * np.uint64(MAX_OWN_GENRES) + choice_N
        own_N = self.uniform("own genre", counter_N)
        if not self.spec.drift:
            return own_N
        genre_N = self._find_genres(own_N)
        others_N = 1 - np.diff(self._cumulative_G, prepend=0)[genre_N]
        # From where the part of the genre ends on, past 1, to where it begins: never in that part.
        other_N = (self._cumulative_G[genre_N] + self.uniform("other genre", counter_N) * others_N) % 1
        return np.where(self._begins("change", counter_N) <= self._elapsed(position_N), other_N, own_N)

    def _present(
        self, side: str, position_N: Unsigned, always: int, rows: Callable[[Floats, slice | Integers], Integers]
    ) -> Integers:
        """Draw ``rows`` of a side, and those again that are not there yet; those below ``always`` always are."""
        row_N = rows(self.uniform(side, position_N), slice(None))
        if not self.spec.drift:
            return row_N
        early_M = np.arange(len(row_N))
        for attempt in range(_MAX_REDRAWS):
            begin_M = self._begins(f"{side} release", row_N[early_M].astype(np.uint64))
            is_there_M = (begin_M <= self._elapsed(position_N[early_M])) | (begin_M >= 1) | (row_N[early_M] < always)
            early_M = early_M[~is_there_M]
            if not len(early_M):
                return row_N
            row_N[early_M] = rows(self.uniform(f"{side} {attempt}", position_N[early_M]), early_M)
        row_N[early_M] %= always  # the first row of the same genre
        return row_N

    def _begins(self, purpose: str, counter_N: Unsigned) -> Floats:
        """Return the moment at which drift changes each counter, as a share of the time; 1 if never: float64 (N,)."""
        return np.minimum(self.uniform(purpose, counter_N) / self.spec.drift, 1)

    def _elapsed(self, position_N: Unsigned) -> Floats:
        return position_N / self.spec.interactions

    def salt(self, purpose: str) -> np.uint64:
        """Return a number for ``purpose`` that makes its draws independent of those for others."""
        name = np.frombuffer(purpose.encode().ljust(16, b"\0")[:16], dtype=np.uint64)
        return np.uint64(mix(mix(name[:1] ^ self._key) ^ name[1:])[0])

    def uniform(self, purpose: str, counter_N: Unsigned) -> Floats:
        """Draw a number from [0, 1) for each counter: float64 (N,)."""
        bits_N = mix(counter_N * GOLDEN ^ self.salt(purpose))
        return (bits_N >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mass(low: Floats, high: Floats, exponent: float) -> Floats:
    """Return the integral of (1 - exponent) x^-exponent from low to high."""
    return high ** (1 - exponent) - low ** (1 - exponent)


def _zipf(uniform_N: Floats, offset_N: Floats, size_N: Integers, exponent: float) -> Integers:
    """Map uniform numbers to k of [0, size), P(k) ∝ the integral of x^-exponent from offset + k to offset + k + 1."""
    power = 1 - exponent
    low_N = offset_N**power
    x_N = (low_N + uniform_N * ((offset_N + size_N) ** power - low_N)) ** (1 / power)
    k_N = np.floor(x_N - offset_N).astype(np.int64)
    return np.minimum(np.maximum(k_N, 0), size_N - 1)
