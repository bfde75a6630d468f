# ruff: noqa: S608  (what is put into SQL is of this program, or a number of it)
"""Which IDs have which rows on Spark: admission, expiry, and base datasets, as ``admission.py`` and ``extend.py``.

bases = BaseVocabularies(dataset, tables)
bases.load(sides, id_types, progress)                         # whose files are read in tasks
sightings = count_sightings(tables, policy, events, bases)              # of a policy of plan_id_policies
admitted, dropped = filter_admitted(tables, {"track": sightings}, bases, events)
vocabulary, report = bases.extend("track", counted, events, sightings)  # their IDs keep their rows, new ones follow
files = write_pending(tables, sightings, vocabulary)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, pairwise

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812

from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import PENDING, DataFile, DatasetManifest, Entity
from crossfade.trainer.data.parquet import ParquetFiles
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.data.vocabulary import Vocabulary, plain_strings
from crossfade.trainer.prepare.admission import COLUMNS, nothing_admitted, pending_schema
from crossfade.trainer.prepare.extend import BaseDataset, ExtensionReport, base_columns
from crossfade.trainer.prepare.id_encoder import IdType
from crossfade.trainer.prepare.options import Side
from crossfade.trainer.prepare.spark_tables import SparkTables
from crossfade.trainer.prepare.spark_tasks import Batches, read_parts
from crossfade.trainer.prepare.vocabulary_tables import IdPolicy, sql_number


@dataclass(frozen=True)
class BaseFiles:
    """The files of an entity of a base dataset, as tasks read them.

    Attributes:
        location: The path or URI of the dataset.
        name: How messages call it.
        manifest: Its manifest.
        entity: The entity.
    """

    location: str
    name: str
    manifest: DatasetManifest
    entity: str

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
    def pending_schema(self) -> str:
        """The schema of ``read_pending``."""
        return f"id {self.id_type}, count bigint, last_seen bigint, report string"

    @property
    def schema(self) -> str:
        """The schema of ``read_base``."""
        columns = f"row bigint, base_id {self.id_type}, base_name string, base_warm boolean"
        return f"{columns}, base_last_seen bigint, base_lineage_index bigint, report string"


def read_base(files: BaseFiles, numbers: Batches) -> Batches:
    """Read the vocabulary files at the places that ``numbers`` has, with the columns of ``extend.load_base``."""
    entity = files.described
    vocabulary = Vocabulary(files.folder, files.manifest, files.entity)
    columns, values = base_columns(entity)

    def parts(number: int) -> Iterator[pa.Table]:
        first = sum(file.rows for file in entity.files[:number])
        ends = accumulate(entity.files[number].row_groups, initial=first)
        return (vocabulary.read(start, end, columns) for start, end in pairwise(ends) if end > start)

    return read_parts(files.schema, f"SELECT {values}, NULL FROM part", parts, numbers)


def read_pending(files: BaseFiles, numbers: Batches) -> Batches:
    """Read the files of pending IDs at the places that ``numbers`` has."""
    pending, reader = files.described.pending, ParquetFiles(files.folder)

    def parts(number: int) -> Iterator[pa.Table]:
        file = pending[number]
        return (plain_strings(reader.read(file, group, COLUMNS)) for group in range(len(file.row_groups)))

    return read_parts(files.pending_schema, f"SELECT {', '.join(COLUMNS)}, NULL FROM part", parts, numbers)


@dataclass(frozen=True)
class Sightings:
    """The IDs of a ``policy`` in events, ``seen`` (id, count, last_seen), and those ``pending`` in the base, if any."""

    policy: IdPolicy
    seen: DataFrame
    pending: DataFrame | None


def add_last_seen(ids: DataFrame, sightings: Sightings | None) -> DataFrame:
    """Add when new ``ids`` were last seen, as ``vocabulary_tables.last_seen_sql``, if that is to be recorded."""
    if sightings is None or not sightings.policy.track_last_seen:
        return ids.withColumn("last_seen", F.lit(None).cast("bigint"))
    seen = sightings.seen.selectExpr("id AS seen_id", "last_seen AS seen_last_seen")
    newest = sql_number(sightings.policy.newest)
    return (
        ids.join(seen, F.expr("id = seen_id"), "left")
        .withColumn("last_seen", F.expr(f"coalesce(seen_last_seen, {newest})"))
        .drop("seen_id", "seen_last_seen")
    )


@dataclass
class BaseVocabularies:
    """The vocabularies of ``base`` on the cluster, which the tables of a preparation extend.

    Attributes:
        base: The base dataset.
        tables: Tables on the cluster.
    """

    base: BaseDataset
    tables: SparkTables
    _rows: dict[str, DataFrame] = field(default_factory=dict)

    def load(self, sides: Mapping[str, Side], id_types: Mapping[str, IdType], progress: ProgressReporter) -> None:
        """Read the vocabularies of the ``sides``.

        Raises:
            InputError: IDs have another type, a file of a vocabulary is missing or corrupt, or an ID has two rows.
        """
        for entity, side in sides.items():
            described, files = self.base.manifest.entities[entity], BaseFiles.of(self.base, entity)
            self.base.check_id_type(entity, id_types[side])
            progress.phase(f"base {entity}", described.rows, "row")
            rows = self.tables.read(partial(read_base, files), len(described.files), files.schema)
            counts = "count(base_id)", "count(DISTINCT base_id)", "sum(CASE WHEN base_id IS NULL THEN 1 ELSE 0 END)"
            self.base.check_ids(entity, list(rows.selectExpr(*counts).collect()[0]))
            self._rows[entity] = self.tables.without_plan(rows)

    def pending(self, entity: str) -> DataFrame | None:
        """Return the pending IDs of ``entity``; None if there are none.

        Raises:
            InputError: a file of them is missing or corrupt.
        """
        files = BaseFiles.of(self.base, entity)
        if not files.described.pending:
            return None
        return self.tables.read(partial(read_pending, files), len(files.described.pending), files.pending_schema)

    def ids(self, entity: str) -> DataFrame:
        """Return the IDs of ``entity``."""
        return self._rows[entity].where("base_id IS NOT NULL").selectExpr("base_id AS id")

    def extend(
        self, entity: str, counted: DataFrame, events: int, sightings: Sightings | None
    ) -> tuple[DataFrame, ExtensionReport]:
        """Return the vocabulary of the IDs ``counted``, which are in so many ``events``, and how the base was extended.

        Its columns: row, the columns of ``counted`` (id, count, …), warm, last_seen, lineage_index, and base_name. Rows
        are as of ``extend.extend_vocabulary``.
        """
        described, base_rows = self.base.manifest.entities[entity], self._rows[entity]
        counted = self.tables.detach(counted)
        columns = [name for name in counted.columns if name != "id"]
        kept = self._kept_rows(entity, counted, columns, sightings)
        new_ids = add_last_seen(
            counted.join(base_rows.select("base_id"), F.expr("id = base_id"), "left_anti"), sightings
        )
        ranked, (new,) = self.tables.running_sums(
            new_ids.withColumn("position", F.lit(1)), events, [F.desc("count"), F.asc("id")], ["position"]
        )
        policy, vacant, expired = None if sightings is None else sightings.policy, 0, 0
        row = "position_before"
        if policy is not None and policy.expire_before is not None:
            kept = self.tables.detach(kept)
            left = kept.where("id IS NULL").select("row", F.lit(1).alias("place"))
            places, (vacant,) = self.tables.running_sums(left, described.rows, ["row"], ["place"])
            places = self.tables.detach(places.selectExpr("row AS vacant_row", "place_before"))
            ranked = ranked.join(places, F.expr("position_before = place_before"), "left")
            taken = places.where(f"place_before < {new}").selectExpr("vacant_row AS row")
            kept = kept.join(taken, "row", "left_anti")
            expired = vacant - len(described.vacant_rows)
            row = f"coalesce(vacant_row - {described.rows - vacant}, position_before)"
        added = ranked.selectExpr(
            f"{described.rows - vacant} + {row} AS row",
            "id",
            *columns,
            "count > 0 AS warm",
            "last_seen",
            f"{0 if policy is None else policy.lineage_index}L AS lineage_index",
            "CAST(NULL AS STRING) AS base_name",
        )
        keeping = described.rows - len(described.vacant_rows) - expired
        unseen, reused = keeping - (counted.count() - new), min(vacant, new)
        report = ExtensionReport(kept=keeping, unseen=unseen, new=new, expired=expired, reused=reused)
        return kept.unionByName(added), report

    def _kept_rows(
        self, entity: str, counted: DataFrame, columns: Sequence[str], sightings: Sightings | None
    ) -> DataFrame:
        """Return the rows of the base as of ``extend._make_base_rows``: without the IDs that have expired."""
        rows = self._rows[entity].join(
            counted.withColumnRenamed("id", "counted_id"), F.expr("base_id = counted_id"), "left"
        )
        last_seen, is_kept = "base_last_seen", "true"
        if sightings is not None and sightings.policy.track_last_seen:
            seen = sightings.seen.selectExpr("id AS seen_id", "last_seen AS seen_last_seen")
            rows = rows.join(seen, F.expr("base_id = seen_id"), "left")
            newest = sql_number(sightings.policy.newest)
            in_catalog = f"CASE WHEN counted_id IS NOT NULL AND seen_id IS NULL THEN {newest} END"
            last_seen = f"coalesce(greatest(base_last_seen, seen_last_seen, {in_catalog}), {newest})"
            if sightings.policy.expire_before is not None:
                is_kept = f"counted_id IS NOT NULL OR {last_seen} >= {sightings.policy.expire_before}"
        rows = rows.withColumn("is_kept", F.expr(f"base_id IS NOT NULL AND ({is_kept})"))
        return rows.selectExpr(
            "row",
            "CASE WHEN is_kept THEN base_id END AS id",
            *(f"coalesce({name}, 0) AS {name}" for name in columns),
            "(base_warm OR coalesce(count > 0, false)) AND is_kept AS warm",
            f"CASE WHEN is_kept THEN {last_seen} END AS last_seen",
            "base_lineage_index AS lineage_index",
            "CASE WHEN is_kept THEN base_name END AS base_name",
        )


def count_sightings(
    tables: SparkTables, policy: IdPolicy, events: DataFrame, bases: BaseVocabularies | None
) -> Sightings:
    """Count the IDs in ``events`` as ``admission.count_sightings``, with the pending IDs of ``bases``.

    Raises:
        InputError: a file of the base dataset is missing or corrupt.
    """
    pending = None if bases is None else bases.pending(policy.entity)
    found = events.select(F.col(policy.side).alias("id"), "weight", "timestamp")
    if pending is None:
        nothing = F.lit(None).cast("bigint")
        found = found.select("*", nothing.alias("pending_count"), nothing.alias("pending_last_seen"))
    else:
        waiting = pending.toDF(*(f"pending_{name}" for name in COLUMNS))
        found = found.join(waiting, F.expr("id = pending_id"), "left")
    is_later = "(pending_last_seen IS NULL OR timestamp IS NULL OR timestamp > pending_last_seen)"
    count = f"sum(CASE WHEN weight > 0 AND {is_later} THEN 1 ELSE 0 END) + coalesce(max(pending_count), 0)"
    seen = found.groupBy("id").agg(
        F.expr(count).alias("count"), F.expr("greatest(max(timestamp), max(pending_last_seen))").alias("last_seen")
    )
    return Sightings(policy, tables.detach(seen), pending)


def filter_admitted(
    tables: SparkTables, sightings: Mapping[str, Sightings], bases: BaseVocabularies | None, events: DataFrame
) -> tuple[DataFrame, int]:
    """Return the ``events`` whose IDs are admitted, and how many are left out.

    ``sightings`` are by entity; IDs of ``bases`` are admitted.

    Raises:
        InputError: no event of positive weight is left.
    """
    admitted = events
    for entity, each in sightings.items():
        if each.policy.admit is not None:
            ids = each.seen.where(F.col("count") >= each.policy.admit).select("id")
            ids = ids if bases is None else ids.union(bases.ids(entity))
            admitted = admitted.join(ids.toDF(each.policy.side), each.policy.side, "left_semi")
    admitted = tables.keep(admitted.select(*events.columns))
    if admitted.where("weight > 0").isEmpty():
        raise nothing_admitted([each.policy for each in sightings.values()])
    return admitted, events.count() - admitted.count()


def write_pending(tables: SparkTables, sightings: Sightings, vocabulary: DataFrame) -> list[DataFile]:
    """Write the pending IDs, sorted, as ``admission.write_pending``."""
    policy, still = sightings.policy, sightings.seen.select(*COLUMNS)
    if sightings.pending is not None:
        before = sightings.pending.select(*COLUMNS)
        still = still.unionByName(before.join(sightings.seen.select("id"), "id", "left_anti"))
    still = still.join(vocabulary.select("id"), "id", "left_anti")
    unexpired = "" if policy.expire_before is None else f" AND coalesce(last_seen >= {policy.expire_before}, true)"
    still = tables.detach(still.where(f"count > 0{unexpired}").withColumn("place", F.lit(1)))
    rows = still.count()
    ordered, _ = tables.running_sums(still, rows, ["id"], ["place"])
    placed = ordered.select(*COLUMNS, F.col("place_before").alias("place"))
    return tables.write_rows(placed, pending_schema(policy.id_type), f"{PENDING}/{policy.entity}", rows)
