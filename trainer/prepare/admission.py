# ruff: noqa: S608  (what is put into SQL is a number or a name of this program)
"""Admission and expiry: an ID gets a row after enough events over all datasets, and loses it if unseen for too long.

    max_ages = {"track": TimeSpan.parse("90d")}
    policies = plan_id_policies(newest, sides, id_types, {"track": 5}, max_ages, base)
    count_sightings(groups, policies.values(), base)            # the table seen_item (id, count, last_seen)
    dropped = filter_admitted(groups, policies.values(), base)
    ...                                                         # the vocabulary, without expired IDs
    files = write_pending(connection, policies["item"], staged)

Events of IDs that are not admitted are left out but counted: the dataset keeps such pending IDs, each with its count,
until they are admitted or expire. An event counts if its weight is above 0 and, where there are timestamps, if it is
later than the last one that counted for its ID: datasets whose days overlap count nothing twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import duckdb
import pyarrow as pa

from crossfade.base.errors import OptionError
from crossfade.trainer.data.manifest import PENDING, DataFile
from crossfade.trainer.data.parquet import ParquetFiles
from crossfade.trainer.data.time_values import TimeSpan, check_span
from crossfade.trainer.data.vocabulary import plain_strings
from crossfade.trainer.prepare.database import count_rows, execute_on
from crossfade.trainer.prepare.event_groups import EventGroups, Report, replace_events, total
from crossfade.trainer.prepare.extend import SQL_TYPES, BaseDataset
from crossfade.trainer.prepare.id_encoder import IdType
from crossfade.trainer.prepare.options import Side
from crossfade.trainer.prepare.staging import Staged, write_relation
from crossfade.trainer.prepare.vocabulary_tables import IdPolicy

COLUMNS = ("id", "count", "last_seen")


def plan_id_policies(
    newest: int | None,
    sides: Mapping[str, Side],
    id_types: Mapping[str, IdType],
    admit: Mapping[str, int],
    max_ages: Mapping[str, TimeSpan],
    base: BaseDataset | None,
) -> dict[Side, IdPolicy]:
    """Return the policies for events of which the ``newest`` has this timestamp; sides without an option have none.

    Raises:
        InputError: an age is in days or hours, but the timestamps are not in seconds.
    """
    lineage_index = 0 if base is None else len(base.lineage())
    policies: dict[Side, IdPolicy] = {}
    for entity, side in sides.items():
        has_last_seen = base is not None and base.manifest.entities[entity].has_last_seen
        track_last_seen = entity in max_ages or has_last_seen
        max_age = max_ages.get(entity)
        if max_age is not None and newest is not None:
            check_span("expire_after", max_age, newest)
        if track_last_seen or entity in admit:
            policies[side] = IdPolicy(
                side,
                entity,
                id_types[side],
                admit=admit.get(entity),
                track_last_seen=track_last_seen,
                newest=newest,
                expire_before=None if max_age is None or newest is None else newest - max_age.length,
                lineage_index=lineage_index,
            )
    return policies


def count_sightings(groups: EventGroups, policies: Sequence[IdPolicy], base: BaseDataset | None) -> None:
    """Create the table ``seen_SIDE`` (id, count, last_seen) of the IDs in the events, for each of the ``policies``.

    ``count`` is the number of events of positive weight; for pending IDs of ``base`` it includes those of the base
    datasets. Also creates ``pending_SIDE`` (id, count, last_seen) of these pending IDs.

    Raises:
        InputError: a file of the base dataset is missing or corrupt.
    """
    for policy in policies:
        _load_pending(groups.connection, policy, base)
    groups.apply(
        [partial(_find_sightings, policy.side) for policy in policies],
        given=[f"pending_{policy.side}" for policy in policies],
        found=[f"sighted_{policy.side}" for policy in policies],
        changes=False,
    )
    for policy in policies:
        side = policy.side
        groups.connection.execute(
            f"CREATE TABLE seen_{side} AS SELECT id, sum(s.count)::BIGINT + coalesce(any_value(p.count), 0) AS count, "
            "greatest(max(s.last_seen), any_value(p.last_seen)) AS last_seen "
            f"FROM sighted_{side} s LEFT JOIN pending_{side} p USING (id) GROUP BY id"
        )


def _load_pending(connection: duckdb.DuckDBPyConnection, policy: IdPolicy, base: BaseDataset | None) -> None:
    side = policy.side
    connection.execute(f"CREATE TABLE pending_{side} (id {SQL_TYPES[policy.id_type]}, count BIGINT, last_seen BIGINT)")
    if base is not None:
        files = ParquetFiles(base.folder)
        for file in base.manifest.entities[policy.entity].pending:
            for index in range(len(file.row_groups)):
                part = plain_strings(files.read(file, index, COLUMNS))
                execute_on(connection, part, f"INSERT INTO pending_{side} SELECT id, count, last_seen FROM part")


def _find_sightings(side: Side, connection: duckdb.DuckDBPyConnection) -> Report:
    """Create the table ``sighted_SIDE``: the events of each ID that count, and when the last of all events was."""
    is_later = "(p.last_seen IS NULL OR timestamp IS NULL OR timestamp > p.last_seen)"
    connection.execute(
        f"CREATE TABLE sighted_{side} AS SELECT i.id, count(*) FILTER (weight > 0 AND {is_later}) AS count, "
        f"max(timestamp) AS last_seen FROM events e JOIN ids_{side} i ON i.number = e.{side} "
        f"LEFT JOIN pending_{side} p ON p.id = i.id GROUP BY i.id"
    )
    return {}


def filter_admitted(groups: EventGroups, policies: Sequence[IdPolicy], base: BaseDataset | None) -> int:
    """Leave the events whose IDs are admitted; return how many are left out.

    An ID is admitted if it has a row in ``base`` or enough events.

    Raises:
        InputError: no event of positive weight is left.
    """
    admit = {policy.side: policy.admit for policy in policies if policy.admit is not None}
    for side, least in admit.items():
        in_base = f" OR id IN (SELECT id FROM base_{side} WHERE id IS NOT NULL)" if base is not None else ""
        groups.connection.execute(
            f"CREATE TABLE admitted_{side} AS SELECT id FROM seen_{side} WHERE count >= {least}{in_base}"
        )
    sides = list(admit)
    reports = groups.apply([partial(_keep_admitted, sides)], given=[f"admitted_{side}" for side in sides])
    if not total(reports, "positives"):
        found = ",".join(f"{policy.entity}={policy.admit}" for policy in policies if policy.admit is not None)
        raise OptionError("admit", found=found, problem="leaves no interaction", fix="lower it, or give more events")
    return total(reports, "dropped_pending")


def _keep_admitted(sides: Sequence[Side], connection: duckdb.DuckDBPyConnection) -> Report:
    """Leave the events whose IDs of these ``sides`` are in ``admitted_SIDE``."""
    before = count_rows(connection, "events")
    conditions = (f"{side} IN (SELECT number FROM ids_{side} SEMI JOIN admitted_{side} USING (id))" for side in sides)
    replace_events(connection, f"SELECT * FROM events WHERE {' AND '.join(conditions)}")
    positives, after = (count_rows(connection, f"events{where}") for where in (" WHERE weight > 0", ""))
    return {"positives": positives, "dropped_pending": before - after}


def write_pending(connection: duckdb.DuckDBPyConnection, policy: IdPolicy, staged: Staged) -> list[DataFile]:
    """Write the pending IDs, sorted: those without a row in ``vocabulary_SIDE``, except expired ones."""
    side, columns = policy.side, ", ".join(COLUMNS)
    unexpired = "" if policy.expire_before is None else f" AND coalesce(last_seen >= {policy.expire_before}, true)"
    connection.execute(
        f"CREATE TABLE still_pending_{side} AS SELECT {columns} FROM ("
        f"SELECT {columns} FROM seen_{side} UNION ALL "
        f"SELECT {columns} FROM pending_{side} ANTI JOIN seen_{side} USING (id)"
        f") ANTI JOIN vocabulary_{side} USING (id) WHERE count > 0{unexpired}"
    )
    rows = count_rows(connection, f"still_pending_{side}")
    pending = connection.sql(f"SELECT {columns} FROM still_pending_{side} ORDER BY id")
    return write_relation(staged, f"{PENDING}/{policy.entity}", pending_schema(policy.id_type), pending, rows)


def pending_schema(id_type: IdType) -> pa.Schema:
    """Return the schema of a file of pending IDs."""
    return pa.schema(
        [
            pa.field("id", pa.int64() if id_type == "int64" else pa.string(), nullable=False),
            pa.field("count", pa.int64(), nullable=False),
            pa.field("last_seen", pa.int64()),
        ]
    )
