"""Write synthetic listening as raw events, as a service would log it: with string IDs, ordered by time.

    write_raw_events("raw", Generator(SyntheticSpec(interactions=1_000_000), seed=1))

    OUT/events/part-00000.parquet   QUERY string, ITEM string, event string, timestamp (milliseconds, UTC)
    OUT/names/ITEM.parquet          id string, name string; if there are at most 100,000 items

Events are drawn as in ``synthetic_draws.py``. Each file is a function of the spec, the seed and its number, so that
files are written in parallel.

Shapes: N events of a chunk, R rows of the item entity.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from crossfade.base.hashing import mix
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.reporter import NullReporter, ProgressReporter
from crossfade.trainer.prepare.staging import staged_output
from crossfade.trainer.prepare.synthetic import MAX_NAMED_ITEMS
from crossfade.trainer.prepare.synthetic_draws import (
    EVENTS,
    SPAN_SECONDS,
    START_SECONDS,
    Generator,
    Integers,
    genre_of,
)

EVENT, TIMESTAMP, EVENTS_FOLDER, NAMES_FOLDER = "event", "timestamp", "events", "names"

_FILE_EVENTS = 1 << 22
_CHUNK_EVENTS = 1 << 17
_CHUNKS_PER_GROUP = 4
_COMPRESSION = {"compression": "zstd", "compression_level": 1}
_HEX_PAIRS = np.frombuffer("".join(f"{value:02x}" for value in range(256)).encode(), dtype=np.uint16)


def write_raw_events(
    out: str | os.PathLike[str],
    generator: Generator,
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


def _write_file(folder: Folder, name: str, generator: Generator, start: int, end: int) -> int:
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


def _batches(generator: Generator, start: int, stop: int, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
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


def hex_ids(generator: Generator, side: str, row_N: Integers) -> pa.Array:
    """Return the IDs of rows of the 'query' or 'item' entity: distinct strings of 16 hexadecimal digits."""
    scrambled_N = mix(row_N.astype(np.uint64) ^ generator.salt(f"{side} id"))
    digits_N8 = _HEX_PAIRS[scrambled_N.byteswap().view(np.uint8)]
    offsets_N1 = np.arange(len(row_N) + 1, dtype=np.int32) * 16
    return pa.StringArray.from_buffers(len(row_N), pa.py_buffer(offsets_N1), pa.py_buffer(digits_N8))


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
