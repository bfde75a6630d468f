"""Write synthetic listening as raw events, as a service would log it: with string IDs, ordered by time.

    .venv/bin/python benchmarks/raw_events.py --queries 1e6 --items 1e5 --interactions 1e8 --out s3://raw/made-up
    .venv/bin/python benchmarks/raw_events.py --queries 2000 --items 2000 --interactions 2e5 --moods 6 --out raw

    OUT/events/part-00000.parquet   QUERY string, ITEM string, event string, timestamp (milliseconds, UTC)
    OUT/names/ITEM.parquet          id string, name string; if there are at most 100,000 items

Interactions are drawn as by ``crossfade synthesize``. An event is a play, like, library_add or skip; items outside the
query's own genres are skipped more often, and rarely liked.

- With ``--moods N``, a customer has one genre at a time, and turns to another after each of N parts of the time, the
  first of which has begun before.
- With ``--likes genre``, items of every other genre get most likes and library adds; with ``--likes customer``, items
  of the first of each customer's own genres.

Each file is a function of the spec, the seed and its number, so that files are written in parallel.

Shapes: N events of a chunk, R rows of the item entity.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from crossfade.base.hashing import Unsigned, mix
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.reporter import NullReporter, ProgressReporter
from crossfade.trainer.prepare.options import SyntheticSpec
from crossfade.trainer.prepare.staging import staged_output
from crossfade.trainer.prepare.synthetic import MAX_NAMED_ITEMS
from crossfade.trainer.prepare.synthetic_draws import (
    MAX_OWN_GENRES,
    SPAN_SECONDS,
    START_SECONDS,
    Chunk,
    Floats,
    Generator,
    Integers,
    genre_of,
)

EVENT, TIMESTAMP, EVENTS_FOLDER, NAMES_FOLDER = "event", "timestamp", "events", "names"
EVENTS = ("play", "like", "library_add", "skip")
_OWN_SHARES = (0.72, 0.11, 0.07, 0.10)
_STRAY_SHARES = (0.45, 0.02, 0.01, 0.52)
_LIKED_SHARES = (0.68, 0.14, 0.08, 0.10)
_UNLIKED_SHARES = (0.88, 0.015, 0.005, 0.10)
"""The probability of each of ``EVENTS``: for items of the query's own genres and others, and for own genres that get
most likes and those that get few."""

_FILE_EVENTS = 1 << 22
_CHUNK_EVENTS = 1 << 17
_CHUNKS_PER_GROUP = 4
_COMPRESSION = {"compression": "zstd", "compression_level": 1}
_HEX_PAIRS = np.frombuffer("".join(f"{value:02x}" for value in range(256)).encode(), dtype=np.uint16)


@dataclass
class EventGenerator(Generator):
    """Draws events of ``spec`` and ``seed``, whose positions are in order of time.

    Attributes:
        moods: how often a query turns to another genre, one at a time; 0: it has one to three at all times.
        likes: which items of the query's own genres get most likes.
    """

    spec: SyntheticSpec
    seed: int
    moods: int = 0
    likes: Literal["all", "genre", "customer"] = "all"

    def __post_init__(self) -> None:
        super().__init__(self.spec, self.seed)

    def draw_taste(self, query_N: Unsigned, position_N: Unsigned) -> Floats:
        """Draw the genre of the query at each position, as a number of [0, 1)."""
        if not self.moods:
            return super().draw_taste(query_N, position_N)
        elapsed_N = position_N * (self.moods / self.spec.interactions)
        mood_N = (elapsed_N + self.uniform("turn", query_N)).astype(np.uint64)
        return self.uniform("mood", query_N * np.uint64(self.moods + 1) + mood_N)

    def draw_events(self, chunk: Chunk, position_N: Unsigned) -> npt.NDArray[np.int8]:
        """Draw the kind of each event: an index into ``EVENTS``, int8 (N,)."""
        draw_N = self.uniform("event", position_N)
        own_N, stray_N, liked_N, unliked_N = (
            np.searchsorted(np.cumsum(shares)[:-1], draw_N, side="right")
            for shares in (_OWN_SHARES, _STRAY_SHARES, _LIKED_SHARES, _UNLIKED_SHARES)
        )
        genre_N = genre_of(chunk.item_N, self.spec.genres)
        if self.likes == "genre":
            own_N = np.where(genre_N % 2 == 0, liked_N, unliked_N)
        elif self.likes == "customer":
            first_N = self.uniform("own genre", chunk.query_N.astype(np.uint64) * np.uint64(MAX_OWN_GENRES))
            own_N = np.where(genre_N == self.find_genres(first_N), liked_N, unliked_N)
        return np.where(chunk.stray_N, stray_N, own_N).astype(np.int8)


def write_raw_events(
    out: str | os.PathLike[str],
    generator: EventGenerator,
    progress: ProgressReporter | None = None,
    threads: int | None = None,
) -> list[str]:
    """Write all events of ``generator`` to ``out``, a path or URI, and return the names of the files.

    The same spec and seed give the same bytes, whatever the number of ``threads`` (default: one per core). The
    fractions of valid and test have no effect. The output is written completely or not at all.

    Raises:
        InputError: ``out`` exists or cannot be written.
    """
    progress, spec = progress or NullReporter(), generator.spec
    starts = range(0, spec.interactions, _FILE_EVENTS)
    with staged_output(out, overwrite=False) as staged:
        names = [f"{EVENTS_FOLDER}/{staged.file_name(f'part-{number:05d}')}" for number in range(len(starts))]

        def write(name: str, start: int) -> int:
            return _write_file(staged.folder, name, generator, start, min(start + _FILE_EVENTS, spec.interactions))

        progress.phase("write events", spec.interactions, "row")
        with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
            for written in pool.map(write, names, starts):
                progress.advance(written)
        if spec.items <= MAX_NAMED_ITEMS:
            names.append(f"{NAMES_FOLDER}/{staged.file_name(spec.item)}")
            _write_names(staged.folder, names[-1], generator)
        staged.publish(None)
    return names


def _write_file(folder: Folder, name: str, generator: EventGenerator, start: int, end: int) -> int:
    """Write the events from ``start`` to before ``end`` and return their number."""
    spec = generator.spec
    schema = pa.schema(
        [
            pa.field(spec.query, pa.string(), nullable=False),
            pa.field(spec.item, pa.string(), nullable=False),
            pa.field(EVENT, pa.dictionary(pa.int8(), pa.string()), nullable=False),
            pa.field(TIMESTAMP, pa.timestamp("ms", tz="UTC"), nullable=False),
        ]
    )
    with (
        folder.open_output(name) as file,
        pq.ParquetWriter(file, schema, use_dictionary=[EVENT], **_COMPRESSION) as writer,
    ):
        for first in range(start, end, _CHUNK_EVENTS * _CHUNKS_PER_GROUP):
            last = min(first + _CHUNK_EVENTS * _CHUNKS_PER_GROUP, end)
            batches = list(_batches(generator, first, last, schema))
            writer.write_table(pa.Table.from_batches(batches), row_group_size=last - first)
    return end - start


def _batches(generator: EventGenerator, start: int, stop: int, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for first in range(start, stop, _CHUNK_EVENTS):
        chunk = generator.chunk(first, min(first + _CHUNK_EVENTS, stop))
        position_N = np.arange(first, first + len(chunk.query_N), dtype=np.uint64)
        columns = [
            hex_ids(generator, "query", chunk.query_N),
            hex_ids(generator, "item", chunk.item_N),
            pa.DictionaryArray.from_arrays(generator.draw_events(chunk, position_N), pa.array(EVENTS)),
            _timestamps(generator, position_N),
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def hex_ids(generator: EventGenerator, side: str, row_N: Integers) -> pa.Array:
    """Return the IDs of rows of the 'query' or 'item' entity: distinct strings of 16 hexadecimal digits."""
    scrambled_N = mix(row_N.astype(np.uint64) ^ generator.salt(f"{side} id"))
    digits_N8 = _HEX_PAIRS[scrambled_N.byteswap().view(np.uint8)]
    offsets_N1 = np.arange(len(row_N) + 1, dtype=np.int32) * 16
    return pa.StringArray.from_buffers(len(row_N), pa.py_buffer(offsets_N1), pa.py_buffer(digits_N8))


def _timestamps(generator: EventGenerator, position_N: npt.NDArray[np.uint64]) -> pa.Array:
    """Return timestamps that rise with the position, so that files follow each other in time."""
    fraction_N = (position_N + generator.uniform("moment", position_N)) / generator.spec.interactions
    return pa.array((START_SECONDS * 1000 + fraction_N * (SPAN_SECONDS * 1000)).astype(np.int64)).cast(
        pa.timestamp("ms", tz="UTC")
    )


def _write_names(folder: Folder, name: str, generator: EventGenerator) -> None:
    spec = generator.spec
    row_R = np.arange(spec.items, dtype=np.int64)
    genres = (genre_of(row_R, spec.genres) + 1).tolist()
    names = [f"{spec.item} {row + 1} (genre {genre})" for row, genre in enumerate(genres)]
    table = pa.table({"id": hex_ids(generator, "item", row_R), "name": pa.array(names)})
    with folder.open_output(name) as file:
        pq.write_table(table, file, **_COMPRESSION)


def main() -> None:
    """Write the events."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("queries", "items", "interactions"):
        parser.add_argument(f"--{name}", type=float, required=True, metavar="N")
    parser.add_argument("--genres", type=int, default=SyntheticSpec.model_fields["genres"].default, metavar="N")
    parser.add_argument("--moods", type=int, default=0, metavar="N")
    parser.add_argument("--likes", choices=["all", "genre", "customer"], default="all")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--out", required=True, metavar="DIR")
    given = parser.parse_args()
    sizes = {name: int(getattr(given, name)) for name in ("queries", "items", "interactions", "genres")}
    write_raw_events(given.out, EventGenerator(SyntheticSpec.of(**sizes), given.seed, given.moods, given.likes))


if __name__ == "__main__":
    main()
