"""Prepare a dataset on Spark: the same files as DuckDB in one process writes, of events beyond one machine.

    manifest = SparkPreparation(options, events, names, base, staged, NullReporter(), first_row=1).run()

Spark moves rows between tasks, counts, ranks, and joins; what is done with rows is in ``spark_tasks.py``, where DuckDB
does it as without Spark. No step holds all events or all IDs of events in one process: files, also that of an entity's
names, are read in a task each; events are brought together by query entity, whose tasks sum and hold out; rows of
vocabularies and places of interactions come from ranges of the sorted IDs, numbered on from the sums of the ranges
before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812
from pyspark.sql.types import LongType, StructType

from crossfade.base.errors import InputError, OptionError
from crossfade.trainer.data.column_names import WEIGHT
from crossfade.trainer.data.manifest import VOCABULARY, CoOccurrence, DatasetManifest, Entity, Split
from crossfade.trainer.data.parquet import ParquetFiles
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.data.split_names import ALL_SPLITS
from crossfade.trainer.data.time_values import check_seconds, check_span
from crossfade.trainer.prepare.admission import has_policies, plan_id_policies
from crossfade.trainer.prepare.co_occurrence import last_place, measure_pairs
from crossfade.trainer.prepare.database import working_database
from crossfade.trainer.prepare.event_context import NO_ROW, check_counted, check_units, context_types
from crossfade.trainer.prepare.events import EventReader, EventTable
from crossfade.trainer.prepare.extend import BaseDataset
from crossfade.trainer.prepare.feature_columns import plan_columns
from crossfade.trainer.prepare.hold_out import (
    DEFAULT_FRACTION,
    DEFAULT_PAIRS,
    HoldOut,
    check_split,
    nothing_taken,
    plan_hold_outs,
)
from crossfade.trainer.prepare.id_encoder import SIDES, IdType
from crossfade.trainer.prepare.input_files import Source
from crossfade.trainer.prepare.option_values import ContextPlan
from crossfade.trainer.prepare.options import PrepareOptions, memory_bytes
from crossfade.trainer.prepare.spark_columns import SparkColumns
from crossfade.trainer.prepare.spark_ids import (
    BaseVocabularies,
    Sightings,
    add_last_seen,
    count_sightings,
    filter_admitted,
    write_pending,
)
from crossfade.trainer.prepare.spark_tables import (
    Ids,
    SparkTables,
    file_parts,
    filter_k_core,
    reports_of,
    spark_session,
)
from crossfade.trainer.prepare.spark_tasks import (
    ATTEMPTS,
    NAMES_SCHEMA,
    READ_SCHEMA,
    FilesStep,
    HoldOutStep,
    Resources,
    TaskFile,
    add_order,
    hold_out,
    new_faults,
    read_files,
    read_names_file,
    to_error,
)
from crossfade.trainer.prepare.split_files import SplitLayout
from crossfade.trainer.prepare.staging import GROUPS_PER_FILE, Staged
from crossfade.trainer.prepare.summary import (
    Facts,
    describe_options,
    describe_stats,
    heavy_weights,
    popularity_of,
)
from crossfade.trainer.prepare.vocabulary_tables import check_named, vocabulary_schema

_TASK_MEMORY = 512 << 20
_TASK_BYTES, _FEW_BYTES, _TEXT_PER_PARQUET = 16 << 20, 1 << 20, 4
"""Those of Parquet, of which a task has the events of some query entities; text has more bytes by this factor."""
_ARE_EVENTS = "query IS NOT NULL AND item IS NOT NULL"


@dataclass
class SparkPreparation:
    """The steps of one preparation.

    Attributes:
        options: What to prepare.
        events: The files of events, by split.
        names: The file of names of each entity that has one.
        base: The dataset whose vocabularies are extended, if any.
        staged: Where files are written.
        progress: Receives a phase for each step.
        first_row: The number of the first row of Parquet files in messages.
        features: The files of each entry of the features.
        content: Those of each entry of the content.
    """

    options: PrepareOptions
    events: Mapping[str, Sequence[Source]]
    names: Mapping[str, Source]
    base: BaseDataset | None
    staged: Staged
    progress: ProgressReporter
    first_row: int
    features: Sequence[Sequence[Source]] = ()
    content: Sequence[Sequence[Source]] = ()
    facts: Facts = field(default_factory=dict)
    _groups: int = 0
    _bases: BaseVocabularies | None = None
    _sightings: dict[str, Sightings] = field(default_factory=dict)

    def run(self) -> DatasetManifest:
        """Write all files except the manifest, which is returned.

        Raises:
            InputError: a file is wrong.
            CrossfadeError: Spark failed.
        """
        options = self.options
        with (
            spark_session() as spark,
            SparkTables(spark, self.staged) as self._tables,
            working_database(self.staged.work, memory_bytes(options.memory), options.threads) as self._connection,
        ):
            return self._run()

    def _run(self) -> DatasetManifest:
        options, plan = self.options, plan_hold_outs(self.options)
        table, read, reports = self._read_files()
        if self.base is not None:
            self._bases = BaseVocabularies(self.base, self._tables)
            self._bases.load(options.sides(), table.id_types, self.progress)
        held, rows = self._hold_out(plan, table, read.repartition(self._groups, "key"), reports)
        columns = self._read_columns()
        sides = self._write_vocabularies(held, sum(rows.values()), table, columns)
        values, features = columns.write_features(sides, self._write_vocabulary)
        content = columns.write_content(sides, self.staged.folder)
        layout = SplitLayout(
            options.query.name,
            options.item.name,
            has_timestamp=table.timestamps is not None,
            context=[plan.name for plan in options.context_plans()],
            is_grouped=True,
            seed=options.seed,
        )
        context = self._write_context(held, rows["train"], table)
        placed = self._place_queries(sides["query"])
        splits = self._write_splits(held, placed, sides["item"].lookup, context, rows, layout)
        self.staged.folder.child(ATTEMPTS).delete()
        return DatasetManifest(
            query=options.query.name,
            item=options.item.name,
            entities={entity: sides[side].entity for entity, side in options.sides().items()}
            | values
            | {plan.name: ids.entity for plan, ids in context.items()},
            splits=splits,
            features=features,
            content=content,
            context=list(layout.context),
            lineage=self.base.lineage() if self.base else [],
            base=self.base.reference(self.staged.out) if self.base else None,
            has_timestamp=layout.has_timestamp,
            is_grouped=layout.is_grouped,
            co_occurrence=self._measure_co_occurrence(placed, splits["train"]),
            source={
                **describe_options(options),
                "timestamps_are_dates": table.timestamps == "datetime",
                **self.facts,
            },
        )

    def _resources(self) -> Resources:
        options = self.options
        work = None if options.work_dir is None else options.work_dir.absolute()
        return Resources(memory_bytes(options.memory) or _TASK_MEMORY, options.threads or 1, work)

    def _read_columns(self) -> SparkColumns:
        """Read the files of features and content."""
        options, sides = self.options, self.options.sides()
        columns = SparkColumns(self._tables, options, self._resources(), self.progress, self.facts)
        columns.read_content(plan_columns("content", options.content, self.content, sides, ()))
        columns.read_features(plan_columns("feature", options.features, self.features, sides, ()))
        return columns

    def _keys(self, files: Sequence[TaskFile]) -> list[int]:
        """Return the keys of the groups of query entities: one that Spark's hash puts into each partition."""
        size = sum(file.bytes // (1 if file.is_dense else _TEXT_PER_PARQUET) for file in files)
        cores = self._tables.cores
        count = max(-(-size // _TASK_BYTES), min(cores, -(-size // _FEW_BYTES)), 1)
        enough = int(count * (math.log(count) + 20))
        hashed = self._tables.spark.range(enough).selectExpr("id", f"pmod(hash(CAST(id AS INT)), {count}) AS partition")
        keys = {row["partition"]: int(row["id"]) for row in hashed.collect()}
        assert len(keys) == count
        self._tables.shuffle_into(max(count, cores))
        return list(keys.values())

    def _read_files(self) -> tuple[EventTable, DataFrame, list[dict[str, Any]]]:
        """Read all files, a task each, and check what was found as if one reader had read them in order."""
        files = [
            TaskFile.of(file, code) for code, split in enumerate(ALL_SPLITS) for file in self.events.get(split, ())
        ]
        sizes = [file.bytes for split in ALL_SPLITS for file in self.events.get(split, ())]
        self.progress.phase("read events", sum(sizes), "B")
        string_sides = self.base.string_id_sides() if self.base else []
        step = FilesStep(self.options, files, self._keys(files), self.first_row, string_sides)
        task = partial(read_files, step, self._resources())
        numbers = self._tables.spark.range(0, len(files), 1, len(files))
        read = self._tables.keep(numbers.mapInArrow(task, READ_SCHEMA))
        reports = sorted(reports_of(read), key=lambda report: int(report["file"]))
        faults = new_faults(self.options, self.first_row)
        reader = EventReader(self._connection, self.options, string_sides, faults)
        for report, size in zip(reports, sizes, strict=True):
            try:
                reader.absorb(report["state"], report["faults_before"])
            except InputError as error:
                faults.add_error(error)
            self.progress.advance(size)
        faults.check(reader.records)
        table = reader.describe(has_events=any(report["has_events"] for report in reports))
        self.facts |= describe_stats(table.stats, faults)
        if not any(report["positives"] for report, file in zip(reports, files, strict=True) if file.split == 0):
            raise OptionError(
                "train", problem="the files hold no interaction with a weight above 0", expected="at least one"
            )
        self._groups = len(step.keys)
        return (
            table,
            read.where("report IS NULL").select("key", "block"),
            [{**report, "split": file.split} for report, file in zip(reports, files, strict=True)],
        )

    def _hold_out(
        self, plan: dict[str, HoldOut], table: EventTable, events: DataFrame, reports: Sequence[Mapping[str, Any]]
    ) -> tuple[DataFrame, dict[str, int]]:
        """Sum duplicates and hold out; return the events, and the rows of each split."""
        options = self.options
        self.progress.phase("hold out", len(plan), "split")
        train = sum(report["kept"] for report in reports if report["split"] == 0)
        query_type, item_type = ("integer" if table.id_types[side] == "int64" else "string" for side in SIDES)
        step = HoldOutStep(
            (query_type, item_type),
            [0, *accumulate(report["rows"] for report in reports)][:-1],
            sum(report["rows"] for report in reports),
            sums=options.duplicates == "sum",
            gap=options.hold_out_gap,
            plan=plan,
            timestamps=table.timestamps,
            seed=options.seed,
            context=(context := options.context_plans()),
            context_types=context_types(context, table.id_types),
        )
        if options.min_count or has_policies(options, self.base):
            events, step, train = self._filter_ids(step, events, table)
        by_default = {split: each for split, each in plan.items() if each.by_default}
        if by_default and train > DEFAULT_PAIRS / DEFAULT_FRACTION:
            # It takes a number of pairs, and so needs to know how many are left in train.
            others = {split: each for split, each in plan.items() if split not in by_default}
            if others or step.sums or step.gap is not None:
                held, found = self._apply(replace(step, plan=others), events)
                self._add_facts(found)
                train = sum(rows for report in found for code, rows, _ in report["splits"] if code == 0)
                events = self._by_query(held.where(_ARE_EVENTS), step)
                step = replace(step, first_places=[0], sums=False, gap=None)
            step = replace(step, plan={split: each.bounded(train) for split, each in by_default.items()})
        held, found = self._apply(step, events)
        self._add_facts(found)
        self._add_statistics(found, "valid" in plan and plan["valid"].by_default)
        self.progress.advance(len(plan))
        counts = [row for report in found for row in report["splits"]]
        rows: dict[str, int] = {}
        for code, split in enumerate(ALL_SPLITS):
            rows[split], positives = (sum(row[at] for row in counts if row[0] == code) for at in (1, 2))
            check_split(split, rows[split], positives, has_files=bool(self.events.get(split)))
        return held, rows

    def _filter_ids(
        self, step: HoldOutStep, events: DataFrame, table: EventTable
    ) -> tuple[DataFrame, HoldOutStep, int]:
        """Sum duplicates, and drop rare IDs; return the events and the step that are left, and the rows of train."""
        options = self.options
        held, found = self._apply(replace(step, plan={}, gap=None), events)
        self._add_facts(found)
        left = held.where(_ARE_EVENTS)
        if has_policies(options, self.base):
            newest = max((report["latest"] for report in found if report["latest"] is not None), default=None)
            ages = options.max_ages()
            policies = plan_id_policies(newest, options.sides(), table.id_types, options.admit, ages, self.base)
            self.progress.phase("admission", len(policies), "side")
            self._sightings = {
                each.entity: count_sightings(self._tables, each, left, self._bases) for each in policies.values()
            }
            self.progress.advance(len(policies))
            if options.admit:
                left, self.facts["dropped_pending"] = filter_admitted(self._tables, self._sightings, self._bases, left)
        if options.min_count:
            self.progress.phase("min-count", None, "round")
            entities: dict[str, str] = {side: entity for entity, side in options.sides().items()}
            minimums = {side: options.min_count[name] for side, name in entities.items() if name in options.min_count}
            left, report = filter_k_core(self._tables, minimums, entities, left, self.progress)
            self.facts["dropped_rare"] = report.interactions
            self.facts |= {f"{entity}_rare": report.ids[side] for side, entity in entities.items()}
        step = replace(step, first_places=[0], sums=False)
        return self._by_query(left, step), step, left.where("split = 0").count()

    def _by_query(self, events: DataFrame, step: HoldOutStep) -> DataFrame:
        """Return ``events`` that a ``step`` has left as the next one takes them."""
        ids = [F.col(side).alias(f"{side}_id") for side in SIDES]
        columns = ["weight", "timestamp", "split", "position", F.lit(0).alias("file"), *step.read_columns()]
        return events.select(*ids, *columns).repartition(self._tables.partitions(step.rows), "query_id")

    def _apply(self, step: HoldOutStep, events: DataFrame) -> tuple[DataFrame, list[dict[str, Any]]]:
        task = partial(hold_out, step, self._resources())
        held = self._tables.keep(events.mapInArrow(task, step.schema()))
        reports = reports_of(held)
        failed = [report for report in reports if "error" in report]
        for report in failed:
            if "latest" not in report:  # it failed before
                raise to_error(report)
        _check_times(step, reports)
        for report in failed:
            raise to_error(report)
        for split, each in step.plan.items():
            taken = [report["taken"][split] for report in reports]
            if not each.by_default and not sum(count for count, *_ in taken):
                firsts, lasts = ([row[at] for row in taken if row[at] is not None] for at in (1, 2))
                raise nothing_taken(each, split, min(firsts, default=None), max(lasts, default=None))
        return held.where("report IS NULL").drop("report"), reports

    def _add_facts(self, reports: Sequence[Mapping[str, Any]]) -> None:
        """Add what was left out."""
        for name in ("merged_duplicates", "cancelled_pairs", "dropped_gap", "dropped_without_history"):
            if any(name in report for report in reports):
                self.facts[name] = sum(report[name] for report in reports)
        kept = sum(report["kept_for_train"] for report in reports)
        self.facts["kept_for_train"] = int(str(self.facts.get("kept_for_train", 0))) + kept

    def _add_statistics(self, reports: Sequence[Mapping[str, Any]], valid_by_default: bool) -> None:
        kept = self.facts.pop("kept_for_train")
        negative = sum(report["negative"] for report in reports)
        self.facts |= {"valid_by_default": valid_by_default, "kept_for_train": kept, "negative": negative}
        firsts, lasts = ([r["span"][at] for r in reports if r["span"][at] is not None] for at in (0, 1))
        if firsts and lasts:
            self.facts |= {"first_timestamp": min(firsts), "last_timestamp": max(lasts)}
        if self.options.weight is not None or self.options.duplicates == "sum":
            weights = [row for report in reports for row in report["weights"]]
            columns = [[row[at] for row in weights] for at in range(3)]
            part = pa.table(columns, schema=_WEIGHTS_SCHEMA)
            self._connection.register("part", part)
            summed = "(SELECT sum(total) AS total, sum(count)::BIGINT AS count FROM part GROUP BY part)"
            self.facts |= heavy_weights(self._connection, summed)
            self._connection.unregister("part")

    def _write_vocabularies(
        self, held: DataFrame, events: int, table: EventTable, columns: SparkColumns
    ) -> dict[str, Ids]:
        """Write the vocabularies of both sides, whose IDs are in so many ``events`` and, of the catalog, in files."""
        in_splits = [
            F.sum(F.expr(f"CASE WHEN split = {code} THEN position ELSE 0 END")).alias(split)
            for code, split in enumerate(ALL_SPLITS)
        ]
        count = F.sum(F.expr("CASE WHEN split <> 0 THEN 0 ELSE place END")).alias("count")
        counted = {
            "query": held.where("item IS NULL").groupBy(F.col("query").alias("id")).agg(count, *in_splits),
            "item": held.where("query IS NULL").groupBy(F.col("item").alias("id")).agg(count),
        }
        sides: dict[str, Ids] = {}
        for entity, side in self.options.sides().items():
            ids, further, id_type = counted[side], 0, table.id_types[side]
            if entity in self.options.catalog:
                ids, further = columns.add_cataloged(ids, side, id_type)
                self.facts[f"{entity}_cataloged"] = further
            sides[side] = self._write_vocabulary(entity, ids, events + further, id_type, is_side=True)
        return sides

    def _write_vocabulary(
        self, entity: str, ids: DataFrame, events: int, id_type: IdType, is_side: bool = False
    ) -> Ids:
        """Write the vocabulary of ``entity``: ``ids`` and their ``count``, which are in so many ``events``."""
        self.progress.phase(f"vocabulary of {entity}", None, "row")
        ranked, rows = self._rank(entity, ids, events)
        names: Mapping[str, Any] | None = None
        if entity in self.names:
            ranked, names = self._join_names(ranked, entity)
        ranked = self._tables.detach(ranked)
        self.progress.advance(rows)
        if is_side:
            counts = [(int(count), int(ids)) for count, ids in ranked.groupBy("count").count().collect()]
            self.facts |= popularity_of(entity, counts)
        if names is not None:
            self._add_named(ranked, entity, names)
        sightings = self._sightings.get(entity)
        described = self._write_whole(entity, ranked, rows, id_type)
        if sightings is not None and sightings.policy.admit is not None:
            pending = write_pending(self._tables, sightings, ranked)
            described = described.model_copy(update={"pending": pending})
        return Ids(ranked, rows, described)

    def _write_whole(self, entity: str, ranked: DataFrame, rows: int, id_type: IdType) -> Entity:
        """Write all ``rows`` of the vocabulary ``ranked``."""
        base = self.base.manifest.entities.get(entity) if self.base else None
        names = [*(["name"] if entity in self.names else []), *(["base_name"] if base and base.has_names else [])]
        sightings = self._sightings.get(entity)
        track_last_seen = sightings is not None and sightings.policy.track_last_seen
        vacant_rows = [int(row) for (row,) in ranked.where("id IS NULL").select("row").collect()] if base else []
        schema = vocabulary_schema(id_type, bool(names), bool(vacant_rows), base is not None, track_last_seen)
        columns = [f"coalesce({', '.join(names)}) AS name" if name == "name" else name for name in schema.names]
        selected = ranked.selectExpr(*columns, "row AS place")
        return Entity(
            rows=rows,
            id_type=id_type,
            has_names=bool(names),
            has_warm=base is not None,
            has_last_seen=track_last_seen,
            files=self._tables.write_rows(selected, schema, f"{VOCABULARY}/{entity}", rows),
            vacant_rows=sorted(vacant_rows),
        )

    def _rank(self, entity: str, ids: DataFrame, events: int) -> tuple[DataFrame, int]:
        """Give ``ids`` their rows; return them, and how many rows the vocabulary has."""
        sightings = self._sightings.get(entity)
        if self._bases is not None and entity in self._bases.base.manifest.entities:
            extended, report = self._bases.extend(entity, ids, events, sightings)
            expires = sightings is not None and sightings.policy.expire_before is not None
            names = ("kept", "unseen", "new", *(("expired", "reused") if expires else ()))
            self.facts |= {f"{entity}_{name}": getattr(report, name) for name in names}
            return extended, self._bases.base.manifest.entities[entity].rows + report.new - report.reused
        ids = add_last_seen(ids, sightings).withColumns({"row": F.lit(1), "lineage_index": F.lit(0)})
        order = [F.desc("count"), *(["cataloged"] if "cataloged" in ids.columns else []), F.asc("id")]
        ranked, (rows,) = self._tables.running_sums(ids, events, order, ["row"])
        return ranked.drop("row", "partition").withColumnRenamed("row_before", "row"), rows

    def _write_context(self, held: DataFrame, events: int, table: EventTable) -> dict[ContextPlan, Ids]:
        """Write the vocabularies of context, whose values are in so many ``events`` of train."""
        plans = self.options.context_plans()
        if not plans:
            return {}
        check_units(plans, lambda: self.facts["last_timestamp"])
        train, types = held.where(f"{_ARE_EVENTS} AND split = 0"), context_types(plans, table.id_types)
        counted = train.agg(*(F.count(plan.key) for plan in plans)).collect()[0]
        for plan, values in zip(plans, counted, strict=True):
            check_counted(plan, values)
        count = F.sum(F.expr("CASE WHEN weight > 0 THEN 1 ELSE 0 END")).alias("count")
        written: dict[ContextPlan, Ids] = {}
        for plan in plans:
            values = train.where(F.col(plan.key).isNotNull()).groupBy(F.col(plan.key).alias("id")).agg(count)
            written[plan] = self._write_vocabulary(plan.name, values, events, types[plan.name])
        return written

    def _join_names(self, ids: DataFrame, entity: str) -> tuple[DataFrame, Mapping[str, Any]]:
        """Add the names of the ``ids`` of ``entity``; return what was found in the file, too."""
        names = self.options.names[entity]
        task = partial(
            read_names_file,
            TaskFile.of(self.names[entity]),
            names,
            new_faults(self.options, self.first_row),
            self._resources(),
        )
        read = self._tables.keep(self._tables.spark.range(0, 1, 1, 1).mapInArrow(task, NAMES_SCHEMA))
        (report,) = reports_of(read)
        if "error" in report:
            raise to_error(report)
        faults = new_faults(self.options, self.first_row)
        faults.restore(report["faults"])
        faults.check(report["lines"])
        given = read.where("report IS NULL").select(F.col("id").alias("text"), "name")
        joined = ids.join(given, F.col("id").cast("string") == F.col("text"), "left").drop("text")
        return joined, {**report, "bad_lines": faults.count(missing=False)}

    def _add_named(self, ranked: DataFrame, entity: str, names: Mapping[str, Any]) -> None:
        """Add how many of the IDs have names, of what was found in their file."""
        ((count,),) = ranked.selectExpr("count(name)").collect()
        check_named(self.names[entity], self.options.names[entity], count, names["given"])
        self.facts |= {f"{entity}_names_ignored": names["given"] - count, f"{entity}_named": count}
        self.facts |= {f"{entity}_names_bad_lines": names["bad_lines"]} if names["bad_lines"] else {}

    def _place_queries(self, queries: Ids) -> DataFrame:
        """Add the ``place`` of query entities in the order of the files, and the rows before it of each split."""
        schema = StructType(list(queries.table.schema.fields)).add("shuffled", LongType())
        seen = queries.table.where(" + ".join(ALL_SPLITS) + " > 0")
        ordered = seen.mapInArrow(partial(add_order, self.options.seed), schema).withColumn("place", F.lit(1))
        placed, _ = self._tables.running_sums(ordered, queries.rows, ["shuffled", "row"], ["place", *ALL_SPLITS])
        return self._tables.keep(placed.drop("partition", "shuffled", "place"))

    def _write_splits(
        self,
        held: DataFrame,
        queries: DataFrame,
        items: DataFrame,
        context: Mapping[ContextPlan, Ids],
        rows: Mapping[str, int],
        layout: SplitLayout,
    ) -> dict[str, Split]:
        """Write all splits: the number of a row is that of the first of its query, and its place among those."""
        schema = layout.schema()
        parts = {split: file_parts(split, rows[split]) for split in ALL_SPLITS if rows[split]}
        firsts = dict(zip(parts, [0, *accumulate(map(len, parts.values()))], strict=False))
        columns = [f"{split}_before" for split in ALL_SPLITS]
        joined = (
            held.where(_ARE_EVENTS)
            .join(queries.select(F.col("id").alias("query"), F.col("row").alias("query_row"), *columns), "query")
            .join(items.select(F.col("id").alias("item"), F.col("row").alias("item_row")), "item")
        )
        for plan, ids in context.items():
            values = ids.table.select(F.col("id").alias(plan.key), F.col("row").alias(f"{plan.key}_row"))
            joined = joined.join(values, plan.key, "left")
        place, part = "place + CASE split", "CASE split"
        for code, split in enumerate(ALL_SPLITS):
            place += f" WHEN {code} THEN {split}_before"
            if split in parts:
                part_rows = parts[split][0].group_rows * GROUPS_PER_FILE
                part += f" WHEN {code} THEN {firsts[split]} + in_split DIV {part_rows}"
        placed = joined.withColumn("in_split", F.expr(f"{place} END")).withColumn("part", F.expr(f"{part} END"))
        self.progress.phase("write interactions", sum(rows.values()), "row")
        files = self._tables.write(
            placed.select(
                F.col("query_row").alias(layout.query),
                F.col("item_row").alias(layout.item),
                *schema.names[2 : len(schema) - len(context)],
                *(F.expr(f"coalesce({plan.key}_row, {NO_ROW})").alias(plan.name) for plan in context),
                "part",
                F.col("in_split").alias("place"),
            ),
            schema,
            [part for of_split in parts.values() for part in of_split],
            sum(rows.values()),
        )
        self.progress.advance(sum(rows.values()))
        return {split: Split(files=files[firsts[split] : firsts[split] + len(parts[split])]) for split in parts}

    def _measure_co_occurrence(self, queries: DataFrame, train: Split) -> CoOccurrence | None:
        """Measure it in the first queries of train, whose interactions are first in its files."""
        if self.base is not None and self.base.manifest.co_occurrence is not None:
            return self.base.manifest.co_occurrence
        self.progress.phase("co-occurrence", None, "row")
        having, positives, places = queries.selectExpr(
            "coalesce(sum(CASE WHEN count > 0 THEN 1 ELSE 0 END), 0)", "coalesce(sum(count), 0)", "count(*)"
        ).collect()[0]
        last = last_place(having, positives, places)
        (left,) = queries.where(f"place_before < {last}").selectExpr("coalesce(sum(train), 0)").collect()[0]
        reader, sampled = ParquetFiles(self.staged.folder), []
        query, item = self.options.query.name, self.options.item.name
        for file in train.files:
            for group, count in enumerate(file.row_groups):
                if left > 0:
                    sampled.append(reader.read(file, group, [query, item, WEIGHT]).slice(0, left))
                left -= count
        table = pa.concat_tables(sampled)
        query_N = table.column(query).to_numpy()
        place_N = np.cumsum(np.diff(query_N, prepend=query_N[:1]) != 0)
        pairs = pa.table({"place": place_N, "row": table.column(item)})
        pairs = pairs.filter(pc.greater(table.column(WEIGHT), 0))
        self._connection.register("part", pairs)
        found = measure_pairs(self._connection, "part")
        self._connection.unregister("part")
        return found


_WEIGHTS_SCHEMA = pa.schema([("part", pa.float64()), ("total", pa.float64()), ("count", pa.int64())])


def _check_times(step: HoldOutStep, reports: Sequence[Mapping[str, Any]]) -> None:
    """Check times of hold-outs against the latest of all events once duplicates are summed, which no task has."""
    latest = max((report["latest"] for report in reports if report["latest"] is not None), default=None)
    if step.gap is not None:
        check_span("hold_out_gap", step.gap, latest)
    for each in step.plan.values():
        if each.after is not None and (step.gap is not None or step.timestamps == "integer"):
            check_seconds(each.after, latest)
