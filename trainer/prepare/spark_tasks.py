# ruff: noqa: S608  (what is put into SQL is of this program, or a number of it)
"""What a preparation does in the tasks of Spark: read files, hold out, number rows, and write parts.

    read = partial(read_files, FilesStep(options, files, keys, first_row), resources)
    spark.range(0, len(files), 1, len(files)).mapInArrow(read, READ_SCHEMA)     # a task for each file

Each function takes and yields record batches. DuckDB reads, checks, sums, holds out, and hashes as in a preparation
without Spark, by the same code, over a file or over all events of some query entities. Next to rows, tasks yield
reports in a column of their own: JSON, in rows that have nothing else.

Events that were read go on as blocks of the Arrow format, each of some query entities, so that Spark moves few values.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain, groupby, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter

from crossfade.base.errors import InputError, Option, parts
from crossfade.base.io.durable_file import create_folder, sync_folder
from crossfade.base.io.folder import Folder
from crossfade.base.io.temporary_folder import temporary_folder
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.data.time_values import TimeSpan
from crossfade.trainer.prepare.cleaning import sum_duplicates
from crossfade.trainer.prepare.content_columns import ALL_CONTENT, append_content, create_given
from crossfade.trainer.prepare.database import count_rows, execute, fetch_count, fetch_one, shuffled, working_database
from crossfade.trainer.prepare.event_context import create_event_values
from crossfade.trainer.prepare.events import EventReader
from crossfade.trainer.prepare.extend import SQL_TYPES
from crossfade.trainer.prepare.faults import Faults
from crossfade.trainer.prepare.feature_columns import ColumnPlan, append_feature
from crossfade.trainer.prepare.fetch import fetch_files
from crossfade.trainer.prepare.hold_out import (
    HoldOut,
    apply_hold_outs,
    count_taken,
    create_interactions,
    drop_gaps,
    train_span,
)
from crossfade.trainer.prepare.id_encoder import IdEncoder, IdType
from crossfade.trainer.prepare.input_files import RawFile, RemoteFile, Source, StandardInput
from crossfade.trainer.prepare.option_values import ContextPlan, NamesFile
from crossfade.trainer.prepare.options import Format, PrepareOptions
from crossfade.trainer.prepare.staging import PartWriter, Staged
from crossfade.trainer.prepare.summary import WEIGHTS_SQL
from crossfade.trainer.prepare.vocabulary_tables import read_names

Batches = Iterator[pa.RecordBatch]

_BATCH_ROWS, _ARROW_ROWS, _BATCH_VALUES = 100_000, 10_000, 1 << 22
"""Rows of batches: of numbers and IDs, as Spark makes them, and so many numbers of vectors."""
_BLOCK_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")
_ARROW_TYPES = {
    "array<float>": pa.list_(pa.float32()),
    "binary": pa.binary(),
    "bigint": pa.int64(),
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "float": pa.float32(),
    "string": pa.string(),
}
SPARK_TYPES = {"integer": "bigint", "int64": "bigint", "string": "string"}
"""The types of IDs."""

READ_SCHEMA = "key int, block binary, report string"
"""Events of the query entities of a key, whose hash chooses it: those of one have the same."""
NAMES_SCHEMA = "id string, name string, report string"
GIVEN_SCHEMA = "id string, value string, report string"
CONTENT_SCHEMA = "id string, value array<float>, report string"
PARTS_SCHEMA = "part bigint, file string"
ATTEMPTS = ".attempts"
"""The folder where tasks write files: Spark may run one twice, and end the second one once the first has its file."""


def held_out_schema(query_type: str, item_type: str, context: Mapping[str, IdType]) -> str:
    """Return the schema of ``hold_out``: events, and the ``place`` of each among those of its query and split.

    ``context`` are the types of its columns with values of context.

    Rows without an item have the number of the interactions of a query entity in a split, ``position``, and of positive
    ones, ``place``; rows without a query have the number of the positive ones of an item in train.
    """
    ids = f"query {SPARK_TYPES[query_type]}, item {SPARK_TYPES[item_type]}"
    values = "".join(f"{key} {SPARK_TYPES[value_type]}, " for key, value_type in context.items())
    return f"{ids}, weight float, timestamp bigint, split int, position bigint, place bigint, {values}report string"


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
    def of(source: Source, split: int = 0) -> TaskFile:
        """Return ``source``, with events of ``split``, as tasks open it."""
        assert not isinstance(source, StandardInput)
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

    @property
    def context(self) -> str:
        """The columns of values of context, as they follow others in SQL."""
        return "".join(f", {name}" for name in self._context)

    def _append(self, events: str, rows: int, ids: Mapping[str, str] | None) -> None:
        self.kept, self.rows = events, rows

    def _check_same_type(self, file: RawFile, role: str, found: str) -> None:
        if self.faults_before is None:
            self.faults_before = self._faults.state()
        super()._check_same_type(file, role, found)


def new_faults(options: PrepareOptions, first_row: int) -> Faults:
    """Return what collects the faults of files; rows of Parquet count from ``first_row``."""
    skip, drop = options.on_bad_line != "fail", options.on_missing == "drop"
    return Faults(skip, drop, max_bad=options.max_bad, first_row=first_row)


@dataclass(frozen=True)
class FilesStep:
    """What to read: files of events, the keys of the groups of query entities, and how rows of Parquet are counted.

    The IDs of ``string_sides`` are strings in a base dataset.
    """

    options: PrepareOptions
    files: Sequence[TaskFile]
    keys: Sequence[int]
    first_row: int
    string_sides: Sequence[str]


def read_files(step: FilesStep, resources: Resources, numbers: Batches) -> Batches:
    """Read the files at the places that ``numbers`` has: blocks of their events, and a report on each file."""
    for number in _values(numbers):
        with resources.open() as (connection, work):
            yield from _read_file(connection, work, step, number)


def _read_file(connection: duckdb.DuckDBPyConnection, work: Path, step: FilesStep, number: int) -> Batches:
    file, faults = step.files[number], new_faults(step.options, step.first_row)
    reader = _FileReader(connection, step.options, step.string_sides, faults)
    kept, positives = 0, 0
    with ExitStack() as opened:
        try:
            reader.read(opened.enter_context(file.local(work, reader.columns_to_fetch())), file.split)
        except InputError as error:
            faults.add_error(error)
        if reader.kept is not None and not faults.rejected:
            columns = (
                f"query_id, item_id, weight, timestamp, split, position, {number}::INTEGER AS file{reader.context}"
            )
            key = f"(hash(query_id) % {len(step.keys)})::INTEGER"
            sql = f"SELECT {key} AS part, {columns} FROM {reader.kept} ORDER BY part"
            for batch in connection.sql(sql).to_arrow_reader(_BATCH_ROWS):
                kept += batch.num_rows
                positives += pc.sum(pc.greater(batch.column("weight"), 0)).as_py() or 0
                yield _blocks(batch, step.keys)
    found = {"file": number, "rows": reader.rows, "has_events": reader.kept is not None}
    counts = {"kept": kept, "positives": positives}
    faults_before = faults.state() if reader.faults_before is None else reader.faults_before
    yield _report(READ_SCHEMA, {**found, **counts, "state": reader.state(), "faults_before": faults_before})


def _blocks(batch: pa.RecordBatch, keys: Sequence[int]) -> pa.RecordBatch:
    """Return the events of ``batch``, which are ordered by their column ``part``, as blocks."""
    found, blocks = [], []
    for part, piece in _pieces(iter([batch]), batch.schema.names[1:]):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, piece.schema, options=_BLOCK_OPTIONS) as stream:
            stream.write_batch(piece)
        found.append(keys[part])
        blocks.append(sink.getvalue().to_pybytes())
    nothing = pa.nulls(len(found), pa.string())
    columns = [pa.array(found, pa.int32()), pa.array(blocks, pa.binary()), nothing]
    return pa.RecordBatch.from_arrays(columns, schema=_arrow_schema(READ_SCHEMA))


def _unpacked(batches: Batches) -> Batches:
    """Yield the events in blocks, or rows of events as they are, without empty batches."""
    for batch in batches:
        if "block" not in batch.schema.names:
            yield from [batch] if batch.num_rows else []
            continue
        for block in batch.column("block"):
            with pa.ipc.open_stream(block.as_buffer()) as stream:
                yield from stream


@dataclass(frozen=True)
class HoldOutStep:
    """What to do with the events of some query entities.

    Attributes:
        id_types: The types of the query and the item IDs, 'integer' or 'string'.
        first_places: The place of the first row of each file in the order of all rows.
        rows: How many rows there are.
        sums: Whether to sum duplicates first.
        gap: What is left out before times of ``plan``.
        plan: The hold-outs.
        timestamps: The type of the timestamps, if any.
        seed: The seed of draws and of the order.
        context: The context of events.
        context_types: The types of its values, by name.
    """

    id_types: tuple[str, str]
    first_places: Sequence[int]
    rows: int
    sums: bool
    gap: TimeSpan | None
    plan: Mapping[str, HoldOut]
    timestamps: str | None
    seed: int
    context: Sequence[ContextPlan]
    context_types: Mapping[str, IdType]

    def read_columns(self) -> list[str]:
        """Return the columns of values of context that were read, not derived."""
        return [plan.key for plan in self.context if not plan.is_derived]

    def schema(self) -> str:
        """Return the schema of what is held out."""
        return held_out_schema(*self.id_types, {plan.key: self.context_types[plan.name] for plan in self.context})


def hold_out(step: HoldOutStep, resources: Resources, batches: Batches) -> Batches:
    """Sum, clean, and split events, all those of some query entities; yield them, and a report."""
    arriving = _unpacked(batches)
    first = next(arriving, None)
    if first is None:
        return
    schema = step.schema()
    with resources.open() as (connection, _):
        _encode(connection, step, pa.RecordBatchReader.from_batches(first.schema, chain([first], arriving)))
        report: dict[str, Any] = {}
        try:
            _apply(connection, step, report)
        except InputError as error:
            yield _report(schema, {**report, **_failure(error)})
            return
        place = f"row_number() OVER (PARTITION BY e.split, e.query ORDER BY {shuffled(step.seed, 'e.seq')}) - 1"
        values, join, nothing = _context_sql(connection, step)
        events = (
            f"q.id, i.id, e.weight, timestamp, e.split, e.seq, {place}{values}, NULL FROM interactions e "
            f"JOIN ids_query q ON q.number = e.query JOIN ids_item i ON i.number = e.item{join}"
        )
        queries = (
            f"q.id, NULL, NULL, NULL, split, count(*), count(*) FILTER (weight > 0){nothing}, NULL "
            "FROM interactions e JOIN ids_query q ON q.number = e.query GROUP BY q.id, split"
        )
        items = f"NULL, id, NULL, NULL, NULL, 0, count{nothing}, NULL FROM counts_item JOIN ids_item USING (number)"
        for rows in (events, queries, items):
            yield from _query(connection, f"SELECT {rows}", schema)
        yield _report(schema, report)


def _context_sql(connection: duckdb.DuckDBPyConnection, step: HoldOutStep) -> tuple[str, str, str]:
    """Return SQL of the values of context, of the join to events ``e`` that they need, and of as many nulls."""
    if not step.context:
        return "", "", ""
    create_event_values(connection, step.context, step.context_types)
    values = "".join(f", x.{plan.key}" for plan in step.context)
    return values, " JOIN event_values x ON x.seq = e.seq", ", NULL" * len(step.context)


def _encode(connection: duckdb.DuckDBPyConnection, step: HoldOutStep, arriving: pa.RecordBatchReader) -> None:
    """Create the table ``events`` of what arrives, in the order of files and rows."""
    firsts = pa.table({"file": range(len(step.first_places)), "first": step.first_places})
    connection.register("arriving", arriving)
    connection.register("firsts", firsts)
    columns = step.read_columns()
    connection.execute(
        "CREATE TABLE arrived AS SELECT query_id, item_id, weight, timestamp, split::UTINYINT AS split, "
        f"position + first AS position{''.join(f', {name}' for name in columns)} FROM arriving JOIN firsts USING (file)"
    )
    encoder = IdEncoder(connection, *step.id_types, columns)
    encoder.add("arrived", step.rows, None)
    encoder.finish()
    connection.execute("DROP TABLE arrived")


def _apply(connection: duckdb.DuckDBPyConnection, step: HoldOutStep, report: dict[str, Any]) -> None:
    """Create the view ``interactions`` of the table ``events``, and add to the ``report`` what was done."""
    table = "events"
    if step.sums:
        summed = sum_duplicates(connection, table, "distinct_events")
        report |= {"merged_duplicates": summed.merged, "cancelled_pairs": summed.cancelled}
        table = "distinct_events"
    (report["latest"],) = fetch_one(connection, f"SELECT max(timestamp) FROM {table}")
    if step.gap is not None:
        report |= drop_gaps(connection, table, step.plan, step.gap)
    create_interactions(connection, table, step.plan)
    taken: dict[str, Any] = {}

    def count(connection: duckdb.DuckDBPyConnection, hold_out: HoldOut, split: str) -> None:
        taken[split] = [count_taken(connection, split), *train_span(connection)]

    report["kept_for_train"] = apply_hold_outs(
        connection, step.plan, seed=step.seed, timestamps=step.timestamps, progress=NullReporter(), check=count
    )
    report["taken"] = taken
    negative, first, last = fetch_one(
        connection, f"SELECT count(*) FILTER (weight < 0), min(timestamp), max(timestamp) FROM {table}"
    )
    report |= {"negative": negative, "span": [first, last]}
    report["splits"] = execute(connection, "SELECT split, count::BIGINT, positives::BIGINT FROM counts_split")
    report["weights"] = execute(connection, f"SELECT part, total, count FROM {WEIGHTS_SQL}")


def add_order(seed: int, batches: Batches) -> Batches:
    """Add the column ``shuffled``: with it, then by ``row``, rows are in the random order of query entities."""
    connection = duckdb.connect(config={"threads": 1})
    first_key, _, number = shuffled(seed, "row").rpartition(", ")
    assert number == "row"
    for batch in batches:
        rows = pa.table({"row": batch.column("row")})
        connection.register("part", rows)
        # Of 64 bits without a sign: Spark's integers have one.
        key = connection.sql(f"SELECT ({first_key}::HUGEINT - {1 << 63})::BIGINT AS key FROM part").to_arrow_table()
        connection.unregister("part")
        keys = key.column("key").combine_chunks()
        yield pa.RecordBatch.from_arrays([*batch.columns, keys], names=[*batch.schema.names, "shuffled"])


@dataclass(frozen=True)
class Part:
    """A file of a split or of a vocabulary: its folder, its number there, and the rows of its row groups."""

    folder: str
    number: int
    group_rows: int


@dataclass(frozen=True)
class Output:
    """Where tasks write files: the URI of the folder, the suffix of file names, the columns, and the parts."""

    uri: str
    tag: str
    schema: pa.Schema
    parts: Sequence[Part]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the schema as Arrow writes it: pickled, it would lose how elements of lists are called in files."""
        return _output, (self.uri, self.tag, self.schema.serialize().to_pybytes(), self.parts)


