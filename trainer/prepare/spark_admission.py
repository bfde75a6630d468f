"""Admission and expiry of IDs on Spark, as ``admission.py`` does in one process.

sightings = count_sightings(tables, policy, events, bases)          # of a policy of plan_id_policies
admitted, dropped = filter_admitted(tables, {"item": sightings}, bases, events)
...                                                                 # the vocabulary, without expired IDs
files = write_pending(tables, sightings, vocabulary, bases)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812

from crossfade.trainer.data.manifest import PENDING, DataFile
from crossfade.trainer.prepare.admission import COLUMNS, nothing_admitted, pending_schema
from crossfade.trainer.prepare.spark_tables import SparkTables
from crossfade.trainer.prepare.vocabulary_tables import IdPolicy, sql_number

if TYPE_CHECKING:
    from crossfade.trainer.prepare.spark_base import BaseVocabularies


@dataclass(frozen=True)
class Sightings:
    """The IDs of a ``policy`` in events, ``seen`` (id, count, last_seen), and those ``pending`` in the base, if any."""

    policy: IdPolicy
    seen: DataFrame
    pending: DataFrame | None


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


def write_pending(
    tables: SparkTables, sightings: Sightings, vocabulary: DataFrame, bases: BaseVocabularies | None
) -> list[DataFile]:
    """Write the pending IDs, sorted, as ``admission.write_pending``.

    IDs of ``bases`` are not pending, of which the ``vocabulary`` of an increment has only some.
    """
    policy, still = sightings.policy, sightings.seen.select(*COLUMNS)
    if sightings.pending is not None:
        before = sightings.pending.select(*COLUMNS)
        still = still.unionByName(before.join(sightings.seen.select("id"), "id", "left_anti"))
    still = still.join(vocabulary.select("id"), "id", "left_anti")
    if bases is not None and bases.is_carried(policy.entity):
        still = still.join(bases.ids(policy.entity), "id", "left_anti")
    unexpired = "" if policy.expire_before is None else f" AND coalesce(last_seen >= {policy.expire_before}, true)"
    still = tables.detach(still.where(f"count > 0{unexpired}").withColumn("place", F.lit(1)))
    rows = still.count()
    ordered, _ = tables.running_sums(still, rows, ["id"], ["place"])
    placed = ordered.select(*COLUMNS, F.col("place_before").alias("place"))
    return tables.write_rows(placed, pending_schema(policy.id_type), f"{PENDING}/{policy.entity}", rows)
