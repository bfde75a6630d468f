# ruff: noqa: S608  (what is put into SQL is of this program, or a number of it)
"""The events of a preparation on Spark, of events beyond one machine: groups in tasks, whose IDs come to the driver.

    with (
        spark_session() as session,
        SparkEvents(session, connection, options, files, base, staged, faults, progress) as groups,
    ):
        ...

Spark moves blocks of rows between tasks, and repeats a task that is lost; what is done with rows is in
``spark_tasks.py``. A file is read in a task, and so is a group of query entities; a file is written in one, too. Tasks
and this process reach the same files in the folder of the dataset: tables of IDs that tasks need are written there.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from types import TracebackType

import duckdb
from py4j.protocol import Py4JError
from pyspark import SparkContext
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession

from crossfade.base.errors import CrossfadeError
from crossfade.trainer.data.manifest import DataFile, Split
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.data.split_names import ALL_SPLITS
from crossfade.trainer.prepare.database import count_rows, execute, execute_on, shuffled
from crossfade.trainer.prepare.event_context import NO_ROW
from crossfade.trainer.prepare.event_groups import EventGroups, Report, Step
from crossfade.trainer.prepare.events import EventReader, EventTable, read_each
from crossfade.trainer.prepare.extend import BaseDataset
from crossfade.trainer.prepare.faults import Faults
from crossfade.trainer.prepare.id_encoder import SIDES
from crossfade.trainer.prepare.input_files import Source
from crossfade.trainer.prepare.options import PrepareOptions, memory_bytes
from crossfade.trainer.prepare.spark_tasks import (
    FOUND,
    PLACED,
    QUARANTINED,
    REPORT,
    SCHEMA,
    TABLE,
    VIEW,
    FilesStep,
    GivenTable,
    GroupWork,
    Output,
    Part,
    Resources,
    TaskFile,
    apply_steps,
    column_names,
    encode,
    read_files,
    to_error,
    unpack,
    write_part,
)
from crossfade.trainer.prepare.split_files import SplitLayout
from crossfade.trainer.prepare.staging import ATTEMPTS, GROUPS_PER_FILE, Staged, row_group_rows, write_relation
from crossfade.trainer.prepare.timestamp_formats import check_formats

_TASK_MEMORY = 512 << 20
_TASK_BYTES, _FEW_BYTES, _TEXT_PER_PARQUET = 16 << 20, 1 << 20, 4
"""Bytes of Parquet of a group, and those not worth two groups; text has more bytes for the same events."""
_BLOCKS, _BLOCKS_AT_ONCE = "spark.sql.execution.arrow.maxRecordsPerBatch", 64
"""How many blocks go to a task at a time: each has at most a few megabytes."""
_REASON = re.compile(r"^(?:: |Caused by: )?(?:[\w.]+\.)?\w*(?:Error|Exception): (.+)$", re.MULTILINE)
"""The last line of a traceback of Python, the first of one of Java, or that of a cause there."""
_ABORTED = "Job aborted"
_LAST_FAILURE = re.compile(r"most recent failure: (.+)$")


@contextmanager
def spark_session() -> Iterator[SparkSession]:
    """Use the active session, or open one, as ``spark-submit``, its files, and its environment configure it.

    Raises:
        CrossfadeError: Spark failed.
    """
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    active = SparkSession.getActiveSession()  # of this thread: a caller may have one in another
    is_own = SparkContext._active_spark_context is None
    try:
        builder = SparkSession.builder.appName("crossfade prepare").config("spark.ui.showConsoleProgress", "false")
        spark = active or builder.getOrCreate()
        before = spark.conf.get(_BLOCKS)
        try:
            spark.conf.set(_BLOCKS, _BLOCKS_AT_ONCE)
            yield spark
        finally:
            spark.conf.set(_BLOCKS, before)
            if is_own:
                spark.stop()
    except (PySparkException, Py4JError) as error:
        raise CrossfadeError(f"the preparation failed in Spark: {_cause(str(error))}") from error


def _cause(text: str) -> str:
    """Return the line of a traceback that has the error: the innermost of Python, a cause of Java, or a lost task's."""
    found = _REASON.findall(text)
    reason = next((line for line in found if not line.startswith(_ABORTED)), None)
    if reason is not None:
        return str(reason)
    last = _LAST_FAILURE.search(found[0]) if found else None
    return last[1] if last is not None else (found or [text.strip().partition("\n")[0]])[0]