def _output(uri: str, tag: str, schema: bytes, parts: Sequence[Part]) -> Output:
    return Output(uri, tag, pa.ipc.read_schema(pa.py_buffer(schema)), parts)


def column_names(schema: pa.Schema) -> list[str]:
    """Return how Spark calls the columns of a file: entities may have its own names, and it ignores the case."""
    return [f"#{number}" for number in range(len(schema))]


def write_parts(output: Output, batches: Batches) -> Batches:
    """Write the rows, in their order, as the files that their column ``part`` names; yield their manifest entries."""
    target = Folder(output.uri)
    folder = target if target.on_s3 else target.child(f"{ATTEMPTS}/{uuid.uuid4().hex}")
    staged = Staged(folder, overwrite=False, folder=folder, work=Path(), lock=None, tag=output.tag)
    for number, pieces in groupby(_pieces(batches, column_names(output.schema)), itemgetter(0)):
        part = output.parts[number]
        with PartWriter(staged, part.folder, output.schema, part.group_rows, part.number) as writer:
            for _, piece in pieces:
                writer.write(piece)
            (file,) = writer.close()
        if folder.path is not None and target.path is not None:
            moved = target.path / file.path
            create_folder(moved.parent)
            (folder.path / file.path).replace(moved)
            sync_folder(moved.parent)
        yield pa.RecordBatch.from_arrays([[number], [file.model_dump_json()]], names=["part", "file"])


