# ruff: noqa: S608  (what is put into SQL is of this program, or a number of it)
"""What a preparation does in the tasks of Spark: read files, apply steps to groups of events, and write files.

    read = partial(read_files, FilesStep(options, files, keys, first_row, string_sides), resources)
    spark.range(0, len(files), 1, len(files)).mapInArrow(read, SCHEMA)      # a task for each file

Each task takes and yields rows of one schema, so that Spark moves few and large values: a ``block`` of a table in the
Arrow format, the SQL of a view, or a report in JSON. A group of events is the working database of a preparation of
these events alone: a task opens a database, loads the tables and views of a group, applies steps by the same code as
without Spark, and yields the tables and views that are left.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter

from crossfade.base.errors import InputError, Option, parts
from crossfade.base.io.durable_file import create_folder, sync_folder
from crossfade.base.io.folder import Folder
from crossfade.base.io.temporary_folder import temporary_folder
from crossfade.trainer.data.manifest import DataFile
from crossfade.trainer.data.parquet import ParquetFiles
from crossfade.trainer.prepare.database import execute, execute_on, working_database
from crossfade.trainer.prepare.event_groups import Report, Step
from crossfade.trainer.prepare.events import EventReader
from crossfade.trainer.prepare.faults import Faults, Quarantine
from crossfade.trainer.prepare.fetch import fetch_files
from crossfade.trainer.prepare.id_encoder import SIDES, IdEncoder
from crossfade.trainer.prepare.input_files import RawFile, RemoteFile, Source
from crossfade.trainer.prepare.options import Format, PrepareOptions
from crossfade.trainer.prepare.staging import ATTEMPTS, PartWriter, Staged

Batches = Iterator[pa.RecordBatch]

SCHEMA = "key int, kind string, name string, block binary"
_ARROW_SCHEMA = pa.schema([("key", pa.int32()), ("kind", pa.string()), ("name", pa.string()), ("block", pa.binary())])
TABLE, VIEW, FOUND, REPORT, QUARANTINED = "table", "view", "found", "report", "quarantined"
"""What a block is: of a table or a view of a group, of a table that is found, a report, or bad lines of a file."""
ARRIVED, PLACED = "arrived", "placed"
"""The tables of events that go to other tasks: once they are read, to a group; in their order, to a file."""
_BLOCK_ROWS = 100_000
_READ_ROWS = 1 << 20
"""Rows that are divided at a time."""
_BLOCK_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")


class _Row(NamedTuple):
    """A row of ``SCHEMA``; the hash of the ``key`` chooses the task that it goes to."""

    key: int
    kind: str
    name: str
    block: bytes

    def batch(self) -> pa.RecordBatch:
        """Return it as a batch of its own."""
        return pa.RecordBatch.from_arrays([[value] for value in self], schema=_ARROW_SCHEMA)


def _rows(batches: Batches) -> Iterator[_Row]:
    for batch in batches:
        yield from (_Row(*values) for values in zip(*(column.to_pylist() for column in batch.columns), strict=True))


def _pack(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=_BLOCK_OPTIONS) as stream:
        stream.write_batch(batch)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def unpack(block: bytes) -> pa.Table:
    """Return the rows of a ``block``."""
    with pa.ipc.open_stream(block) as stream:
        return stream.read_all()


def _report(key: int, report: Mapping[str, Any]) -> pa.RecordBatch:
    return _Row(key, REPORT, "", json.dumps(report).encode()).batch()


_PARTS = TypeAdapter(tuple[str | Option, ...])


def failure(error: InputError) -> Report:
    """Return the report of an ``error``."""
    return {"error": _PARTS.dump_python(parts(error.args), mode="json")}


def to_error(report: Report) -> InputError:
    """Return the error of a ``report``."""
    return InputError(*_PARTS.validate_python(report["error"]))


@dataclass(frozen=True)
class Resources:
    """The bytes of memory and the threads of the database of a task, and the folder of its temporary files."""

    memory: int
    threads: int
    work: Path | None

    @contextmanager
    def open(self) -> Iterator[tuple[duckdb.DuckDBPyConnection, Path]]:
        """Open a database, and a folder for temporary files."""
        with (
            temporary_folder("prepare", self.work) as folder,
            working_database(folder, self.memory, self.threads) as connection,
        ):
            yield connection, folder


@dataclass(frozen=True)
class TaskFile:
    """An input file as a task opens it: at ``path``, or the object ``key`` of the ``bucket``; ``name`` is for messages.

    Attributes:
        name: How messages call it.
        split: The index of its split.
        format: Its format.
        path: Where all tasks find it; None on S3.
        bucket: The URI of its bucket.
        key: Its key there.
        bytes: Its size.
    """

    name: str
    split: int
    format: Format
    path: Path | None
    bucket: str = ""
    key: str = ""
    bytes: int = 0

    @staticmethod
    def of(source: Source, split: int) -> TaskFile:
        """Return ``source``, with events of ``split``, as tasks open it."""
        if isinstance(source, RawFile):
            return TaskFile(str(source), split, source.format, source.path.absolute(), bytes=source.bytes)
        return TaskFile(str(source), split, source.format, None, source.bucket.uri, source.key, source.bytes)

    @property
    def is_dense(self) -> bool:
        """Whether the file has few bytes per event."""
        return self.format == "parquet" or self.name.endswith((".gz", ".zst"))

    @contextmanager
    def local(self, work: Path, columns: Collection[str]) -> Iterator[RawFile]:
        """Open the file; the ``columns`` of one on S3 are fetched to ``work``."""
        if self.path is not None:
            yield RawFile(self.path, self.format, origin=self.name)
            return
        remote = RemoteFile(Folder(self.bucket), self.key, self.bytes, self.format, modified=0)
        with fetch_files([remote], work, columns) as files:
            yield next(files)


class _FileReader(EventReader):
    """Reads one file; ``kept`` is the relation of its events, if there are any, and ``rows`` counts all rows."""

    kept: str | None = None
    rows = 0
    faults_before: Any = None

    def _append(self, events: str, rows: int, ids: Mapping[str, str]) -> None:
        self.kept, self.rows = events, rows

    def _check_types(self, file: RawFile, types: Mapping[str, str]) -> None:
        self.faults_before = self.faults.state()
        super()._check_types(file, types)


@dataclass(frozen=True)
class FilesStep:
    """What to read: files of events, the keys of the groups, and how rows of Parquet are counted.

    The IDs of ``string_sides`` are strings in a base dataset.
    """

    options: PrepareOptions
    files: Sequence[TaskFile]
    keys: Sequence[int]
    first_row: int
    string_sides: Sequence[str]


def read_files(step: FilesStep, resources: Resources, numbers: Batches) -> Batches:
    """Read the files at the places that ``numbers`` has: blocks of their events and bad lines, and a report on each."""
    for number in (number for batch in numbers for number in batch.column(0).to_pylist()):
        with resources.open() as (connection, work), ExitStack() as opened:
            options, quarantine = step.options, None
            if options.quarantine is not None:
                quarantine = opened.enter_context(closing(Quarantine(work / "lines", work, overwrite=False)))
            skip, drop = options.on_bad_line != "fail", options.on_missing == "drop"
            faults = Faults(skip, drop, quarantine, options.max_bad, step.first_row)
            reader = _FileReader(connection, options, step.string_sides, faults)
            yield from _read_file(reader, connection, work, step, number)
            for text in quarantine.texts() if quarantine is not None else ():
                yield _Row(number, QUARANTINED, "", text.encode()).batch()


def _read_file(
    reader: _FileReader, connection: duckdb.DuckDBPyConnection, work: Path, step: FilesStep, number: int
) -> Batches:
    file, faults = step.files[number], reader.faults
    counts: dict[str, Any] = {"train": 0, "positives": 0, "newest": None}
    with ExitStack() as opened:
        try:
            reader.read(opened.enter_context(file.local(work, reader.columns_to_fetch())), file.split)
        except InputError as error:
            faults.add_error(error)
        if reader.kept is not None and not faults.rejected:
            part = f"(hash(query_id) % {len(step.keys)})::INTEGER AS part"
            sql = f"SELECT {part}, *, {number}::INTEGER AS file FROM {reader.kept}"
            for batch in connection.sql(sql).to_arrow_reader(_READ_ROWS):
                if file.split == 0:
                    counts["train"] += batch.num_rows
                    counts["positives"] += pc.sum(pc.greater(batch.column("weight"), 0)).as_py() or 0
                times = pc.max(batch.column("timestamp")).as_py(), counts["newest"]
                counts["newest"] = max((time for time in times if time is not None), default=None)
                yield from _divide(batch, step.keys, TABLE, ARRIVED)
    found = {"file": number, "rows": reader.rows, "has_events": reader.kept is not None}
    faults_before = faults.state() if reader.faults_before is None else reader.faults_before
    yield _report(number, {**found, **counts, "state": reader.state(), "faults_before": faults_before})


def _divide(batch: pa.RecordBatch, keys: Sequence[int], kind: str, name: str) -> Batches:
    """Yield the rows of ``batch`` in a block for each ``part`` that they have, whose key is at that place of ``keys``.

    The part is the first column, which blocks do not have.
    """
    part_N = batch.column(0).to_numpy()
    order_N = np.argsort(part_N, kind="stable")
    rows = batch.select(batch.schema.names[1:]).take(pa.array(order_N))
    sorted_N = part_N[order_N]
    starts = [*np.flatnonzero(np.diff(sorted_N, prepend=-1)).tolist(), len(sorted_N)]
    for start, end in pairwise(starts):
        yield _Row(keys[sorted_N[start]], kind, name, _pack(rows.slice(start, end - start))).batch()


def encode(
    id_types: tuple[str, str],
    context: Sequence[str],
    first_places: Sequence[int],
    connection: duckdb.DuckDBPyConnection,
) -> Report:
    """Create the tables that ``read_events`` makes, of the events that have ``arrived``.

    ``id_types`` are of the query and the item, 'integer' or 'string'; ``context`` are the columns with its values.
    ``first_places`` are the places of the first row of each file, and of the end, in the order of all rows.
    """
    connection.register("firsts", pa.table({"file": range(len(first_places)), "first": first_places}))
    encoder = IdEncoder(connection, *id_types, context)
    events = f"(SELECT * REPLACE (position + first AS position) FROM {ARRIVED} JOIN firsts USING (file))"
    ids = {side: f"SELECT DISTINCT {side}_id FROM {ARRIVED}" for side in SIDES}
    encoder.add(events, first_places[-1], ids)
    encoder.finish()
    connection.unregister("firsts")
    connection.execute(f"DROP TABLE {ARRIVED}")
    return {}


@dataclass(frozen=True)
class GivenTable:
    """A table for steps: its ``name``, its ``columns`` as SQL has them, and its files in the folder at ``uri``.

    Those of the queries of a group are at its place; a table that is not divided between groups has one entry.
    """

    name: str
    columns: Mapping[str, str]
    uri: str
    files: Sequence[Sequence[DataFile]]

    def load(self, group: int, connection: duckdb.DuckDBPyConnection) -> Report:
        """Create the table; it has no IDs that are not in the ``group``."""
        columns = ", ".join(f"{name} {data_type}" for name, data_type in self.columns.items())
        connection.execute(f"CREATE TABLE {self.name} ({columns})")
        side = next((f" SEMI JOIN ids_{side} USING (id)" for side in SIDES if self.name.endswith(f"_{side}")), "")
        reader = ParquetFiles(Folder(self.uri))
        for file in self.files[group if len(self.files) > 1 else 0]:
            for row_group in range(len(file.row_groups)):
                part = reader.read(file, row_group, list(self.columns))
                execute_on(
                    connection, part, f"INSERT INTO {self.name} SELECT {', '.join(self.columns)} FROM part{side}"
                )
        return {}


@dataclass(frozen=True)
class GroupWork:
    """What to do in a group.

    Attributes:
        keys: The keys of the groups.
        encoding: What has to be done first, if anything.
        given: The tables that the steps get.
        steps: The steps to apply.
        found: The tables and views that steps make, which are yielded apart.
        parts: The keys of the files that the rows of ``PLACED`` are of.
        changes: Whether the group is yielded, too.
    """

    keys: Sequence[int]
    encoding: Sequence[Step]
    given: Sequence[GivenTable]
    steps: Sequence[Step]
    found: Sequence[str]
    parts: Sequence[int]
    changes: bool


def apply_steps(work: GroupWork, resources: Resources, batches: Batches) -> Batches:
    """Apply the steps of ``work`` to a group."""
    arriving = _rows(batches)
    first = next(arriving, None)
    if first is None:
        return
    key, report = first.key, Report()
    with resources.open() as (connection, _):
        _load(connection, chain([first], arriving))
        try:
            loads: list[Step] = [partial(given.load, work.keys.index(key)) for given in work.given]
            for step in [*work.encoding, *loads, *work.steps]:
                report |= step(connection)
        except InputError as error:
            yield _report(key, failure(error))
            return
        for name in work.found:
            yield from _dump_found(connection, key, name, work.parts)
        for given in work.given:
            connection.execute(f"DROP TABLE {given.name}")
        if work.changes:
            yield from _dump(connection, key, work.found)
        yield _report(key, report)


def _load(connection: duckdb.DuckDBPyConnection, rows: Iterator[_Row]) -> None:
    """Create the tables and the views in ``rows``."""
    made, views = set(), []
    for row in rows:
        if row.kind == VIEW:
            views.append(row.block.decode())
            continue
        statement = f"INSERT INTO {row.name}" if row.name in made else f"CREATE TABLE {row.name} AS"
        execute_on(connection, unpack(row.block), f"{statement} FROM part")
        made.add(row.name)
    for view in views:
        connection.execute(view)


def _dump(connection: duckdb.DuckDBPyConnection, key: int, found: Sequence[str]) -> Batches:
    """Yield all tables and views but those that are ``found``."""
    views = execute(connection, "SELECT view_name, sql FROM duckdb_views() WHERE NOT internal ORDER BY view_oid")
    for name, sql in views:
        if name not in found:
            yield _Row(key, VIEW, str(name), str(sql).encode()).batch()
    for (name,) in execute(connection, "SELECT table_name FROM duckdb_tables()"):
        if name not in found:
            yield from _dump_table(connection, key, TABLE, str(name))


def _dump_found(connection: duckdb.DuckDBPyConnection, key: int, name: str, parts: Sequence[int]) -> Batches:
    if name != PLACED:
        yield from _dump_table(connection, key, FOUND, name)
        return
    for batch in connection.sql(f"FROM {name}").to_arrow_reader(_READ_ROWS):
        yield from _divide(batch, parts, FOUND, name)


def _dump_table(connection: duckdb.DuckDBPyConnection, key: int, kind: str, name: str) -> Batches:
    """Yield a table or a view, which has a block even if it has no rows."""
    reader = connection.sql(f"FROM {name}").to_arrow_reader(_BLOCK_ROWS)
    first = next(reader, pa.RecordBatch.from_pylist([], schema=reader.schema))
    for batch in chain([first], reader):
        yield _Row(key, kind, name, _pack(batch)).batch()


@dataclass(frozen=True)
class Part:
    """A file of a split: the split, its number there, the rows of its row groups, and those of a full file."""

    split: str
    number: int
    group_rows: int
    rows: int


@dataclass(frozen=True)
class Output:
    """Where tasks write files: the URI of the folder, the suffix of file names, the columns, and the part by key."""

    uri: str
    tag: str
    schema: pa.Schema
    parts: Mapping[int, Part]


def column_names(schema: pa.Schema) -> list[str]:
    """Return how the columns of files are called before: entities may have names of other columns."""
    return [f'"#{number}"' for number in range(len(schema))]


def write_part(output: Output, resources: Resources, batches: Batches) -> Batches:
    """Write the rows of one file by their ``place``; yield its manifest entry.

    Spark may run a task twice, and end the second one once the first has its file: it appears in one step.
    """
    arriving = _rows(batches)
    first = next(arriving, None)
    if first is None:
        return
    part, target = output.parts[first.key], Folder(output.uri)
    folder = target if target.on_s3 else target.child(f"{ATTEMPTS}/{uuid.uuid4().hex}")
    with resources.open() as (connection, work):
        _load(connection, chain([first], arriving))
        staged = Staged(folder, overwrite=False, folder=folder, work=work, lock=None, tag=output.tag)
        sorted_rows = connection.sql(f"SELECT {', '.join(column_names(output.schema))} FROM {PLACED} ORDER BY place")
        with PartWriter(staged, part.split, output.schema, part.group_rows, part.number) as writer:
            for batch in sorted_rows.to_arrow_reader(part.group_rows):
                writer.write(batch)
            (file,) = writer.close()
    if folder.path is not None and target.path is not None:
        moved = target.path / file.path
        create_folder(moved.parent)
        (folder.path / file.path).replace(moved)
        sync_folder(moved.parent)
    yield _report(first.key, {"file": file.model_dump_json()})
