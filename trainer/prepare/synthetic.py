"""Synthetic listening of any size, prepared: planted genres, Zipf popularity, and no raw events in between.

    write_synthetic(Path("data/synthetic"), SyntheticSpec(queries=2_000, items=4_000, interactions=100_000), seed=1)

How it is drawn:

- Item row r belongs to genre r mod G, which is a feature of the item. Its popularity falls with its row as a window on
  a Zipf law does: it is proportional to the integral of x^-a from r + 1 to r + 1 + G. Row 0 is the most popular, by
  expectation.
- Query row r is active in proportion to the integral of x^-b from r + 1 to r + 2, and has one to three genres.
- Most interactions are with an item of the query's own genres, the others with any item.
- A (query, item) pair belongs to one split, whichever its hash says, so that no pair of train turns up in test.

Every number is a hash of (seed, purpose, position): any piece can be drawn again alone, and nothing is kept but one
counter for each row, in a file that the operating system pages. So the data are drawn twice, once to count them.

Letters of shapes: N interactions of a piece, R rows of a table, G genres.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kvstore.errors import InputError
from trainer.data.features import SCHEMA
from trainer.data.manifest import (
    FEATURES,
    SPLITS,
    TIMESTAMP,
    VOCABULARY,
    WEIGHT,
    DatasetManifest,
    Entity,
    Feature,
    Split,
)
from trainer.data.reporter import NullReporter, ProgressReporter
from trainer.prepare.part_writer import PartWriter, row_group_rows
from trainer.prepare.pipeline import check_entities
from trainer.prepare.staging import Staged, staged_output
from trainer.prepare.vocabulary_tables import vocabulary_schema

Unsigned = npt.NDArray[np.uint64]
Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

ITEM_EXPONENT = 0.9
QUERY_EXPONENT = 0.6
OWN_GENRES_MAX = 3
OWN_SHARE = 0.9
NAMED_ITEMS_MAX = 100_000
GENRE = "genre"
FIRST_ID = 1_000_001  # ids are not rows, and whoever takes one for the other shall notice
START_SECONDS = 1_577_836_800  # 2020-01-01
SPAN_SECONDS = 366 * 86_400

_PIECE = 131_072
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class SyntheticSpec:
    """How much to make. ``valid`` and ``test`` are fractions, met in expectation; 0 leaves the split out.

    Items have the feature ``genre``, unless ``query`` or ``item`` is called so.
    """

    queries: int = 2_000
    items: int = 4_000
    interactions: int = 100_000
    genres: int = 20
    valid: float = 0.1
    test: float = 0.1
    query: str = "customer"
    item: str = "track"

    def check(self) -> None:
        """Refuse what cannot be made.

        Raises:
            InputError: a number is out of its range.
        """
        check_entities(self.query, self.item)
        for name in ("queries", "items", "interactions", "genres"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} {getattr(self, name)}: expected at least 1")
        if self.genres > self.items:
            raise InputError(f"--genres {self.genres}: expected at most one for each of the {self.items} items")
        for name in ("valid", "test"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"--{name} {getattr(self, name)}: expected a fraction from 0 to below 1")
        if self.valid + self.test >= 1:
            raise InputError(f"--valid {self.valid} --test {self.test}: leave nothing for train; lower one")


def synthetic_source(spec: SyntheticSpec, seed: int) -> dict[str, str | int | float | bool | list[str] | None]:
    """How a manifest says that its data were made of ``spec`` and ``seed``."""
    return {"command": "synthetic", "seed": seed, **asdict(spec)}


def write_synthetic(
    out: str | os.PathLike[str],
    spec: SyntheticSpec,
    seed: int,
    overwrite: bool = False,
    progress: ProgressReporter | None = None,
    work: Path | None = None,
) -> DatasetManifest:
    """Write the prepared data set ``out``, a path or URI, and return its manifest.

    The same spec and seed give the same bytes. ``interactions`` is exact over all splits together. Ids are int64,
    ``FIRST_ID`` + row; items have names where they are at most 100,000. It appears whole or not at all.

    Raises:
        InputError: the spec cannot be met, or ``out`` exists and may not be replaced.
    """
    progress = progress or NullReporter()
    spec.check()
    with staged_output(out, overwrite, work) as staged:
        generator = Generator(spec, seed)
        rows, counts = _count(generator, staged.work, progress)
        for split, fraction in zip(SPLITS, (1, spec.valid, spec.test), strict=True):
            if fraction and not rows[split]:
                raise InputError(
                    f"--interactions {spec.interactions}: too few, {split} got none; "
                    "raise it, or set the fraction of the split to 0"
                )
        entities = {
            spec.query: _write_vocabulary(staged, spec.query, counts["query"], None, progress),
            spec.item: _write_vocabulary(
                staged, spec.item, counts["item"], spec.genres if spec.items <= NAMED_ITEMS_MAX else None, progress
            ),
        }
        features: dict[str, dict[str, Feature]] = {}
        if GENRE not in (spec.query.lower(), spec.item.lower()):
            entities[GENRE] = _write_genres(staged, spec, counts["item"])
            features = {spec.item: {GENRE: _write_genre_of_items(staged, spec, progress)}}
        splits = _write_splits(generator, staged, rows, progress)
        manifest = DatasetManifest(
            query=spec.query,
            item=spec.item,
            entities=entities,
            splits={split: splits[split] for split in SPLITS if rows[split]},
            features=features,
            has_timestamp=True,
            source=synthetic_source(spec, seed),
        )
        staged.publish(manifest)
    return manifest


def genre_of(rows_N: Integers, genres: int) -> Integers:
    """The planted genre of each item row."""
    return rows_N % genres


@dataclass(frozen=True)
class Piece:
    """Consecutive interactions; ``split_N`` is an index into ``SPLITS``, ``stray_N`` tells those of any genre."""

    query_N: Integers
    item_N: Integers
    split_N: npt.NDArray[np.uint8]
    timestamp_N: Integers
    stray_N: npt.NDArray[np.bool_]


class Generator:
    """Draws interactions by position; from several threads, if need be."""

    def __init__(self, spec: SyntheticSpec, seed: int) -> None:
        """Of the interactions that ``spec`` and ``seed`` stand for."""
        self.spec = spec
        self._key = mix(np.array([seed % 2**64], dtype=np.uint64))[0]
        genre_G = np.arange(spec.genres)
        # Items of genre g in order have the places k + (g + 1) / G on the Zipf law, k = 0, 1, …, in units of G.
        self._offset_G = (genre_G + 1) / spec.genres
        self._size_G: Integers = (spec.items - genre_G + spec.genres - 1) // spec.genres
        share_G = _mass(self._offset_G, self._offset_G + self._size_G, ITEM_EXPONENT)
        self._cumulative_G = np.cumsum(share_G) / share_G.sum()

    def pieces(self) -> Iterator[Piece]:
        """All interactions, in pieces."""
        for start in range(0, self.spec.interactions, _PIECE):
            yield self.piece(start, min(start + _PIECE, self.spec.interactions))

    def piece(self, start: int, stop: int) -> Piece:
        """The interactions at the positions from ``start`` to before ``stop``."""
        position_N = np.arange(start, stop, dtype=np.uint64)
        one = np.ones(1, dtype=np.int64)
        query_N = _zipf(
            self.uniform("query", position_N), one.astype(np.float64), one * self.spec.queries, QUERY_EXPONENT
        )
        stray_N = self.uniform("stray", position_N) >= OWN_SHARE
        genre_N = self._genres(query_N, position_N, stray_N)
        place_N = _zipf(self.uniform("item", position_N), self._offset_G[genre_N], self._size_G[genre_N], ITEM_EXPONENT)
        item_N = place_N * self.spec.genres + genre_N
        pair_N = mix(query_N.astype(np.uint64) ^ self.salt("pair")) + item_N.astype(np.uint64)
        draw_N = self.uniform("split", pair_N)
        split_N = (draw_N < self.spec.valid + self.spec.test).astype(np.uint8) + (draw_N < self.spec.test)
        span_N = self.uniform("timestamp", position_N) * SPAN_SECONDS
        return Piece(query_N, item_N, split_N, START_SECONDS + span_N.astype(np.int64), stray_N)

    def _genres(self, query_N: Integers, position_N: Unsigned, stray_N: npt.NDArray[np.bool_]) -> Integers:
        """One of the query's own genres for most, and a genre by its popularity for the others."""
        who_N = query_N.astype(np.uint64)
        many_N = 1 + (self.uniform("mixture", who_N) * OWN_GENRES_MAX).astype(np.uint64)
        choice_N = (self.uniform("choice", position_N) * many_N).astype(np.uint64)
        own_N = self.uniform("own genre", who_N * np.uint64(OWN_GENRES_MAX) + choice_N)
        any_N = self.uniform("any genre", position_N)
        draw_N = np.where(stray_N, any_N, own_N)
        found_N = np.searchsorted(self._cumulative_G, draw_N, side="right")
        return np.minimum(found_N, self.spec.genres - 1).astype(np.int64)

    def salt(self, purpose: str) -> np.uint64:
        """A number of its own for each purpose, whose draws are then independent."""
        name = np.frombuffer(purpose.encode().ljust(16, b"\0")[:16], dtype=np.uint64)
        return np.uint64(mix(mix(name[:1] ^ self._key) ^ name[1:])[0])

    def uniform(self, purpose: str, counter_N: Unsigned) -> Floats:
        """Numbers of [0, 1), one for each counter."""
        bits_N = mix(counter_N * _GOLDEN ^ self.salt(purpose))
        return (bits_N >> np.uint64(11)).astype(np.float64) * 2.0**-53


