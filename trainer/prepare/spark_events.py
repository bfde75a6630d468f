# ruff: noqa: S608  (what is put into SQL is of this program, or a number of it)
"""The events of a preparation on Spark, of events beyond one machine: groups in tasks, whose IDs come to the driver.

    with (
        spark_context() as context,
        SparkEvents(connection, options, files, base, staged, faults, progress, context) as groups,
    ):
        ...

Spark runs tasks (``spark_tasks.py``) and repeats a task that is lost. A file is read in a task, and so is a group of
query entities; a file of a split is written in one, too. Tasks and this process reach the same files in the folder of
the dataset: what they leave to each other is written there, and deleted.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import duckdb
from py4j.protocol import Py4JError
from pyspark import SparkConf, SparkContext
from pyspark.errors import PySparkException

from crossfade.base.errors import CrossfadeError, InputError
from crossfade.trainer.data.column_names import NO_ROW
from crossfade.trainer.data.manifest import Split
from crossfade.trainer.data.split_names import ALL_SPLITS
from crossfade.trainer.prepare.database import execute, shuffled
from crossfade.trainer.prepare.event_groups import EventGroups, Report, Step, checked_split
from crossfade.trainer.prepare.events import EventReader, EventTable, read_each
from crossfade.trainer.prepare.id_encoder import SIDES
from crossfade.trainer.prepare.input_files import Source
from crossfade.trainer.prepare.options import memory_bytes
from crossfade.trainer.prepare.section_files import load_sections
from crossfade.trainer.prepare.spark_tasks import (
    PLACED,
    Applied,
    Arrived,
    GivenTable,
    Group,
    GroupWork,
    Part,
    Reading,
    Workplace,
    apply_steps,
    column_names,
    for_tasks,
    read_file,
    write_part,
)
from crossfade.trainer.prepare.split_files import SplitLayout
from crossfade.trainer.prepare.staging import ATTEMPTS, GROUPS_PER_FILE, row_group_rows
from crossfade.trainer.prepare.timestamp_formats import check_formats

_TASK_MEMORY = 512 << 20
_TASK_BYTES, _FEW_BYTES, _TEXT_PER_PARQUET = 16 << 20, 1 << 20, 4
"""Bytes of Parquet of a group, and those not worth two groups; text has more bytes for the same events."""
_GIVEN_ROWS = 1 << 20
_REASON = re.compile(r"^(?:: |Caused by: )?(?:[\w.]+\.)?\w*(?:Error|Exception): (.+)$", re.MULTILINE)
"""The last line of a traceback of Python, or the first line of one of Java or of a cause there."""
_ABORTED = "Job aborted"

Task = TypeVar("Task")
Result = TypeVar("Result")


@contextmanager
def spark_context() -> Iterator[SparkContext]:
    """Use the active context, or open one, as ``spark-submit``, its files, and its environment configure it.

    Raises:
        CrossfadeError: Spark failed.
    """
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    is_own = SparkContext._active_spark_context is None
    try:
        settings = SparkConf().setAppName("crossfade prepare").set("spark.ui.showConsoleProgress", "false")
        context = SparkContext.getOrCreate(settings)
        try:
            yield context
        finally:
            if is_own:
                context.stop()
    except (PySparkException, Py4JError) as error:
        raise CrossfadeError(f"the preparation failed in Spark: {_cause(str(error))}") from error


def _cause(text: str) -> str:
    """Return the line of a traceback that has the error: the innermost of Python, a cause of Java, or the first."""
    found = [str(line) for line in _REASON.findall(text)]
    causes = [line for line in found if not line.startswith(_ABORTED)]
    return (causes or found or [text.strip().partition("\n")[0]])[0]


@dataclass
class SparkEvents(EventGroups):
    """The events in tasks of a ``context``, in as many groups as they need."""

    context: SparkContext

    def __post_init__(self) -> None:
        options, staged = self.options, self.staged
        memory, threads = memory_bytes(options.memory) or _TASK_MEMORY, options.threads or 1
        work = None if options.work_dir is None else options.work_dir.absolute()
        self._place = Workplace(staged.folder.uri, staged.tag, memory, threads, work)
        self._groups: list[Group] = []
        self._divisor = 1
        self._arrived: Arrived | None = None

    def read(self) -> tuple[EventTable, list[Report]]:
        """Read all files, a task each, and check what was found as if one reader had read them in order."""
        options = self.options
        check_formats(self.connection, options.timestamp_format)
        sources = [(file, code) for code, split in enumerate(ALL_SPLITS) for file in self.files.get(split, ())]
        files = [file for file, _ in sources]
        self.progress.phase("read events", sum(file.bytes for file in files), "B")
        string_sides = self.base.string_id_sides() if self.base else []
        self._divisor = self._count_groups(files)
        reading = Reading(options, self._divisor, self.faults.first_row, string_sides)
        found = self._map(partial(read_file, reading, self._place), [(for_tasks(file), code) for file, code in sources])
        reader = EventReader(self.connection, options, string_sides, self.faults, self.base)
        reads = [partial(reader.absorb, each.state, each.faults_before) for each in found]
        read_each(reader, files, reads, self.progress)
        table = reader.describe(has_events=bool(reader.types))
        query_type, item_type = (reader.types[side][0] for side in SIDES)
        context = [plan.key for plan in options.context_plans() if not plan.is_derived]
        self._arrived = Arrived([(each.events, each.rows) for each in found], (query_type, item_type), context)
        arrived = {section for each in found for section in each.events.sections}
        self._groups = [Group(number) for number in range(self._divisor) if str(number) in arrived]
        return table, [each.counts for each in found]

    def _count_groups(self, files: Sequence[Source]) -> int:
        """Return in how many groups to divide the events of ``files``."""
        is_dense = (file.format == "parquet" or str(file).endswith(".gz") for file in files)
        pairs = zip(files, is_dense, strict=True)
        size = sum(file.bytes // (1 if dense else _TEXT_PER_PARQUET) for file, dense in pairs)
        return max(-(-size // _TASK_BYTES), min(int(self.context.defaultParallelism), -(-size // _FEW_BYTES)), 1)

    def apply(
        self, steps: Sequence[Step], *, given: Sequence[str] = (), found: Sequence[str] = (), changes: bool = True
    ) -> list[Report]:
        """Apply the ``steps`` in a task for each group."""
        applied = self._run(steps, given, found, changes=changes or self._arrived is not None)
        for name in found:
            self.connection.execute(f"DROP TABLE IF EXISTS {name}")
            load_sections(self.connection, self._place.folder, [each.found for each in applied], name, name)
        return [each.report for each in applied]

    def collect_ids(self) -> None:
        """Sum what groups have found."""
        for side in SIDES:
            self.connection.execute(
                f"CREATE TABLE ids_{side} AS SELECT row_number() OVER (ORDER BY id) AS number, id, "
                f"sum(count)::BIGINT AS total FROM found_{side} GROUP BY id"
            )
            self.connection.execute(f"CREATE VIEW counts_{side} AS SELECT number, total AS count FROM ids_{side}")

    def write(self, layout: SplitLayout, rows: Mapping[str, int]) -> dict[str, Split]:
        """Write all splits: the place of a row is the first place of its query plus its place within the query."""
        self.progress.phase("write interactions", sum(rows.values()), "row")
        parts = [part for split in ALL_SPLITS if rows[split] for part in _file_parts(split, rows[split])]
        places = ", ".join(
            f"(sum({split}) OVER (ORDER BY place ROWS UNBOUNDED PRECEDING) - {split})::BIGINT AS {split}_place"
            for split in ALL_SPLITS
        )
        views = {
            "rows_query": f"SELECT id, row, {places} FROM places JOIN ids_query USING (number) "
            "JOIN found_query USING (id)",
            "rows_item": "SELECT id, row FROM vocabulary_item WHERE number IS NOT NULL",
        }
        contexts = [plan.key for plan in self.options.context_plans()]
        views |= {f"rows_{key}": f"SELECT id, row FROM vocabulary_{key} WHERE id IS NOT NULL" for key in contexts}
        for name, sql in views.items():
            self.connection.execute(f"CREATE VIEW {name} AS {sql}")
        step = partial(_place_rows, layout, contexts, parts)
        placed = [each.found for each in self._run([step], list(views), [PLACED], changes=False)]
        written = self._map(partial(write_part, layout.schema(), placed, self._place), list(enumerate(parts)))
        self.staged.folder.child(ATTEMPTS).delete()
        self.progress.advance(sum(rows.values()))
        files = {
            split: [file for part, file in zip(parts, written, strict=True) if part.split == split] for split in rows
        }
        return {split: checked_split(split, count, files[split]) for split, count in rows.items() if count}

    def _run(self, steps: Sequence[Step], given: Sequence[str], found: Sequence[str], changes: bool) -> list[Applied]:
        """Apply ``steps`` to all groups.

        Raises:
            InputError: a step did.
        """
        work = GroupWork(self._arrived, [self._give(name) for name in given], steps, found, changes)
        applied: list[Applied] = []
        for each in self._map(partial(apply_steps, work, self._place), self._groups):
            if isinstance(each, InputError):
                raise each
            applied.append(each)
        if changes:
            arrived = [] if self._arrived is None else [file for file, _ in self._arrived.files]
            for file in [*arrived, *(group.file for group in self._groups)]:
                if file is not None:
                    self.staged.folder.remove(file.path)
            self._arrived, self._groups = None, [each.group for each in applied]
        return applied

    def _give(self, name: str) -> GivenTable:
        """Write a table for tasks; a table of queries is divided between the groups."""
        is_divided = name.endswith("_query")
        part = f"(hash(id) % {self._divisor})::INTEGER" if is_divided else "0"
        columns = execute(self.connection, f"DESCRIBE {name}")
        described = ", ".join(f"{column} {kind}" for column, kind, *_ in columns)
        with self._place.writer() as writer:
            writer.add_parts(self.connection.sql(f"SELECT {part} AS part, * FROM {name}"), _GIVEN_ROWS)
        return GivenTable(name, described, writer.file, is_divided)

    def _map(self, task: Callable[[Task], Result], values: Sequence[Task]) -> list[Result]:
        """Return the results of a ``task`` for each of the ``values``."""
        results: list[Result] = self.context.parallelize(values, max(len(values), 1)).map(task).collect()
        return results


def _file_parts(split: str, rows: int) -> list[Part]:
    """Return the files of a ``split``."""
    group_rows = row_group_rows(rows)
    file_rows = group_rows * GROUPS_PER_FILE
    return [Part(split, number, group_rows, file_rows) for number in range(-(-rows // file_rows))]


def _place_rows(
    layout: SplitLayout,
    contexts: Sequence[str],
    parts: Sequence[Part],
    connection: duckdb.DuckDBPyConnection,
) -> Report:
    """Create the view ``PLACED`` of the rows of all splits: the part of each, its place in the split, the columns."""
    for side in SIDES:
        connection.execute(
            f"CREATE TABLE numbered_{side} AS SELECT number, r.* FROM ids_{side} JOIN rows_{side} r USING (id)"
        )
    place, part = "CASE e.split", "CASE split"
    for code, split in enumerate(ALL_SPLITS):
        place += f" WHEN {code} THEN {split}_place"
        numbers = [number for number, each in enumerate(parts) if each.split == split]
        if numbers:
            part += f" WHEN {code} THEN {numbers[0]} + place // {parts[numbers[0]].rows}"
    values = "".join(f", coalesce({key}.row, {NO_ROW}) AS {key}_row" for key in contexts)
    joins = "".join(f" LEFT JOIN rows_{key} {key} ON {key}.id = x.{key}" for key in contexts)
    joins = f" JOIN event_values x ON x.seq = e.seq{joins}" if contexts else ""
    numbered = "JOIN numbered_query q ON q.number = e.query JOIN numbered_item i ON i.number = e.item"
    in_query = f"row_number() OVER (PARTITION BY e.split, e.query ORDER BY {shuffled(layout.seed, 'e.seq')}) - 1"
    located = (
        f"SELECT e.split, e.weight, e.timestamp, q.row AS query_row, i.row AS item_row, {place} END "
        f"+ {in_query} AS place{values} FROM interactions e {numbered}{joins}"
    )
    timestamp = ["timestamp"] if layout.has_timestamp else []
    columns = ["query_row", "item_row", "weight", *timestamp, *(f"{key}_row" for key in contexts)]
    named = (f"{column} AS {name}" for column, name in zip(columns, column_names(layout.schema()), strict=True))
    connection.execute(
        f"CREATE VIEW {PLACED} AS SELECT ({part} END)::INTEGER AS part, place, {', '.join(named)} FROM ({located})"
    )
    return {}
