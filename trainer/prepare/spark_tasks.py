# ruff: noqa: S608  (what is put into SQL is of this program)
"""What a preparation does in the tasks of Spark: read files, apply steps to groups of events, and write files.

    read = partial(read_file, reading, place)                       # in a task for each file
    applied = partial(apply_steps, work, place)                     # for each group of events
    written = partial(write_part, schema, place)                    # for each file of a split

A group of events is the working database of a preparation of these events alone: a task opens a database, loads the
tables and views of the group, applies steps by the same code as without Spark, and writes what is left for the next
task. Tables are in files that all tasks reach (``section_files.py``), so that a task that is lost can be repeated
anywhere: its files have names of its own, and count once it has returned them.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa

from crossfade.base.errors import InputError
from crossfade.base.io.durable_file import create_folder, sync
from crossfade.base.io.folder import Folder
from crossfade.base.io.temporary_folder import temporary_folder
from crossfade.trainer.data.manifest import DataFile
from crossfade.trainer.prepare.database import execute, execute_on, working_database
from crossfade.trainer.prepare.event_groups import Report, Step, count_events
from crossfade.trainer.prepare.events import EventReader
from crossfade.trainer.prepare.faults import Faults
from crossfade.trainer.prepare.fetch import fetch_files
from crossfade.trainer.prepare.id_encoder import SIDES, IdEncoder
from crossfade.trainer.prepare.input_files import RawFile, Source
from crossfade.trainer.prepare.options import PrepareOptions
from crossfade.trainer.prepare.section_files import (
    SectionFile,
    SectionWriter,
    load_sections,
    read_section,
    section_writer,
)
from crossfade.trainer.prepare.staging import ATTEMPTS, PartWriter, Staged

PLACED = "placed"
"""The view of rows in the order of files."""
_BLOCK_ROWS, _DIVIDED_ROWS = 1 << 17, 1 << 20
"""Rows of blocks, and rows that are divided at a time."""


@dataclass(frozen=True)
class Workplace:
    """Where tasks work: the URI of the folder of the dataset, what its files are named, and a task's resources.

    Attributes:
        uri: The URI of the folder.
        tag: The suffix of file names.
        memory: The bytes of memory of a task's database.
        threads: Its threads.
        work: The folder of its temporary files; None for the system's.
    """

    uri: str
    tag: str
    memory: int
    threads: int
    work: Path | None

    @property
    def folder(self) -> Folder:
        """The folder of the dataset."""
        return Folder(self.uri)

    @contextmanager
    def open(self) -> Iterator[tuple[duckdb.DuckDBPyConnection, Path]]:
        """Open a database, and a folder for temporary files."""
        with (
            temporary_folder("prepare", self.work) as folder,
            working_database(folder, self.memory, self.threads) as connection,
        ):
            yield connection, folder

    def writer(self) -> AbstractContextManager[SectionWriter]:
        """Return a writer of a file for other tasks."""
        return section_writer(self.folder, f"{ATTEMPTS}/{uuid.uuid4().hex}{self.tag}")


def for_tasks(source: Source) -> Source:
    """Return ``source`` as tasks find it, whatever folder they run in."""
    if isinstance(source, RawFile):
        return replace(source, path=source.path.absolute(), origin=str(source))
    return source


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
class Reading:
    """What to read: of how many ``groups`` events are, and how rows of Parquet are counted.

    The IDs of ``string_sides`` are strings in a base dataset.
    """

    options: PrepareOptions
    groups: int
    first_row: int
    string_sides: Sequence[str]


class ReadFile(NamedTuple):
    """What a task has read of a file: its events by group, and what ``EventReader`` has found."""

    events: SectionFile
    rows: int
    counts: Report
    state: Any
    faults_before: Any


def read_file(reading: Reading, place: Workplace, file: tuple[Source, int]) -> ReadFile:
    """Read a file, whose events are of the split of this number."""
    options, (source, split) = reading.options, file
    with place.open() as (connection, work), ExitStack() as opened:
        faults = Faults(options.on_bad_line != "fail", options.max_bad, reading.first_row)
        reader = _FileReader(connection, options, reading.string_sides, faults)
        counts: Report = {"train": 0, "positives": 0, "newest": None}
        try:
            files = opened.enter_context(fetch_files([source], work, reader.columns_to_fetch()))
            reader.read(next(files), split)
        except InputError as error:
            faults.add_error(error)
        with place.writer() as writer:
            if reader.kept is not None and not faults.rejected:
                counts = count_events(connection, reader.kept)
                part = f"(hash(query_id) % {reading.groups})::INTEGER AS part"
                writer.add_parts(connection.sql(f"SELECT {part}, * FROM {reader.kept}"), _DIVIDED_ROWS)
        faults_before = faults.state() if reader.faults_before is None else reader.faults_before
        return ReadFile(writer.file, reader.rows, counts, reader.state(), faults_before)


class Group(NamedTuple):
    """A group of events: its number, and the file of its tables, with the SQL of its views."""

    number: int
    file: SectionFile | None = None
    views: Sequence[str] = ()


@dataclass(frozen=True)
class Arrived:
    """Events that tasks have read, in the order of files, for the tables of ``read_events`` in each group.

    Attributes:
        files: The files of each task, and the number of data rows that were in its input.
        id_types: The types of the IDs of queries and items, 'integer' or 'string'.
        context: The columns with values of context.
    """

    files: Sequence[tuple[SectionFile, int]]
    id_types: tuple[str, str]
    context: Sequence[str]

    def load(self, place: Workplace, group: int, connection: duckdb.DuckDBPyConnection) -> None:
        """Create the tables of a ``group``."""
        encoder, first = IdEncoder(connection, *self.id_types, self.context), 0
        connection.execute("CREATE TABLE arrived AS FROM buffered")
        connection.execute("ALTER TABLE arrived RENAME seq TO position")
        for file, rows in self.files:
            for part in read_section(place.folder, file, str(group)):
                shifted = f"SELECT * REPLACE (position + {first} AS position) FROM part"
                execute_on(connection, part, f"INSERT INTO arrived BY NAME {shifted}")
            first += rows
        counted = "count(*) FILTER (split = 0 AND weight > 0) FROM arrived GROUP BY"
        encoder.add("arrived", first, {side: f"SELECT {side}_id, {counted} {side}_id" for side in SIDES})
        connection.execute("DROP TABLE arrived")
        encoder.finish()


@dataclass(frozen=True)
class GivenTable:
    """A table for steps: its ``name``, its columns as SQL has them, and its ``file``, divided between groups or not."""

    name: str
    columns: str
    file: SectionFile
    is_divided: bool

    def load(self, place: Workplace, group: int, connection: duckdb.DuckDBPyConnection) -> None:
        """Create the table; it has no IDs that are not in the ``group``."""
        connection.execute(f"CREATE TABLE {self.name} ({self.columns})")
        side = next((f" SEMI JOIN ids_{side} USING (id)" for side in SIDES if self.name.endswith(f"_{side}")), "")
        for part in read_section(place.folder, self.file, str(group if self.is_divided else 0)):
            execute_on(connection, part, f"INSERT INTO {self.name} SELECT part.* FROM part{side}")


@dataclass(frozen=True)
class GroupWork:
    """What to do in a group.

    Attributes:
        arrived: The events, if the group has none yet.
        given: The tables that the steps get.
        steps: The steps to apply.
        found: The tables and views that steps make, which are no part of the group.
        changes: Whether the group is to be written.
    """

    arrived: Arrived | None
    given: Sequence[GivenTable]
    steps: Sequence[Step]
    found: Sequence[str]
    changes: bool


class Applied(NamedTuple):
    """What steps have done: their report, the group, and a file with what they have found."""

    report: Report
    group: Group
    found: SectionFile


def apply_steps(work: GroupWork, place: Workplace, group: Group) -> Applied | InputError:
    """Apply the steps of ``work`` to a ``group``; return the error of a step, if one has one."""
    with place.open() as (connection, _):
        if work.arrived is not None:
            work.arrived.load(place, group.number, connection)
        if group.file is not None:
            for name in group.file.sections:
                load_sections(connection, place.folder, [group.file], name, name)
            for view in group.views:
                connection.execute(view)
        report: Report = {}
        try:
            for given in work.given:
                given.load(place, group.number, connection)
            for step in work.steps:
                report |= step(connection)
        except InputError as error:
            return error
        with place.writer() as found:
            for name in work.found:
                if name == PLACED:
                    found.add_parts(connection.sql(f"FROM {name}"), _DIVIDED_ROWS)
                else:
                    found.add_relation(name, connection.sql(f"FROM {name}"), _BLOCK_ROWS)
        if work.changes:
            with place.writer() as kept:
                group = _keep(connection, kept, group.number, [*work.found, *(given.name for given in work.given)])
        return Applied(report, group, found.file)


def _keep(connection: duckdb.DuckDBPyConnection, writer: SectionWriter, number: int, without: Sequence[str]) -> Group:
    """Write the tables of a group, but those ``without``."""
    for (name,) in execute(connection, "SELECT table_name FROM duckdb_tables()"):
        if name not in without:
            writer.add_relation(str(name), connection.sql(f"FROM {name}"), _BLOCK_ROWS)
    views = execute(connection, "SELECT view_name, sql FROM duckdb_views() WHERE NOT internal ORDER BY view_oid")
    return Group(number, writer.file, [str(sql) for name, sql in views if name not in without])


class Part(NamedTuple):
    """A file of a split: the split, its number there, the rows of its row groups, and the rows of a full file."""

    split: str
    number: int
    group_rows: int
    rows: int


def column_names(schema: pa.Schema) -> list[str]:
    """Return how the columns of files are called before: entities may have names of other columns."""
    return [f'"#{number}"' for number in range(len(schema))]


def write_part(schema: pa.Schema, placed: Sequence[SectionFile], place: Workplace, part: tuple[int, Part]) -> DataFile:
    """Write one file, whose rows are in a section of ``placed``, by their ``place``; return its manifest entry.

    Spark may run a task twice, and end the second one once the first has its file: it appears in one step.
    """
    section, target = part
    out = place.folder
    folder = out if out.on_s3 else out.child(f"{ATTEMPTS}/{uuid.uuid4().hex}")
    with place.open() as (connection, work):
        load_sections(connection, out, placed, str(section), PLACED)
        staged = Staged(folder, overwrite=False, folder=folder, work=work, lock=None, tag=place.tag)
        ordered = connection.sql(f"SELECT {', '.join(column_names(schema))} FROM {PLACED} ORDER BY place")
        with PartWriter(staged, target.split, schema, target.group_rows, target.number) as writer:
            for batch in ordered.to_arrow_reader(target.group_rows):
                writer.write(batch)
            (file,) = writer.close()
    if folder.path is not None and out.path is not None:
        moved = out.path / file.path
        create_folder(moved.parent)
        (folder.path / file.path).replace(moved)
        sync(moved.parent)
    return file
