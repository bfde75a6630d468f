"""Tables on a Spark cluster: the session, numbers of rows in an order, files that tasks write, and the k-core.

with spark_session() as spark, SparkTables(spark, staged) as tables:
    numbered, (rows,) = tables.running_sums(ids.withColumn("row", F.lit(1)), 1000, ["id"], ["row"])
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
from py4j.protocol import Py4JError
from pyspark import SparkContext
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812
from pyspark.sql.types import LongType, StructType

from crossfade.base.errors import CrossfadeError
from crossfade.trainer.data.manifest import DataFile, Entity
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.prepare.cleaning import KCoreReport, nothing_left
from crossfade.trainer.prepare.id_encoder import SIDES
from crossfade.trainer.prepare.spark_tasks import (
    PARTS_SCHEMA,
    Batches,
    Output,
    Part,
    column_names,
    rows_of_batches,
    to_error,
    write_parts,
)
from crossfade.trainer.prepare.staging import GROUPS_PER_FILE, Staged, row_group_rows

_TASK_ROWS, _FEW_ROWS = 1_000_000, 50_000
"""The most rows of a task on average, and those that are not worth two tasks."""
_BROADCAST_ROWS = 100_000
"""IDs that are few megabytes; tables without their plan have no size in Spark."""
_SETTINGS = {
    "spark.sql.optimizer.canChangeCachedPlanOutputPartitioning": "true",
    "spark.sql.inMemoryColumnarStorage.compressed": "false",
}
"""Small partitions are put together in what is kept, too, as since Spark 4; blocks are compressed already."""
_SHUFFLES, _ARROW_ROWS = "spark.sql.shuffle.partitions", "spark.sql.execution.arrow.maxRecordsPerBatch"
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
        before = {name: spark.conf.get(name) for name in (*_SETTINGS, _SHUFFLES, _ARROW_ROWS)}
        try:
            for name, value in _SETTINGS.items():
                spark.conf.set(name, value)
            yield spark
        finally:
            for name, value in before.items():
                spark.conf.set(name, value)
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


class SparkTables:
    """Tables of one preparation on the cluster of a session.

    Attributes:
        spark: The session.
        cores: How many tasks run at a time.
    """

    def __init__(self, spark: SparkSession, staged: Staged) -> None:
        """Keep nothing yet; ``write`` writes files to ``staged``."""
        self.spark = spark
        self.cores = int(spark.sparkContext.defaultParallelism)
        self._staged = staged
        self._kept: list[DataFrame] = []

    def __enter__(self) -> SparkTables:
        """Return this object."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Free what is kept on the cluster."""
        for table in self._kept:
            table.unpersist()

    def shuffle_into(self, partitions: int) -> None:
        """Have joins and sums divide rows into so many ``partitions``."""
        self.spark.conf.set(_SHUFFLES, partitions)

    def limit_batches(self, width: int) -> None:
        """Have tasks get few rows at a time from now on, if these have vectors of ``width`` numbers."""
        rows, before = rows_of_batches(width), int(self.spark.conf.get(_ARROW_ROWS) or 0)
        self.spark.conf.set(_ARROW_ROWS, min(rows, before) if before > 0 else rows)

    def partitions(self, rows: int) -> int:
        """Return in how many partitions to divide ``rows``: enough for all cores, and for a task to hold one."""
        return max(-(-rows // _TASK_ROWS), min(self.cores, -(-rows // _FEW_ROWS)), 1)

    def keep(self, table: DataFrame) -> DataFrame:
        """Keep ``table`` in the memory and on the disks of the cluster: it is used more than once."""
        self._kept.append(table.persist())
        return table

    def read(self, task: Callable[[Batches], Batches], files: int, schema: str) -> DataFrame:
        """Read so many ``files``, each in a ``task`` of ``read_parts``.

        Raises:
            InputError: a file is wrong.
        """
        numbers = self.spark.range(0, files, 1, max(files, 1))
        read = self.keep(numbers.mapInArrow(task, schema))
        reports = reports_of(read)
        if reports:
            raise to_error(min(reports, key=lambda report: int(report["file"])))
        return read.where("report IS NULL").drop("report")

    def without_plan(self, table: DataFrame) -> DataFrame:
        """Return ``table``, which is kept, without how it was made.

        A loop that uses it twice would double its plan, and with each table that others are made of, planning takes
        longer.
        """
        session = self.spark._jsparkSession
        return DataFrame(session.createDataFrame(table._jdf.javaRDD(), table._jdf.schema()), self.spark)

    def detach(self, table: DataFrame) -> DataFrame:
        """Keep ``table``, of IDs, and return it without how it was made."""
        return self.without_plan(self.keep(table))

    def running_sums(
        self, table: DataFrame, rows: int, order: Sequence[Any], columns: Sequence[str]
    ) -> tuple[DataFrame, list[int]]:
        """Add, for each of ``columns``, the sum of the rows before in this ``order``; return the sums of all, too.

        The ``rows`` of ``table`` need not be exact.

        Tasks sort a range each, and add up on from the sums of the ranges before: nothing is in one task.
        """
        ranges = self.keep(
            table.repartitionByRange(self.partitions(rows), *order)
            .sortWithinPartitions(*order)
            .withColumn("partition", F.spark_partition_id())
        )
        sums = ranges.groupBy("partition").agg(*(F.sum(name).alias(name) for name in columns)).collect()
        starts, total = {}, [0] * len(columns)
        for row in sorted(sums, key=lambda row: int(row["partition"])):
            starts[row["partition"]] = total
            total = [before + row[name] for before, name in zip(total, columns, strict=True)]
        schema = StructType(list(ranges.schema.fields))
        for name in columns:
            schema = schema.add(f"{name}_before", LongType())
        return ranges.mapInArrow(partial(add_running_sums, columns, starts), schema), total

    def write(self, table: DataFrame, schema: pa.Schema, parts: Sequence[Part], rows: int) -> list[DataFile]:
        """Write ``table``, with the columns of the ``schema``, its ``part``, and its ``place`` in the files."""
        output = Output(self._staged.folder.uri, self._staged.tag, schema, parts)
        table = table.toDF(*column_names(schema), "part", "place")
        divided = table.repartition(1) if len(parts) == 1 else table.repartitionByRange(len(parts), "part")
        written = divided.sortWithinPartitions("part", "place").mapInArrow(partial(write_parts, output), PARTS_SCHEMA)
        files = {row["part"]: DataFile.model_validate_json(row["file"]) for row in written.collect()}
        found = sum(file.rows for file in files.values())
        if found != rows or len(files) != len(parts):
            raise CrossfadeError(
                f"{output.uri}/{parts[0].folder}: the files hold {found} rows, but {rows} were counted; prepare again"
            )
        return [files[number] for number in range(len(parts))]

    def write_rows(self, table: DataFrame, schema: pa.Schema, folder: str, rows: int) -> list[DataFile]:
        """Write the ``rows`` of ``table``, with the columns of the ``schema`` and their ``place``, to ``folder``."""
        if not rows:
            return []
        parts = file_parts(folder, rows)
        part = F.expr(f"place DIV {parts[0].group_rows * GROUPS_PER_FILE}").alias("part")
        return self.write(table.select(*schema.names, part, "place"), schema, parts, rows)


@dataclass
class Ids:
    """The IDs of an entity: the rows of its vocabulary, how many there are, and its entry in the manifest."""

    table: DataFrame
    rows: int
    entity: Entity

    @property
    def lookup(self) -> DataFrame:
        """The table as events are joined with it: a small one is sent to all tasks, rather than events to its."""
        return F.broadcast(self.table) if self.rows <= _BROADCAST_ROWS else self.table


def add_running_sums(columns: Sequence[str], starts: Mapping[int, Sequence[int]], batches: Batches) -> Batches:
    """Add, for each of ``columns``, the sum of the rows before as ``COLUMN_before``.

    ``starts`` has the sums before the first row of each partition, whose number is in the column ``partition``.
    """
    sums: list[int] | None = None
    for batch in batches:
        if not batch.num_rows:
            continue
        if sums is None:
            sums = list(starts[batch.column("partition")[0].as_py()])
        before = []
        for index, name in enumerate(columns):
            value_N = batch.column(name).to_numpy()
            sum_N = np.cumsum(value_N)
            before.append(pa.array(sums[index] + sum_N - value_N))
            sums[index] += int(sum_N[-1])
        names = [*batch.schema.names, *(f"{name}_before" for name in columns)]
        yield pa.RecordBatch.from_arrays([*batch.columns, *before], names=names)


def file_parts(folder: str, rows: int, group_rows: int | None = None) -> list[Part]:
    """Return the files that ``rows`` in ``folder`` make, with the usual row groups or those of ``group_rows``."""
    group_rows = group_rows or row_group_rows(rows)
    return [Part(folder, number, group_rows) for number in range(-(-rows // (group_rows * GROUPS_PER_FILE)))]


def reports_of(table: DataFrame) -> list[dict[str, Any]]:
    """Return what the tasks that make ``table`` report."""
    rows = table.where("report IS NOT NULL").select("report").collect()
    return [json.loads(row["report"]) for row in rows]


def filter_k_core(
    tables: SparkTables,
    minimums: Mapping[str, int],
    entities: Mapping[str, str],
    events: DataFrame,
    progress: ProgressReporter,
) -> tuple[DataFrame, KCoreReport]:
    """Return the ``events`` whose IDs have the ``minimums``, as ``cleaning.filter_k_core``, and what was left out.

    A round drops the rare IDs of one side. In whichever order they are dropped, the same ones stay: the k-core is the
    largest part of the events that has the minimums.

    Raises:
        InputError: no interaction of positive weight is left.
    """
    kept = tables.keep(events.where("weight > 0").select(*SIDES))
    pairs, left = tables.without_plan(kept), kept.count()
    rounds, settled = cycle(minimums.items()), 0
    while settled < len(minimums):
        side, minimum = next(rounds)
        frequent = pairs.groupBy(side).count().where(F.col("count") >= minimum).select(side)
        before, count_before = kept, left
        kept = tables.keep(pairs.join(frequent, side, "left_semi").select(*SIDES))
        pairs, left = tables.without_plan(kept), kept.count()
        before.unpersist()
        # Its IDs have the minimum now, until those of the other side are dropped.
        settled = settled + 1 if left == count_before else 1
        progress.advance(1)
    if not left:
        raise nothing_left(minimums, entities)
    core = events
    for side in minimums:
        core = core.join(pairs.select(side).distinct(), side, "left_semi")
    core = tables.keep(core.select(*events.columns))
    (rows, *ids), (core_rows, *core_ids) = (_count(table) for table in (events, core))
    removed = {side: all_ids - left_ids for side, all_ids, left_ids in zip(SIDES, ids, core_ids, strict=True)}
    return core, KCoreReport(rows - core_rows, removed)


def _count(events: DataFrame) -> list[int]:
    """Return the numbers of ``events``, and of the IDs of each side."""
    return [events.count(), *(events.select(side).distinct().count() for side in SIDES)]