def _pieces(batches: Batches, columns: Sequence[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield the ``columns`` of the rows of one part after another."""
    for batch in batches:
        part_N = batch.column("part").to_numpy()
        starts = [0, *(np.flatnonzero(np.diff(part_N)) + 1).tolist(), len(part_N)]
        selected = batch.select(list(columns))
        for start, end in pairwise(starts):
            if end > start:
                yield int(part_N[start]), selected.slice(start, end - start)


def read_names_file(
    file: TaskFile, names: NamesFile, faults: Faults, resources: Resources, batches: Batches
) -> Batches:
    """Read a file of names, for the only row of ``batches``."""
    for _ in _values(batches):
        with resources.open() as (connection, work), ExitStack() as opened:
            try:
                local = opened.enter_context(file.local(work, [names.id_column, names.name_column]))
                lines = read_names(connection, local, names, faults)
            except InputError as error:
                yield _report(NAMES_SCHEMA, _failure(error))
                return
            yield from _query(connection, "SELECT id, name, NULL AS report FROM given", NAMES_SCHEMA)
            given = count_rows(connection, "given")
            yield _report(NAMES_SCHEMA, {"lines": lines, "given": given, "faults": faults.state()})


@dataclass(frozen=True)
class ColumnStep:
    """What to read: the ``files`` of a feature or of a column of content, and whether values of features stay text."""

    plan: ColumnPlan
    files: Sequence[TaskFile]
    as_text: bool

    def schema(self) -> str:
        """Return the schema of what is read."""
        return CONTENT_SCHEMA if self.plan.kind == "content" else GIVEN_SCHEMA


def read_column_files(step: ColumnStep, resources: Resources, numbers: Batches) -> Batches:
    """Read the files at the places that ``numbers`` has: their pairs of an ID and a value, and a report on each."""
    plan, source = step.plan, step.plan.source
    assert source is not None
    for number in _values(numbers):
        file, columns = step.files[number], [source.id_column, source.columns[plan.name]]
        with resources.open() as (connection, work), ExitStack() as opened:
            try:
                local = opened.enter_context(file.local(work, columns))
                if plan.kind == "content":
                    append_content(connection, source.id_column, source.columns[plan.name], local)
                    sql, found, rows = f"value, NULL FROM {ALL_CONTENT}", None, _rows_of(connection, ALL_CONTENT)
                else:
                    found, rows = append_feature(connection, plan, local, step.as_text), _BATCH_ROWS
                    # Which fails as without Spark if it is too large.
                    sql = f"CAST(value AS {SQL_TYPES[found]}), NULL FROM text_{plan.key}"
            except InputError as error:
                yield _report(step.schema(), {"file": number, **_failure(error)})
                continue
            yield from _query(connection, f"SELECT DISTINCT id, {sql}", step.schema(), rows)
            yield _report(step.schema(), {"file": number, "type": found})


def merge_content(plan: ColumnPlan, resources: Resources, batches: Batches) -> Batches:
    """Yield each value once of all those of some IDs, and a report."""
    filled = (batch for batch in batches if batch.num_rows)
    first = next(filled, None)
    if first is None:
        return
    with resources.open() as (connection, _):
        connection.register("arriving", pa.RecordBatchReader.from_batches(first.schema, chain([first], filled)))
        widths, twice = create_given(connection, plan, "arriving")
        sql = f"SELECT id, value, NULL FROM {plan.given_table}"
        yield from _query(connection, sql, CONTENT_SCHEMA, _rows_of(connection, plan.given_table))
        rows = count_rows(connection, plan.given_table)
        yield _report(CONTENT_SCHEMA, {"widths": widths, "twice": twice, "rows": rows})


def read_parts(schema: str, sql: str, parts: Callable[[int], Iterator[pa.Table]], batches: Batches) -> Batches:
    """Yield the rows of the query ``sql`` of each of the ``parts`` of the files at the places that ``batches`` has.

    A file that is wrong has a report.
    """
    for number in _values(batches):
        try:
            with duckdb.connect(config={"threads": 1}) as connection:
                for part in parts(number):
                    connection.register("part", part)
                    yield from _query(connection, sql, schema)
                    connection.unregister("part")
        except InputError as error:
            yield _report(schema, {"file": number, **_failure(error)})


def _values(batches: Batches) -> Iterator[int]:
    return (value for batch in batches for value in batch.column(0).to_pylist())


def _arrow_schema(schema: str) -> pa.Schema:
    columns = (column.split() for column in schema.split(", "))
    return pa.schema([(name, _ARROW_TYPES[data_type]) for name, data_type in columns])


def rows_of_batches(width: int) -> int:
    """Return the rows of batches of vectors with ``width`` numbers, or at most that."""
    return max(1, min(_ARROW_ROWS, _BATCH_VALUES // max(1, width)))


def _rows_of(connection: duckdb.DuckDBPyConnection, content: str) -> int:
    """Return the rows of batches of the ``value`` of the table ``content``."""
    return rows_of_batches(fetch_count(connection, f"SELECT coalesce(max(len(value)), 1) FROM {content}"))


def _query(connection: duckdb.DuckDBPyConnection, sql: str, schema: str, rows: int = _BATCH_ROWS) -> Batches:
    """Yield the rows of a query with the types of a ``schema`` of Spark, whose columns it has."""
    arrow = _arrow_schema(schema)
    for batch in connection.sql(sql).to_arrow_reader(rows):
        columns = [column.cast(field.type) for column, field in zip(batch.columns, arrow, strict=True)]
        yield pa.RecordBatch.from_arrays(columns, schema=arrow)


_PARTS = TypeAdapter(tuple[str | Option, ...])


def _failure(error: InputError) -> dict[str, Any]:
    """Return what a report has of an ``error``."""
    return {"error": _PARTS.dump_python(parts(error.args), mode="json")}


def to_error(report: Mapping[str, Any]) -> InputError:
    """Return the error of a ``report``."""
    return InputError(*_PARTS.validate_python(report["error"]))


def _report(schema: str, report: Mapping[str, Any]) -> pa.RecordBatch:
    """Return a row with nothing but a ``report``."""
    arrow = _arrow_schema(schema)
    values = [pa.array([json.dumps(report) if field.name == "report" else None], field.type) for field in arrow]
    return pa.RecordBatch.from_arrays(values, schema=arrow)
