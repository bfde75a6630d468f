"""Draw synthetic listening: reproducible interactions with planted genres, popularity and taste.

    generator = Generator(SyntheticSpec(queries=2_000, items=4_000, interactions=100_000), seed=1)
    for chunk in generator.chunks():
        chunk.query_N, chunk.item_N, chunk.split_N, chunk.timestamp_N

- Item row r belongs to genre r mod G, which is a feature of the item. Its popularity is proportional to the integral of
  x^-a from r + 1 to r + 1 + G, a window on a Zipf law: row 0 is the most popular in expectation.
- Query row r is active in proportion to the integral of x^-b from r + 1 to r + 2, and has one to three genres.
- Most interactions are with an item of the query's own genres, the others ("stray") with any item.
- The hash of a (query, item) pair determines its split, so that no pair of train occurs in test.

Every number is a hash of (seed, purpose, position), so that any chunk can be drawn independently.

Shapes: N interactions of a chunk, G genres.
"""

from __future__ import annotations

from collections.abc import Iterator
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
        query_N = _zipf(self.uniform("query", position_N), np.ones(1), np.array([self.spec.queries]), QUERY_EXPONENT)
        stray_N = self.uniform("stray", position_N) >= OWN_SHARE
        taste_N = self.draw_taste(query_N.astype(np.uint64), position_N)
        genre_N = self.find_genres(np.where(stray_N, self.uniform("any genre", position_N), taste_N))
        rank_N = _zipf(self.uniform("item", position_N), self._offset_G[genre_N], self._size_G[genre_N], ITEM_EXPONENT)
        item_N = rank_N * self.spec.genres + genre_N
        pair_N = mix(query_N.astype(np.uint64) ^ self.salt("pair")) + item_N.astype(np.uint64)
        draw_N = self.uniform("split", pair_N)
        split_N = (draw_N < self.spec.valid + self.spec.test).astype(np.uint8) + (draw_N < self.spec.test)
        span_N = self.uniform("timestamp", position_N) * SPAN_SECONDS
        return Chunk(query_N, item_N, split_N, START_SECONDS + span_N.astype(np.int64), stray_N)

    def draw_taste(self, query_N: Unsigned, position_N: Unsigned) -> Floats:
        """Draw one of each query's own genres, as a number of [0, 1) of which genres have parts by popularity."""
        many_N = 1 + (self.uniform("mixture", query_N) * MAX_OWN_GENRES).astype(np.uint64)
        choice_N = (self.uniform("choice", position_N) * many_N).astype(np.uint64)
        return self.uniform("own genre", query_N * np.uint64(MAX_OWN_GENRES) + choice_N)

    def find_genres(self, draw_N: Floats) -> Integers:
        """Return the genre at each number of [0, 1), of which genres have parts by their popularity: int64 (N,)."""
        found_N = np.searchsorted(self._cumulative_G, draw_N, side="right")
        return np.minimum(found_N, self.spec.genres - 1).astype(np.int64)

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
