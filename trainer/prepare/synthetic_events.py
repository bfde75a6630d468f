"""Write synthetic listening as raw events, as a service would log it: with string IDs, ordered by time.

    write_raw_events("raw", SyntheticSpec(interactions=1_000_000), seed=1)

    OUT/events/part-00000.parquet   QUERY string, ITEM string, event string, timestamp (milliseconds, UTC)
    OUT/names/ITEM.parquet          id string, name string; if there are at most 100,000 items

Interactions are drawn as in ``synthetic_draws.py``. An event is a play, like, library_add or skip; items outside the
query's own genres are skipped more often, and rarely liked. Likes and library adds, of an item of the query's own
genres, depend on ``spec.likes``:

    all         its events are of each kind with the same probability, whatever the item
    genre       items of every other genre get most likes and library adds: a difference to plays that all queries share
    customer    items of the first of the query's own genres get most of them: a difference of each query

Each file is a function of the spec, the seed and its number, so that files are written in parallel.

Shapes: N events of a chunk, R rows of the item entity.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from crossfade.base.hashing import mix
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.reporter import NullReporter, ProgressReporter
from crossfade.trainer.prepare.options import SyntheticSpec
from crossfade.trainer.prepare.staging import Staged, staged_output
from crossfade.trainer.prepare.synthetic import MAX_NAMED_ITEMS
from crossfade.trainer.prepare.synthetic_draws import (
    SPAN_SECONDS,
    START_SECONDS,
    Chunk,
    Generator,
    Integers,
    genre_of,
)

EVENTS = ("play", "like", "library_add", "skip")
EVENT, TIMESTAMP, EVENTS_FOLDER, NAMES_FOLDER = "event", "timestamp", "events", "names"

_OWN_SHARES = (0.72, 0.11, 0.07, 0.10)
_STRAY_SHARES = (0.45, 0.02, 0.01, 0.52)
_LIKED_SHARES = (0.68, 0.14, 0.08, 0.10)
_UNLIKED_SHARES = (0.88, 0.015, 0.005, 0.10)
"""The probability of each of ``EVENTS``; the last two for own genres where ``likes`` divides items."""
_FILE_EVENTS = 1 << 22
_CHUNK_EVENTS = 1 << 17
_CHUNKS_PER_GROUP = 4
_COMPRESSION = {"compression": "zstd", "compression_level": 1}
_HEX_PAIRS = np.frombuffer("".join(f"{value:02x}" for value in range(256)).encode(), dtype=np.uint16)


def write_raw_events(
    out: str | os.PathLike[str],
    spec: SyntheticSpec,
    seed: int,
    progress: ProgressReporter | None = None,
    threads: int | None = None,
) -> list[str]:
    """Write ``spec.interactions`` events to ``out``, a path or URI, and return the names of the files.

    The same spec and seed give the same bytes, whatever the number of ``threads`` (default: one per core). The
    fractions of valid and test have no effect. The output is written completely or not at all.

    Raises:
        InputError: ``out`` exists or cannot be written.
    """
    progress = progress or NullReporter()
    with staged_output(out, overwrite=False) as staged:
        names = _write_events(staged, Generator(spec, seed), progress, threads or os.cpu_count() or 1)
        if spec.items <= MAX_NAMED_ITEMS:
            names.append(f"{NAMES_FOLDER}/{staged.file_name(spec.item)}")
            _write_names(staged.folder, names[-1], Generator(spec, seed))
        staged.publish(None)
    return names


def _write_events(staged: Staged, generator: Generator, progress: ProgressReporter, threads: int) -> list[str]:
    total = generator.spec.interactions
    progress.phase("write events", total, "row")
    names, stop = [], threading.Event()
    with ThreadPoolExecutor(threads) as pool:
        running: set[Future[int]] = set()
        try:
            for number, start in enumerate(range(0, total, _FILE_EVENTS)):
                names.append(f"{EVENTS_FOLDER}/{staged.file_name(f'part-{number:05d}')}")
                end = min(start + _FILE_EVENTS, total)
                running.add(pool.submit(_write_file, staged.folder, names[-1], generator, start, end, stop))
                if len(running) > threads:
                    running = _collect(running, progress)
            while running:
                running = _collect(running, progress)
        finally:
            stop.set()
    return names


def _collect(running: set[Future[int]], progress: ProgressReporter) -> set[Future[int]]:
    done, rest = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        progress.advance(future.result())
    return rest


def _write_file(folder: Folder, name: str, generator: Generator, start: int, end: int, stop: threading.Event) -> int:
    """Write the events from ``start`` to before ``end`` and return their number; give up once ``stop`` is set."""
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
            if stop.is_set():
                raise InterruptedError("another file could not be written")
            last = min(first + _CHUNK_EVENTS * _CHUNKS_PER_GROUP, end)
            batches = list(_batches(generator, first, last, schema))
            writer.write_table(pa.Table.from_batches(batches), row_group_size=last - first)
    return end - start


def _batches(generator: Generator, start: int, stop: int, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for first in range(start, stop, _CHUNK_EVENTS):
        chunk = generator.chunk(first, min(first + _CHUNK_EVENTS, stop))
        position_N = np.arange(first, first + len(chunk.query_N), dtype=np.uint64)
        columns = [
            hex_ids(generator, "query", chunk.query_N),
            hex_ids(generator, "item", chunk.item_N),
            pa.DictionaryArray.from_arrays(_kinds(generator, chunk, position_N), pa.array(EVENTS)),
            _timestamps(generator, position_N),
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def hex_ids(generator: Generator, side: str, row_N: Integers) -> pa.Array:
    """Return the IDs of rows of the 'query' or 'item' entity: distinct strings of 16 hexadecimal digits."""
    scrambled_N = mix(row_N.astype(np.uint64) ^ generator.salt(f"{side} id"))
    digits_N8 = _HEX_PAIRS[scrambled_N.byteswap().view(np.uint8)]
    offsets_N1 = np.arange(len(row_N) + 1, dtype=np.int32) * 16
    return pa.StringArray.from_buffers(len(row_N), pa.py_buffer(offsets_N1), pa.py_buffer(digits_N8))


def _kinds(generator: Generator, chunk: Chunk, position_N: npt.NDArray[np.uint64]) -> pa.Array:
    draw_N = generator.uniform("event", position_N)
    all_N, liked_N, unliked_N, stray_N = (
        np.searchsorted(np.cumsum(shares)[:-1], draw_N, side="right")
        for shares in (_OWN_SHARES, _LIKED_SHARES, _UNLIKED_SHARES, _STRAY_SHARES)
    )
    genre_N = genre_of(chunk.item_N, generator.spec.genres)
    match generator.spec.likes:
        case "all":
            own_N = all_N
        case "genre":
            own_N = np.where(genre_N % 2 == 0, liked_N, unliked_N)
        case "customer":
            own_N = np.where(genre_N == generator.first_genres(chunk.query_N, position_N), liked_N, unliked_N)
    return pa.array(np.where(chunk.stray_N, stray_N, own_N).astype(np.int8))


def _timestamps(generator: Generator, position_N: npt.NDArray[np.uint64]) -> pa.Array:
    """Return timestamps that rise with the position, so that files follow each other in time."""
    fraction_N = (position_N + generator.uniform("moment", position_N)) / generator.spec.interactions
    return pa.array((START_SECONDS * 1000 + fraction_N * (SPAN_SECONDS * 1000)).astype(np.int64)).cast(
        pa.timestamp("ms", tz="UTC")
    )


def _write_names(folder: Folder, name: str, generator: Generator) -> None:
    spec = generator.spec
    row_R = np.arange(spec.items, dtype=np.int64)
    genres = (genre_of(row_R, spec.genres) + 1).tolist()
    names = [f"{spec.item} {row + 1} (genre {genre})" for row, genre in enumerate(genres)]
    table = pa.table({"id": hex_ids(generator, "item", row_R), "name": pa.array(names)})
    with folder.open_output(name) as file:
        pq.write_table(table, file, **_COMPRESSION)
