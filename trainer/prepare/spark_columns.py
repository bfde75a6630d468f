"""Features and content of entities on Spark: a task reads each file, and values are joined with the rows of the entity.

    columns = SparkColumns(tables, options, resources, progress, facts)
    columns.read_content(content_plans)                         # before vocabularies are written: a file may be wrong
    columns.read_features(feature_plans)
    ids, further = columns.add_cataloged(ids, "item", "int64")  # of the catalog
    entities, features = columns.write_features({"item": ids, …}, write_vocabulary)
    content = columns.write_content({"item": ids, …}, folder)

What is done with the rows of a file is in ``feature_columns.py`` and ``content_columns.py``, as without Spark.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812

from crossfade.base.io.folder import Folder
from crossfade.trainer.data.features import ROW, SCHEMA, VALUE, content_group_rows, content_schema, content_values
from crossfade.trainer.data.manifest import CONTENT, FEATURES, Content, DataFile, Entity, Feature
from crossfade.trainer.data.parquet import ParquetFiles
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.prepare.content_columns import Moments, check_given
from crossfade.trainer.prepare.feature_columns import ColumnPlan, merge_types
from crossfade.trainer.prepare.id_encoder import IdType
from crossfade.trainer.prepare.options import PrepareOptions, Side
from crossfade.trainer.prepare.spark_tables import Ids, SparkTables, file_parts, reports_of
from crossfade.trainer.prepare.spark_tasks import (
    CONTENT_SCHEMA,
    GIVEN_SCHEMA,
    SPARK_TYPES,
    ColumnStep,
    Part,
    Resources,
    TaskFile,
    merge_content,
    read_column_files,
    to_error,
)
from crossfade.trainer.prepare.staging import GROUPS_PER_FILE, row_group_rows
from crossfade.trainer.prepare.summary import Facts

_ROW_NUMBERS = 8
"""How many numbers of a vector are as large as another row."""

WriteVocabulary = Callable[[str, DataFrame, int, IdType], Ids]
"""Writes the vocabulary of an entity with these IDs and counts, which are of so many rows."""


@dataclass
class _Given:
    """The values in the files of a column: each pair of an ID, as text, and a value once, and how many IDs there are.

    Features have a type of values, and content has a length.
    """

    plan: ColumnPlan
    table: DataFrame
    ids: int
    value_type: IdType = "int64"
    width: int = 0


@dataclass
class SparkColumns:
    """The features and the content of a preparation.

    Attributes:
        tables: The tables on the cluster.
        options: What to prepare.
        resources: What a task has to read a file.
        progress: Receives a phase for the reading.
        facts: Receives how many rows have a value of each feature.
    """

    tables: SparkTables
    options: PrepareOptions
    resources: Resources
    progress: ProgressReporter
    facts: Facts
    _features: list[_Given] = field(default_factory=list)
    _content: list[_Given] = field(default_factory=list)

    def read_content(self, plans: Sequence[ColumnPlan]) -> None:
        """Read the files of the columns in ``plans``.

        Raises:
            InputError: one cannot be used.
        """
        if plans:
            self.progress.phase("read content", sum(file.bytes for plan in plans for file in plan.files), "B")
        for plan in plans:
            read, _ = self._read(plan, CONTENT_SCHEMA)
            sizes = f"coalesce(sum(size(value) + {_ROW_NUMBERS}), 0)", "coalesce(max(size(value)), 1)"
            ((numbers, width),) = read.selectExpr(*sizes).collect()
            self.tables.limit_batches(width)
            task = partial(merge_content, replace(plan, files=()), self.resources)
            divided = read.repartition(self.tables.partitions(numbers // _ROW_NUMBERS), "id")
            merged = self.tables.keep(divided.mapInArrow(task, CONTENT_SCHEMA))
            reports = reports_of(merged)
            widths = sorted({width for report in reports for width in report["widths"]})
            twice = [report["twice"] for report in reports if report["twice"] is not None]
            check_given(plan, widths, min(twice, default=None))
            table = merged.where("report IS NULL").drop("report")
            self._content.append(_Given(plan, table, sum(report["rows"] for report in reports), width=widths[0]))

    def read_features(self, plans: Sequence[ColumnPlan]) -> None:
        """Read the files of the features in ``plans``.

        Raises:
            InputError: one cannot be used.
        """
        if plans:
            self.progress.phase("read features", sum(file.bytes for plan in plans for file in plan.files), "B")
        for plan in plans:
            assert plan.source is not None
            read, reports = self._read(plan, GIVEN_SCHEMA)
            found: dict[str, object] = {}
            for report, file in zip(reports, plan.files, strict=True):
                found.setdefault(report["type"], file)
            value_type = merge_types(plan.name, plan.source.columns[plan.name], found)
            typed = read.select("id", F.col("value").cast(SPARK_TYPES[value_type]))
            given = self.tables.keep(typed.distinct())
            ((ids,),) = given.selectExpr("count(DISTINCT id)").collect()
            self._features.append(_Given(plan, given, ids, value_type))

    def _read(self, plan: ColumnPlan, schema: str) -> tuple[DataFrame, list[dict[str, Any]]]:
        """Read the files of a column, a task each; return what they have, and the report on each, in their order.

        Raises:
            InputError: one cannot be used.
        """
        files = [TaskFile.of(file) for file in plan.files]
        step = ColumnStep(replace(plan, files=()), files, as_text=self.options.id_type == "string")
        numbers = self.tables.spark.range(0, len(files), 1, len(files))
        task = partial(read_column_files, step, self.resources)
        read = self.tables.keep(numbers.mapInArrow(task, schema))
        reports = sorted(reports_of(read), key=lambda report: int(report["file"]))
        for report in reports:
            if "error" in report:
                raise to_error(report)
        self.progress.advance(sum(file.bytes for file in plan.files))
        return read.where("report IS NULL").drop("report"), reports

    def add_cataloged(self, ids: DataFrame, side: Side, id_type: IdType) -> tuple[DataFrame, int]:
        """Add the IDs of ``side`` that are only in files; return all, and the number of those, which are ``cataloged``.

        The columns of ``ids`` other than the ID are numbers, which are 0 of those.
        """
        files = [given.table.select("id") for given in (*self._features, *self._content) if given.plan.side == side]
        texts = reduce(DataFrame.union, files).distinct()
        if id_type == "int64":
            numbers = texts.select(F.expr("try_cast(id AS BIGINT)").alias("number"), "id")
            texts = numbers.where("CAST(number AS STRING) = id").select(F.col("number").alias("id"))
        further = self.tables.keep(texts.join(ids.select("id"), "id", "left_anti"))
        zeros = [F.lit(0).alias(name) for name in ids.columns if name != "id"]
        cataloged = further.select("id", *zeros, F.lit(1).alias("cataloged"))
        return ids.withColumn("cataloged", F.lit(0)).unionByName(cataloged), further.count()

    def write_features(
        self, sides: Mapping[str, Ids], write_vocabulary: WriteVocabulary
    ) -> tuple[dict[str, Entity], dict[str, dict[str, Feature]]]:
        """Write the features of the rows of ``sides``.

        Returns the vocabularies of their values by name, and their pairs by entity and name.

        Raises:
            InputError: files have a value for none of the IDs.
        """
        entities: dict[str, Entity] = {}
        features: dict[str, dict[str, Feature]] = {}
        for given in self._features:
            plan = given.plan
            joined = self._join(given, sides[plan.side].table)
            pairs = self.tables.keep(joined.select("row", "count", F.col("value").alias("id")))
            ((count, filled),) = pairs.selectExpr("count(*)", "count(DISTINCT row)").collect()
            if not filled:
                raise plan.unmatched(given.ids)
            counted = pairs.groupBy("id").agg(F.sum("count").alias("count"))
            values = write_vocabulary(plan.name, counted, count, given.value_type)
            entities[plan.name] = values.entity
            valued = pairs.join(values.table.select("id", F.col("row").alias(VALUE)), "id")
            parts = file_parts(f"{FEATURES}/{plan.entity}/{plan.name}", count)
            files = self._write(valued, [ROW, VALUE], count, SCHEMA, parts)
            features.setdefault(plan.entity, {})[plan.name] = Feature(files=files)
            self.facts[f"{plan.name}_filled"] = filled
            self.facts[f"{plan.name}_ids_ignored"] = given.ids - filled
        return entities, features

    def write_content(self, sides: Mapping[str, Ids], folder: Folder) -> dict[str, dict[str, Content]]:
        """Write the content of the rows of ``sides`` to ``folder``; return the columns by entity and name.

        Raises:
            InputError: files have a value for none of the IDs.
        """
        written: dict[str, dict[str, Content]] = {}
        for given in self._content:
            plan, width = given.plan, given.width
            joined = self._join(given, sides[plan.side].table).select(ROW, VALUE)
            filled = joined.count()
            if not filled:
                raise plan.unmatched(given.ids)
            group_rows = content_group_rows(row_group_rows(filled), width)
            parts = file_parts(f"{CONTENT}/{plan.entity}/{plan.name}", filled, group_rows)
            files = self._write(joined, [ROW], filled, content_schema(width), parts, width)
            mean, std = _scaling(folder, files, width)
            written.setdefault(plan.entity, {})[plan.name] = Content(width=width, mean=mean, std=std, files=files)
            self.facts[f"{plan.name}_ids_ignored"] = given.ids - filled
        return written

    def _join(self, given: _Given, rows: DataFrame) -> DataFrame:
        """Join values with the rows of their IDs."""
        # Compared as text, as without Spark.
        side = rows.select("row", "count", F.col("id").cast("string").alias("text"))
        return given.table.join(side, F.col("id") == F.col("text"))

    def _write(
        self,
        table: DataFrame,
        order: Sequence[str],
        rows: int,
        schema: pa.Schema,
        parts: Sequence[Part],
        width: int = 0,
    ) -> list[DataFile]:
        """Write the ``rows`` of ``table`` in this ``order``, whose values are vectors of ``width`` numbers, if any."""
        ones = table.select(ROW, VALUE, F.lit(1).alias("place"))
        ordered, _ = self.tables.running_sums(ones, rows * (width + _ROW_NUMBERS) // _ROW_NUMBERS, order, ["place"])
        part = F.expr(f"place_before DIV {parts[0].group_rows * GROUPS_PER_FILE}").alias("part")
        return self.tables.write(ordered.select(ROW, VALUE, part, "place_before"), schema, parts, rows)


def _scaling(folder: Folder, files: Sequence[DataFile], width: int) -> tuple[float, float]:
    """Return the scaling of the values in ``files``, added in their order, a row group in memory at a time."""
    reader, moments = ParquetFiles(folder), Moments()
    for file in files:
        for group in range(len(file.row_groups)):
            moments.add(content_values(reader.read(file, group, [VALUE]).column(VALUE), width, reader.uri(file)))
    return moments.scaling(width)
