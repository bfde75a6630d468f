# ruff: noqa: S608  (what is put into SQL is a number or a name of this program)
"""Admission and expiry: an ID gets a row after enough events over all datasets, and loses it if unseen for too long.

    max_ages = {"track": TimeSpan.parse("90d")}
    policies = plan_id_policies(newest, sides, id_types, {"track": 5}, max_ages, base)
    for policy in policies.values():
        count_sightings(connection, policy, "events", base)     # the table seen_item (number, id, count, last_seen)
    dropped = filter_admitted(connection, policies.values(), base, "events", "admitted_events")
    ...                                                         # the vocabulary, without expired IDs
    files = write_pending(connection, policies["item"], staged)

Events of IDs that are not admitted are left out but counted: the dataset keeps such pending IDs, each with its count,
until they are admitted or expire. An event counts if its weight is above 0 and, where there are timestamps, if it is
later than the last one that counted for its ID: datasets whose days overlap count nothing twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import duckdb
import pyarrow as pa

from crossfade.base.errors import OptionError
from crossfade.trainer.data.manifest import PENDING, DataFile
from crossfade.trainer.data.parquet import ParquetFiles
from crossfade.trainer.data.time_values import TimeSpan, check_span
from crossfade.trainer.data.vocabulary import plain_strings
from crossfade.trainer.prepare.database import count_rows, execute_on
from crossfade.trainer.prepare.extend import SQL_TYPES, BaseDataset
from crossfade.trainer.prepare.id_encoder import IdType
from crossfade.trainer.prepare.options import PrepareOptions, Side
from crossfade.trainer.prepare.staging import Staged, write_relation
from crossfade.trainer.prepare.vocabulary_tables import IdPolicy

COLUMNS = ("id", "count", "last_seen")


def _expire_before(max_age: TimeSpan | None, newest: int | None) -> int | None:
    """Return the timestamp before which IDs have expired, ``newest`` being the timestamp of the last event.

    Raises:
        InputError: the age is in days or hours, but the timestamps are not in seconds.
    """
    if max_age is None or newest is None:
        return None
    check_span("expire_after", max_age, newest)
    return newest - max_age.length


def has_policies(options: PrepareOptions, base: BaseDataset | None) -> bool:
    """Return whether ``plan_id_policies`` has any for ``options``."""
    before = [base.manifest.entities[name] for name in options.sides()] if base is not None else []
    return bool(options.admit or options.max_ages()) or any(entity.has_last_seen for entity in before)


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
        if track_last_seen or entity in admit:
            policies[side] = IdPolicy(
                side,
                entity,
                id_types[side],
                admit=admit.get(entity),
                track_last_seen=track_last_seen,
                newest=newest,
                expire_before=_expire_before(max_ages.get(entity), newest),
                lineage_index=lineage_index,
            )
    return policies


def count_sightings(
    connection: duckdb.DuckDBPyConnection, policy: IdPolicy, source: str, base: BaseDataset | None
) -> None:
    """Create the table ``seen_SIDE`` (number, id, count, last_seen) of the IDs in ``source``.

    ``count`` is the number of events of positive weight; for pending IDs of ``base`` it includes those of the base
    datasets. Also creates ``pending_SIDE`` (id, count, last_seen) of these pending IDs.

    Raises:
        InputError: a file of the base dataset is missing or corrupt.
    """
    side = policy.side
    connection.execute(f"CREATE TABLE pending_{side} (id {SQL_TYPES[policy.id_type]}, count BIGINT, last_seen BIGINT)")
    if base is not None:
        files = ParquetFiles(base.folder)
        for file in base.manifest.entities[policy.entity].pending:
            for index in range(len(file.row_groups)):
                part = plain_strings(files.read(file, index, COLUMNS))
                execute_on(connection, part, f"INSERT INTO pending_{side} SELECT id, count, last_seen FROM part")
    is_later = "(p.last_seen IS NULL OR timestamp IS NULL OR timestamp > p.last_seen)"
    connection.execute(
        f"CREATE TABLE seen_{side} AS SELECT number, i.id, "
        f"count(*) FILTER (weight > 0 AND {is_later}) + coalesce(any_value(p.count), 0) AS count, "
        "greatest(max(timestamp), any_value(p.last_seen)) AS last_seen "
        f"FROM {source} e JOIN ids_{side} i ON i.number = e.{side} LEFT JOIN pending_{side} p ON p.id = i.id "
        "GROUP BY number, i.id"
    )


def filter_admitted(
    connection: duckdb.DuckDBPyConnection,
    policies: Sequence[IdPolicy],
    base: BaseDataset | None,
    source: str,
    target: str,
) -> int:
    """Create the table ``target`` of the events of ``source`` whose IDs are admitted; return how many are left out.

    An ID is admitted if it has a row in ``base`` or enough events.

    Raises:
        InputError: no event of positive weight is left.
    """
    conditions = ["true"]
    for policy in policies:
        if policy.admit is None:
            continue
        in_base = f" OR id IN (SELECT id FROM base_{policy.side} WHERE id IS NOT NULL)" if base is not None else ""
        admitted = f"SELECT number FROM seen_{policy.side} WHERE count >= {policy.admit}{in_base}"
        conditions.append(f"{policy.side} IN ({admitted})")
    connection.execute(f"CREATE TABLE {target} AS SELECT * FROM {source} WHERE {' AND '.join(conditions)}")
    if not count_rows(connection, f"{target} WHERE weight > 0"):
        raise nothing_admitted(policies)
    before, after = (count_rows(connection, table) for table in (source, target))
    return before - after


def nothing_admitted(policies: Sequence[IdPolicy]) -> OptionError:
    """Return the error that the ``policies`` admit no event of positive weight."""
    found = ",".join(f"{policy.entity}={policy.admit}" for policy in policies if policy.admit is not None)
    return OptionError("admit", found=found, problem="leaves no interaction", fix="lower it, or give more events")


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
