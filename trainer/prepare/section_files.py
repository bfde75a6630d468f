"""Files of tables in sections, through which the tasks of a preparation on Spark get what others have written.

with section_writer(folder, ".attempts/1-0") as writer:
    writer.add("events", batch)                             # in any order
file = writer.file
for table in read_section(folder, file, "events"): ...      # which need not be in memory as a whole

A section is one table in blocks. Each block is an Arrow stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import duckdb
import numpy as np
import pyarrow as pa

from crossfade.base.io.folder import Folder, OutputFile

_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")


@dataclass(frozen=True)
class SectionFile:
    """A file at a ``path`` of a folder; ``sections`` has by name the first byte and the bytes of each block."""

    path: str
    sections: dict[str, list[tuple[int, int]]] = field(default_factory=dict)


@contextmanager
def section_writer(folder: Folder, path: str) -> Iterator[SectionWriter]:
    """Write the file ``path`` of ``folder``, which is complete when the context ends."""
    with folder.open_output(path) as output:
        yield SectionWriter(SectionFile(path), output)


@dataclass
class SectionWriter:
    """Writes a ``file`` with sections to ``output``."""

    file: SectionFile
    output: OutputFile
    _bytes: int = 0

    def add(self, section: str, batch: pa.RecordBatch) -> None:
        """Add the rows of ``batch`` to a ``section``."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema, options=_OPTIONS) as stream:
            stream.write_batch(batch)
        block = sink.getvalue()
        self.output.write(block)
        self.file.sections.setdefault(section, []).append((self._bytes, block.size))
        self._bytes += block.size

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
    if section in file.sections:
        with closing(folder.open_random(file.path)) as source:
            for place, length in file.sections[section]:
                with pa.ipc.open_stream(source.read_at(place, length)) as stream:
                    yield stream.read_all()


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