def mix(value_N: Unsigned) -> Unsigned:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, 2014), modulo 2^64."""
    value_N = value_N + _GOLDEN
    value_N = (value_N ^ (value_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value_N = (value_N ^ (value_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value_N ^ (value_N >> np.uint64(31))


def _mass(low: Floats, high: Floats, exponent: float) -> Floats:
    """The integral of (1 - exponent) x^-exponent from low to high."""
    return high ** (1 - exponent) - low ** (1 - exponent)


def _zipf(uniform_N: Floats, offset_N: Floats, size_N: Integers, exponent: float) -> Integers:
    """Integers k of [0, size) in proportion to the integral of x^-exponent from offset + k to offset + k + 1."""
    power = 1 - exponent
    low_N = offset_N**power
    x_N = (low_N + uniform_N * ((offset_N + size_N) ** power - low_N)) ** (1 / power)
    k_N = np.floor(x_N - offset_N).astype(np.int64)
    return np.minimum(np.maximum(k_N, 0), size_N - 1)


def _count(generator: Generator, work: Path, progress: ProgressReporter) -> tuple[dict[str, int], dict[str, Integers]]:
    """The interactions of each split, and of each row of each table in train; the latter in files below ``work``."""
    spec = generator.spec
    rows_of_split = np.zeros(len(SPLITS), dtype=np.int64)
    counts: dict[str, Integers] = {
        role: np.memmap(work / f"{role}.counts", mode="w+", dtype=np.int64, shape=(rows,))
        for role, rows in (("query", spec.queries), ("item", spec.items))
    }
    progress.phase("count", spec.interactions, "row")
    for piece in generator.pieces():
        rows_of_split += np.bincount(piece.split_N, minlength=len(SPLITS))
        train_N = piece.split_N == 0
        for role, row_N in (("query", piece.query_N), ("item", piece.item_N)):
            active, times = np.unique(row_N[train_N], return_counts=True)
            counts[role][active] += times
        progress.advance(len(piece.query_N))
    return dict(zip(SPLITS, rows_of_split.tolist(), strict=True)), counts


def _write_vocabulary(
    staged: Staged, entity: str, count_R: Integers, genres: int | None, progress: ProgressReporter
) -> Entity:
    """Write a vocabulary in pieces; with ``genres``, rows have names."""
    rows = len(count_R)
    schema = vocabulary_schema("int64", genres is not None)
    progress.phase(f"vocabulary of {entity}", rows, "row")
    with PartWriter(staged, f"{VOCABULARY}/{entity}", schema, row_group_rows(rows)) as writer:
        for start in range(0, rows, _PIECE):
            row_N = np.arange(start, min(start + _PIECE, rows), dtype=np.int64)
            columns = [pa.array(row_N), pa.array(row_N + FIRST_ID), pa.array(count_R[row_N])]
            if genres is not None:
                names = zip((row_N + 1).tolist(), (genre_of(row_N, genres) + 1).tolist(), strict=True)
                columns.append(pa.array([f"{entity} {number} (genre {genre})" for number, genre in names]))
            writer.write(pa.RecordBatch.from_arrays(columns, schema=schema))
            progress.advance(len(row_N))
        files = writer.close()
    return Entity(rows=rows, id_type="int64", has_names=genres is not None, files=files)


def _write_genres(staged: Staged, spec: SyntheticSpec, count_R: Integers) -> Entity:
    """Write the vocabulary of genres, each counted as often as its items are."""
    count_G = np.zeros(spec.genres, np.int64)
    for start in range(0, spec.items, _PIECE):
        row_N = np.arange(start, min(start + _PIECE, spec.items), dtype=np.int64)
        np.add.at(count_G, genre_of(row_N, spec.genres), count_R[row_N])
    number_G = np.arange(spec.genres, dtype=np.int64) + 1
    names = pa.array([f"{GENRE} {number}" for number in number_G.tolist()])
    schema = vocabulary_schema("int64", named=True)
    columns = [pa.array(number_G - 1), pa.array(number_G), pa.array(count_G), names]
    with PartWriter(staged, f"{VOCABULARY}/{GENRE}", schema, row_group_rows(spec.genres)) as writer:
        writer.write(pa.RecordBatch.from_arrays(columns, schema=schema))
        return Entity(rows=spec.genres, id_type="int64", has_names=True, files=writer.close())


def _write_genre_of_items(staged: Staged, spec: SyntheticSpec, progress: ProgressReporter) -> Feature:
    progress.phase(f"{GENRE} of {spec.item}", spec.items, "row")
    with PartWriter(staged, f"{FEATURES}/{spec.item}/{GENRE}", SCHEMA, row_group_rows(spec.items)) as writer:
        for start in range(0, spec.items, _PIECE):
            row_N = np.arange(start, min(start + _PIECE, spec.items), dtype=np.int64)
            pairs = [pa.array(row_N), pa.array(genre_of(row_N, spec.genres))]
            writer.write(pa.RecordBatch.from_arrays(pairs, schema=SCHEMA))
            progress.advance(len(row_N))
        return Feature(files=writer.close())


def _write_splits(
    generator: Generator, staged: Staged, rows: dict[str, int], progress: ProgressReporter
) -> dict[str, Split]:
    """Draw again, and deal to the files of the splits."""
    spec = generator.spec
    kinds = [(spec.query, pa.int64()), (spec.item, pa.int64()), (WEIGHT, pa.float32()), (TIMESTAMP, pa.int64())]
    schema = pa.schema([pa.field(name, kind, nullable=False) for name, kind in kinds])
    progress.phase("write", spec.interactions, "row")
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(PartWriter(staged, split, schema, row_group_rows(rows[split])))
            for split in SPLITS
            if rows[split]
        }
        for piece in generator.pieces():
            for split, writer in writers.items():
                mine_N = piece.split_N == SPLITS.index(split)
                one_N = np.ones(int(mine_N.sum()), dtype=np.float32)
                columns = (piece.query_N[mine_N], piece.item_N[mine_N], one_N, piece.timestamp_N[mine_N])
                writer.write(pa.RecordBatch.from_arrays([pa.array(column) for column in columns], schema=schema))
            progress.advance(len(piece.query_N))
        return {split: Split(files=writer.close()) for split, writer in writers.items()}