class SparkEvents(EventGroups):
    """The events of ``files``, by split, on the cluster of a session; their IDs are in the database ``connection``."""

    def __init__(
        self,
        session: SparkSession,
        connection: duckdb.DuckDBPyConnection,
        options: PrepareOptions,
        files: Mapping[str, Sequence[Source]],
        base: BaseDataset | None,
        staged: Staged,
        faults: Faults,
        progress: ProgressReporter,
    ) -> None:
        """Read nothing yet."""
        self.connection = connection
        self._session = session
        self._options = options
        self._files = files
        self._base = base
        self._staged = staged
        self._faults = faults
        self._progress = progress
        work = None if options.work_dir is None else options.work_dir.absolute()
        self._resources = Resources(memory_bytes(options.memory) or _TASK_MEMORY, options.threads or 1, work)
        self._keys: list[int] = []
        self._kept: list[DataFrame] = []
        self._encoding: list[Step] = []
        self._tables_given = 0

    def __enter__(self) -> SparkEvents:
        """Return this object."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Free what is kept on the cluster."""
        self._keep_only()

    def read(self) -> tuple[EventTable, list[Report]]:
        """Read all files, a task each, and check what was found as if one reader had read them in order."""
        check_formats(self.connection, self._options.timestamp_format)
        sources = [(code, file) for code, split in enumerate(ALL_SPLITS) for file in self._files.get(split, ())]
        files = [TaskFile.of(file, code) for code, file in sources]
        self._progress.phase("read events", sum(file.bytes for file in files), "B")
        size = sum(file.bytes // (1 if file.is_dense else _TEXT_PER_PARQUET) for file in files)
        cores = int(self._session.sparkContext.defaultParallelism)
        self._keys = self._find_keys(max(-(-size // _TASK_BYTES), min(cores, -(-size // _FEW_BYTES)), 1))
        string_sides = self._base.string_id_sides() if self._base else []
        step = FilesStep(self._options, files, self._keys, self._faults.first_row, string_sides)
        numbers = self._session.range(0, len(files), 1, len(files))
        read = self._keep(numbers.mapInArrow(partial(read_files, step, self._resources), SCHEMA))
        reports = sorted(self._reports(read), key=lambda report: int(report["file"]))
        reader = EventReader(self.connection, self._options, string_sides, self._faults, self._base)
        reads = [partial(reader.absorb, report["state"], report["faults_before"]) for report in reports]
        read_each(reader, [file for _, file in sources], reads, self._progress)
        if self._faults.quarantine is not None:
            for row in read.where(f"kind = '{QUARANTINED}'").toLocalIterator():  # in the order of files
                self._faults.quarantine.append(bytes(row["block"]).decode())
        table = reader.describe(has_events=any(report["has_events"] for report in reports))
        query_type, item_type = (reader.types[side][0] for side in SIDES)
        context = [plan.key for plan in self._options.context_plans() if not plan.is_derived]
        first_places = [0, *accumulate(report["rows"] for report in reports)]
        self._encoding = [partial(encode, (query_type, item_type), context, first_places)]
        self._events = self._divided(read.where(f"kind = '{TABLE}'"), len(self._keys))
        return table, reports

    def apply(
        self, steps: Sequence[Step], *, given: Sequence[str] = (), found: Sequence[str] = (), changes: bool = True
    ) -> list[Report]:
        """Apply the ``steps`` in a task for each group."""
        changes = changes or bool(self._encoding)
        applied, reports = self._run(steps, given, found, changes=changes)
        made: set[str] = set()
        rows = applied.where(f"kind = '{FOUND}'").select("name", "block").toLocalIterator() if found else ()
        for row in rows:
            name = row["name"]
            statement = f"INSERT INTO {name}" if name in made else f"CREATE OR REPLACE TABLE {name} AS"
            execute_on(self.connection, unpack(row["block"]), f"{statement} FROM part")
            made.add(name)
        if changes:
            self._keep_only(applied)
            self._encoding = []
            self._events = applied.where(f"kind IN ('{TABLE}', '{VIEW}')")
        return reports

    def collect_ids(self) -> None:
        """Sum what groups have found."""
        for side in SIDES:
            self.connection.execute(
                f"CREATE TABLE ids_{side} AS SELECT row_number() OVER (ORDER BY id) AS number, id, "
                f"sum(count)::BIGINT AS total FROM found_{side} GROUP BY id"
            )
            self.connection.execute(f"CREATE VIEW counts_{side} AS SELECT number, total AS count FROM ids_{side}")

    def write(self, layout: SplitLayout, rows: Mapping[str, int]) -> dict[str, Split]:
        """Write all splits: the place of a row is that of the first of its query, and its place among those."""
        self._progress.phase("write interactions", sum(rows.values()), "row")
        parts = [part for split in ALL_SPLITS if rows[split] for part in _file_parts(split, rows[split])]
        keys = self._find_keys(len(parts))
        places = ", ".join(
            f"(sum({split}) OVER (ORDER BY place ROWS UNBOUNDED PRECEDING) - {split})::BIGINT AS {split}_place"
            for split in ALL_SPLITS
        )
        self.connection.execute(
            f"CREATE VIEW rows_query AS SELECT id, row, {places} FROM places "
            "JOIN ids_query USING (number) JOIN found_query USING (id)"
        )
        self.connection.execute("CREATE VIEW rows_item AS SELECT id, row FROM vocabulary_item WHERE number IS NOT NULL")
        contexts = [plan.key for plan in self._options.context_plans()]
        for key in contexts:
            self.connection.execute(
                f"CREATE VIEW rows_{key} AS SELECT id, row FROM vocabulary_{key} WHERE id IS NOT NULL"
            )
        step = partial(_place_rows, layout, contexts, parts)
        given = ["rows_query", "rows_item", *(f"rows_{key}" for key in contexts)]
        applied, _ = self._run([step], given, [PLACED], parts=keys)
        schema = layout.schema()
        output = Output(self._staged.folder.uri, self._staged.tag, schema, dict(zip(keys, parts, strict=True)))
        placed = self._divided(applied.where(f"name = '{PLACED}'"), len(parts))
        written = placed.mapInArrow(partial(write_part, output, self._resources), SCHEMA)
        files = [DataFile.model_validate_json(report["file"]) for report in self._reports(written)]
        self._staged.folder.child(ATTEMPTS).delete()
        self._progress.advance(sum(rows.values()))
        return {split: _written(split, count, files) for split, count in rows.items() if count}

    def _run(
        self,
        steps: Sequence[Step],
        given: Sequence[str],
        found: Sequence[str],
        *,
        parts: Sequence[int] = (),
        changes: bool = False,
    ) -> tuple[DataFrame, list[Report]]:
        """Apply ``steps``; return all that tasks yield, and their reports.

        Raises:
            InputError: a step did.
        """
        tables = [self._give(name) for name in given]
        work = GroupWork(self._keys, self._encoding, tables, steps, found, parts, changes)
        applied = self._keep(self._events.mapInArrow(partial(apply_steps, work, self._resources), SCHEMA))
        reports = self._reports(applied)
        for report in reports:
            if "error" in report:
                raise to_error(report)
        return applied, reports

    def _give(self, name: str) -> GivenTable:
        """Write a table for tasks: that of queries divided between the groups."""
        self._tables_given += 1
        groups = len(self._keys) if name.endswith("_query") else 1
        columns = {str(column): str(kind) for column, kind, *_ in execute(self.connection, f"DESCRIBE {name}")}
        self.connection.execute(
            f"CREATE TABLE given AS SELECT *, hash(id) % {groups} AS part FROM {name} ORDER BY part"
        )
        files = [self._write_given(f"{name}-{self._tables_given}", list(columns), group) for group in range(groups)]
        self.connection.execute("DROP TABLE given")
        return GivenTable(name, columns, self._staged.folder.uri, files)

    def _write_given(self, name: str, columns: Sequence[str], group: int) -> list[DataFile]:
        of_group = f"given WHERE part = {group}"
        relation = self.connection.sql(f"SELECT {', '.join(columns)} FROM {of_group}")
        schema = relation.limit(0).to_arrow_table().schema
        rows = count_rows(self.connection, of_group)
        return write_relation(self._staged, f"{ATTEMPTS}/{name}-{group}", schema, relation, rows)

    def _find_keys(self, count: int) -> list[int]:
        """Return as many keys, of which Spark's hash puts one into each of as many partitions."""
        enough = int(count * (math.log(count) + 20))
        hashed = self._session.range(enough).selectExpr("id", f"pmod(hash(CAST(id AS INT)), {count}) AS partition")
        keys = {row["partition"]: int(row["id"]) for row in hashed.collect()}
        assert len(keys) == count
        return list(keys.values())

    def _divided(self, rows: DataFrame, count: int) -> DataFrame:
        """Have the rows of each key in a partition."""
        return rows.repartition(1) if count == 1 else rows.repartition(count, "key")

    def _reports(self, table: DataFrame) -> list[Report]:
        rows = table.where(f"kind = '{REPORT}'").select("block").collect()
        return [json.loads(bytes(row["block"])) for row in rows]

    def _keep(self, table: DataFrame) -> DataFrame:
        """Keep ``table`` in the memory and on the disks of the cluster: it is used more than once."""
        self._kept.append(table.persist())
        return table

    def _keep_only(self, *tables: DataFrame) -> None:
        for table in self._kept:
            if not any(table is other for other in tables):
                table.unpersist()
        self._kept = list(tables)


def _file_parts(split: str, rows: int) -> list[Part]:
    """Return the files of a ``split``."""
    group_rows = row_group_rows(rows)
    file_rows = group_rows * GROUPS_PER_FILE
    return [Part(split, number, group_rows, file_rows) for number in range(-(-rows // file_rows))]


def _written(split: str, rows: int, files: Sequence[DataFile]) -> Split:
    """Return the ``files`` of a split, which have so many ``rows``.

    Raises:
        CrossfadeError: they do not.
    """
    written = Split(
        files=sorted((file for file in files if file.path.startswith(f"{split}/")), key=lambda file: file.path)
    )
    if written.rows != rows:
        raise CrossfadeError(
            f"{split}: {rows} interactions were counted, but {written.rows} were written; prepare again"
        )
    return written


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
