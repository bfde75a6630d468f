"""Features of entities on Spark: a task reads each file, and values are joined with the rows of the entity.

    columns = SparkColumns(tables, options, resources, progress, facts)
    columns.read_features(plans)                                # before vocabularies are written: a file may be wrong
    entities, features = columns.write_features({"item": ids, …}, write_vocabulary)

What is done with the rows of a file is in ``feature_columns.py``, as without Spark.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812

from crossfade.trainer.data.features import ROW, SCHEMA, VALUE
from crossfade.trainer.data.manifest import FEATURES, Entity, Feature
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.prepare.events import IdType
from crossfade.trainer.prepare.feature_columns import ColumnPlan, FeatureReport, merge_types
from crossfade.trainer.prepare.options import PrepareOptions
from crossfade.trainer.prepare.spark_tables import Ids, SparkTables, file_parts, reports_of
from crossfade.trainer.prepare.spark_tasks import (
    GIVEN_SCHEMA,
    SPARK_TYPES,
    ColumnStep,
    Resources,
    TaskFile,
    read_column_files,
    to_error,
)
from crossfade.trainer.prepare.staging import GROUPS_PER_FILE
from crossfade.trainer.prepare.summary import Facts

WriteVocabulary = Callable[[str, DataFrame, int, IdType], Ids]
"""Writes the vocabulary of an entity with these IDs and counts, which are of so many rows."""


@dataclass
class _Given:
    """The values in the files of a column: each pair of an ID, as text, and a value once."""

    plan: ColumnPlan
    table: DataFrame
    value_type: IdType


@dataclass
class SparkColumns:
    """The features of a preparation.

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

    def read_features(self, plans: Sequence[ColumnPlan]) -> None:
        """Read the files of the features in ``plans``.

        Raises:
            InputError: one cannot be used.
        """
        if plans:
            self.progress.phase("read features", sum(file.bytes for plan in plans for file in plan.files), "B")
        for plan in plans:
            assert plan.source is not None
            read, reports = self._read(plan)
            found: dict[str, object] = {}
            for report, file in zip(reports, plan.files, strict=True):
                found.setdefault(report["type"], file)
            value_type = merge_types(plan.name, plan.source.columns[plan.name], found)
            typed = read.select("id", F.col("value").cast(SPARK_TYPES[value_type])).distinct()
            self._features.append(_Given(plan, self.tables.keep(typed), value_type))

    def _read(self, plan: ColumnPlan) -> tuple[DataFrame, list[dict[str, Any]]]:
        """Read the files of a column, a task each; return what they have, and the report on each, in their order.

        Raises:
            InputError: one cannot be used.
        """
        files = [TaskFile.of(file) for file in plan.files]
        step = ColumnStep(replace(plan, files=()), files, as_text=self.options.id_type == "string")
        numbers = self.tables.spark.range(0, len(files), 1, len(files))
        task = partial(read_column_files, step, self.resources)
        read = self.tables.keep(numbers.mapInArrow(task, GIVEN_SCHEMA))
        reports = sorted(reports_of(read), key=lambda report: int(report["file"]))
        for report in reports:
            if "error" in report:
                raise to_error(report)
        self.progress.advance(sum(file.bytes for file in plan.files))
        return read.where("report IS NULL"), reports

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
            pairs, count, report = self._join(given, sides[plan.side].table)
            counted = pairs.groupBy("id").agg(F.sum("count").alias("count"))
            values = write_vocabulary(plan.name, counted, count, given.value_type)
            entities[plan.name] = values.entity
            features.setdefault(plan.entity, {})[plan.name] = self._write(plan, pairs, count, values.table)
            self.facts[f"{plan.name}_filled"] = report.filled_rows
            self.facts[f"{plan.name}_ids_ignored"] = report.ignored_ids
        return entities, features

    def _join(self, given: _Given, rows: DataFrame) -> tuple[DataFrame, int, FeatureReport]:
        """Return pairs of a row of the entity, with its ``count``, and the ID of a value; and how many there are."""
        # Compared as text, as without Spark.
        side = rows.select("row", "count", F.col("id").cast("string").alias("text"))
        joined = given.table.join(side, F.col("id") == F.col("text"))
        pairs = self.tables.keep(joined.select("row", "count", F.col("value").alias("id")))
        ((count, filled),) = pairs.selectExpr("count(*)", "count(DISTINCT row)").collect()
        ((ids,),) = given.table.selectExpr("count(DISTINCT id)").collect()
        if not filled:
            raise given.plan.unmatched(ids)
        return pairs, count, FeatureReport(filled, ids - filled)

    def _write(self, plan: ColumnPlan, pairs: DataFrame, count: int, values: DataFrame) -> Feature:
        """Write ``pairs`` with the rows of their ``values``."""
        valued = pairs.join(values.select("id", F.col("row").alias(VALUE)), "id")
        ones = valued.select(ROW, VALUE, F.lit(1).alias("place"))
        ordered, _ = self.tables.running_sums(ones, count, [ROW, VALUE], ["place"])
        parts = file_parts(f"{FEATURES}/{plan.entity}/{plan.name}", count)
        part = F.expr(f"place_before DIV {parts[0].group_rows * GROUPS_PER_FILE}").alias("part")
        return Feature(files=self.tables.write(ordered.select(ROW, VALUE, part, "place_before"), SCHEMA, parts, count))
