"""Files of tables in sections, through which the tasks of a preparation on Spark get what others have written.

with SectionWriter(folder, ".attempts/1-0", work) as writer:
    writer.add("events", batch)                             # in any order
    file = writer.close()
for table in read_section(folder, file, "events"): ...      # which need not be in memory as a whole

A section has the blocks of one table, in the Arrow format, each after its length.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import IO

import duckdb
import numpy as np
import pyarrow as pa

from crossfade.base.io.folder import Folder

_LENGTH_BYTES = 8
_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")


@dataclass(frozen=True)
class SectionFile:
    """A file at a ``path`` of a folder; each of its ``sections`` is from one byte to another."""

    path: str
    sections: dict[str, tuple[int, int]]


class SectionWriter:
    """Writes the file ``path`` of ``folder``: blocks wait in the folder ``work`` until all sections are complete."""

    def __init__(self, folder: Folder, path: str, work: Path) -> None:
        """Write nothing yet."""
        self._folder = folder
        self._path = path
        self._blocks: IO[bytes] = tempfile.TemporaryFile(dir=work)  # noqa: SIM115  (``__exit__`` closes it)
        self._places: dict[str, list[tuple[int, int]]] = defaultdict(list)

    def __enter__(self) -> SectionWriter:
        """Return this object."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Delete the blocks that wait."""
        self._blocks.close()

    def add(self, section: str, batch: pa.RecordBatch) -> None:
        """Add the rows of ``batch`` to a ``section``."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema, options=_OPTIONS) as stream:
            stream.write_batch(batch)
        block = sink.getvalue()
        self._places[section].append((self._blocks.tell(), block.size))
        self._blocks.write(block)

    def add_relation(self, section: str, relation: duckdb.DuckDBPyRelation, rows: int) -> None:
        """Add the rows of a query, about so many at a time; there is a block even if it has none."""
        for batch in _batches(relation, rows):
            self.add(section, batch)

    def add_parts(self, relation: duckdb.DuckDBPyRelation, rows: int) -> None:
        """Add the rows of a query, about so many at a time, to the sections that its first column names, a number."""
        for batch in _batches(relation, rows):
            part_N = batch.column(0).to_numpy()
            order_N = np.argsort(part_N.astype(np.min_scalar_type(part_N.max(initial=0))), kind="stable")  # radix sort
            sorted_N = part_N[order_N]
            columns = batch.select(batch.schema.names[1:]).take(pa.array(order_N))
            starts = np.flatnonzero(np.diff(sorted_N, prepend=-1)).tolist()
            for start, end in pairwise([*starts, len(sorted_N)]):
                self.add(str(sorted_N[start]), columns.slice(start, end - start))

    def close(self) -> SectionFile:
        """Write the file."""
        sections, end = {}, 0
        with self._folder.open_output(self._path) as file:
            for section, places in self._places.items():
                start = end
                for place, length in places:
                    self._blocks.seek(place)
                    file.write(length.to_bytes(_LENGTH_BYTES, "little") + self._blocks.read(length))
                    end += _LENGTH_BYTES + length
                sections[section] = (start, end)
        return SectionFile(self._path, sections)


def _batches(relation: duckdb.DuckDBPyRelation, rows: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a query in batches of about so many, of which windows yield few; at least one batch."""
    reader = relation.to_arrow_reader(rows)
    waiting, count = [pa.RecordBatch.from_pylist([], schema=reader.schema)], 0
    for batch in reader:
        waiting, count = [*waiting, batch], count + batch.num_rows
        if count >= rows:
            yield pa.concat_batches(waiting)
            waiting, count = [], 0
    if waiting:
        yield pa.concat_batches(waiting)


def read_section(folder: Folder, file: SectionFile, section: str) -> Iterator[pa.Table]:
    """Yield the rows of a ``section``, block after block; nothing if there is no such section."""
    place, end = file.sections.get(section, (0, 0))
    if place == end:
        return
    with closing(folder.open_random(file.path)) as source:
        while place < end:
            length = int.from_bytes(source.read_at(place, _LENGTH_BYTES), "little")
            with pa.ipc.open_stream(source.read_at(place + _LENGTH_BYTES, length)) as stream:
                yield stream.read_all()
            place += _LENGTH_BYTES + length


def load_sections(
    connection: duckdb.DuckDBPyConnection, folder: Folder, files: Sequence[SectionFile], section: str, table: str
) -> None:
    """Create a ``table`` of a ``section`` of all ``files``."""
    is_made = False
    for file in files:
        for part in read_section(folder, file, section):
            connection.register("part", part)
            connection.execute(f"INSERT INTO {table} FROM part" if is_made else f"CREATE TABLE {table} AS FROM part")
            connection.unregister("part")
            is_made = True
