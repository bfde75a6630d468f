# ruff: noqa: S608  (what is put into SQL is of this program, or a number of it)
"""Extend the vocabularies of a base dataset on Spark, as ``extend.py`` does in one process.

base = BaseVocabularies(dataset, tables, staged)
base.load("track", read_ids)                            # whose files are read in tasks
vocabulary, report = base.extend("track", counted)      # its IDs keep their rows, and new ones follow
entity = base.write_increment("track", vocabulary)      # if base.is_carried("track")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, pairwise

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812

from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import OVERLAY, VOCABULARY, DatasetManifest, Entity, Overlay
from crossfade.trainer.data.parquet import ParquetFiles
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.prepare.extend import BaseDataset, ExtensionReport, base_columns
from crossfade.trainer.prepare.options import Side
from crossfade.trainer.prepare.spark_tables import SparkTables, reports_of
from crossfade.trainer.prepare.spark_tasks import Batches, distinct_ids, read_parts, to_error
from crossfade.trainer.prepare.staging import Staged, take_over_files
from crossfade.trainer.prepare.vocabulary_tables import OVERLAY_SCHEMA, vocabulary_schema


@dataclass(frozen=True)
class BaseFiles:
    """The files of an entity of a base dataset, as tasks read them.

    Attributes:
        location: The path or URI of the dataset.
        name: How messages call it.
        manifest: Its manifest.
        entity: The entity.
        has_ids_only: Whether only rows and IDs are read.
    """

    location: str
    name: str
    manifest: DatasetManifest
    entity: str
    has_ids_only: bool = False

    @staticmethod
    def of(base: BaseDataset, entity: str) -> BaseFiles:
        """Return those of ``entity`` in ``base``."""
        path = base.folder.path
        location = base.folder.uri if path is None else str(path.absolute())
        return BaseFiles(location, base.folder.uri, base.manifest, entity)

    @property
    def folder(self) -> Folder:
        """The folder of the dataset."""
        folder = Folder(self.location)
        folder.uri = self.name
        return folder

    @property
    def id_type(self) -> str:
        """The type of the IDs in Spark."""
        return "bigint" if self.described.id_type == "int64" else "string"

    @property
    def described(self) -> Entity:
        """What the manifest has of the entity."""
        return self.manifest.entities[self.entity]

    @property
    def schema(self) -> str:
        """The schema of ``read_base``."""
        columns = f"row bigint, base_id {self.id_type}, base_name string, base_warm boolean"
        return f"{columns}, base_last_seen bigint, base_lineage_index bigint, report string"


def read_base(files: BaseFiles, numbers: Batches) -> Batches:
    """Read the vocabulary files at the places that ``numbers`` has, with the columns of ``extend.load_base``."""
    entity = files.described
    vocabulary = Vocabulary(files.folder, files.manifest, files.entity)
    columns, values = (["row", "id"], "row, id, NULL, NULL, NULL, 0") if files.has_ids_only else base_columns(entity)

    def parts(number: int) -> Iterator[pa.Table]:
        first = sum(file.rows for file in entity.files[:number])
        ends = accumulate(entity.files[number].row_groups, initial=first)
        return (vocabulary.read(start, end, columns) for start, end in pairwise(ends) if end > start)

    return read_parts(files.schema, f"SELECT {values}, NULL FROM part", parts, numbers)


def read_overlay(files: BaseFiles, numbers: Batches) -> Batches:
    """Read the rows of the overlay files at the places that ``numbers`` has."""
    overlay, reader = files.described.overlay, ParquetFiles(files.folder)
    assert overlay is not None

    def parts(number: int) -> Iterator[pa.Table]:
        file = overlay.files[number]
        return (reader.read(file, group, ["row"]) for group in range(len(file.row_groups)))

    return read_parts("row bigint, report string", "SELECT row, NULL FROM part", parts, numbers)


@dataclass
class BaseVocabularies:
    """The vocabularies of ``base`` on the cluster, which the tables of a preparation extend.

    Attributes:
        base: The base dataset.
        tables: Tables on the cluster.
        staged: Where files are written.
    """

    base: BaseDataset
    tables: SparkTables
    staged: Staged
    _rows: dict[str, DataFrame] = field(default_factory=dict)
    _carried: set[str] = field(default_factory=set)

    def load(self, entity: str, side: Side, blocks: DataFrame, needs_all: bool) -> None:
        """Read the vocabulary of ``entity``, of which an increment may not need all columns.

        The events in ``blocks`` have its IDs on a ``side``.

        Raises:
            InputError: a file of the vocabulary is missing or corrupt, or an ID has two rows.
        """
        described = self.base.manifest.entities[entity]
        files = BaseFiles.of(self.base, entity)
        if not needs_all and self.base.is_carried(entity, 0):
            ids = blocks.mapInArrow(partial(distinct_ids, f"{side}_id"), f"id {files.id_type}")
            if self.base.is_carried(entity, ids.distinct().count()):
                self._carried.add(entity)
                files = replace(files, has_ids_only=True)
        rows = self._read(partial(read_base, files), len(described.files), files.schema)
        counts = "count(base_id)", "count(DISTINCT base_id)", "sum(CASE WHEN base_id IS NULL THEN 1 ELSE 0 END)"
        self.base.check_ids(entity, list(rows.selectExpr(*counts).collect()[0]))
        self._rows[entity] = rows

    def _read(self, task: Callable[[Batches], Batches], files: int, schema: str) -> DataFrame:
        """Read so many ``files``, a task each."""
        numbers = self.tables.spark.range(0, files, 1, max(files, 1))
        read = self.tables.keep(numbers.mapInArrow(task, schema))
        reports = reports_of(read)
        if reports:
            raise to_error(min(reports, key=lambda report: int(report["file"])))
        return read.where("report IS NULL").drop("report")

    def is_carried(self, entity: str) -> bool:
        """Return whether the files of ``entity`` are taken over, so that only rows of IDs in events are extended."""
        return entity in self._carried

    def extend(self, entity: str, counted: DataFrame, events: int) -> tuple[DataFrame, ExtensionReport]:
        """Return the vocabulary of the IDs ``counted``, which are in so many ``events``, and how the base was extended.

        Its columns: row, the columns of ``counted`` (id, count, …), warm, and base_name. Rows of the base stay, with
        their counts, which may be 0; where files are carried over, only rows of the IDs counted. New IDs follow by
        count descending, then by ID.
        """
        described, base_rows = self.base.manifest.entities[entity], self._rows[entity]
        counted = self.tables.keep(counted)
        columns = [name for name in counted.columns if name != "id"]
        how = "inner" if self.is_carried(entity) else "left"
        kept = base_rows.join(
            counted.withColumnRenamed("id", "counted_id"), F.expr("base_id = counted_id"), how
        ).selectExpr(
            "row",
            "base_id AS id",
            *(f"coalesce({name}, 0) AS {name}" for name in columns),
            "base_warm OR coalesce(count > 0, false) AS warm",
            "base_name",
        )
        new_ids = counted.join(base_rows.select("base_id"), F.expr("id = base_id"), "left_anti")
        ranked, (new,) = self.tables.running_sums(
            new_ids.withColumn("row", F.lit(1)), events, [F.desc("count"), F.asc("id")], ["row"]
        )
        added = ranked.selectExpr(
            f"{described.rows} + row_before AS row",
            "id",
            *columns,
            "count > 0 AS warm",
            "CAST(NULL AS STRING) AS base_name",
        )
        before = described.rows - len(described.vacant_rows)
        unseen = before - (counted.count() - new)
        report = ExtensionReport(kept=before, unseen=unseen, new=new, expired=0, reused=0)
        return kept.unionByName(added), report

    def write_increment(self, entity: str, vocabulary: DataFrame, new: int) -> Entity:
        """Write what ``extend`` returned, with ``new`` rows, as ``extend.write_increment``.

        Raises:
            InputError: a file of the base dataset is missing or corrupt.
        """
        old, folder = self.base.manifest.entities[entity], f"{VOCABULARY}/{entity}"
        files = take_over_files(self.staged, folder, self.base.folder, old.files)
        schema = vocabulary_schema(old.id_type, old.has_names, has_warm=True)
        added = vocabulary.where(f"row >= {old.rows}").withColumn("name", F.col("base_name"))
        own = self.tables.write_rows(
            added.select(*schema.names, F.expr(f"row - {old.rows}").alias("place")), schema, folder, new, len(files)
        )
        overlaid = vocabulary.where(f"row < {old.rows} AND count > 0").select("row", "count")
        if old.overlay is not None:
            task = partial(read_overlay, BaseFiles.of(self.base, entity))
            before = self._read(task, len(old.overlay.files), "row bigint, report string")
            overlaid = before.join(overlaid, "row", "full").selectExpr("row", "coalesce(count, 0) AS count")
        overlaid = self.tables.keep(overlaid)
        rows = overlaid.count()
        numbered, _ = self.tables.running_sums(overlaid.withColumn("place", F.lit(1)), rows, ["row"], ["place"])
        overlay = self.tables.write_rows(
            numbered.select(*OVERLAY_SCHEMA.names, F.col("place_before").alias("place")),
            OVERLAY_SCHEMA,
            f"{OVERLAY}/{entity}",
            rows,
        )
        return Entity(
            rows=old.rows + new,
            id_type=old.id_type,
            has_names=old.has_names,
            has_warm=True,
            files=[*files, *own],
            vacant_rows=old.vacant_rows,
            overlay=Overlay(carried=len(files), files=overlay),
        )
