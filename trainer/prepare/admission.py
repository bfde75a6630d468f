# ruff: noqa: S608  (what is put into SQL is a number or a name of this program)
"""Who gets a row, and who loses it: ids are admitted after so many events, over all days, and expire when unseen.

    watches = plan_watches(connection, "events", sides, id_types, {"track": 5}, {"track": Span.parse("90d")}, base)
    for watch in watches.values():
        sight(connection, watch, "events", base)               # the table sighted_item (number, id, count, last_seen)
    left_out = keep_admitted(connection, watches.values(), base, "events", "admitted_events")
    ...                                                        # the vocabulary, from which expired ids are gone
    files = write_pending(connection, watches["item"], staged)

Events of ids that are not admitted are left out, but they count: the data set keeps the ids that wait for a row, each
with its count, until they are admitted or expire. An event counts if its weight is above 0 and, where there are
timestamps, if it is later than the last one that counted for its id: days that overlap count nothing twice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from kvstore.errors import InputError
from trainer.data.manifest import PENDING, DataFile
from trainer.data.parquet import ParquetFiles
from trainer.data.time_values import exceed_seconds_range
from trainer.data.vocabulary import plain_strings
from trainer.prepare.database import execute, fetch_count, fetch_one
from trainer.prepare.events import IdType
from trainer.prepare.extend import SQL_TYPES, BaseDataset
from trainer.prepare.part_writer import PartWriter, row_group_rows
from trainer.prepare.staging import Staged
from trainer.prepare.vocabulary_tables import IdPolicy, Side

ADMIT = "--admit"
EXPIRE = "--expire-after"
_SECONDS = {"h": 3600, "d": 86_400}
COLUMNS = ("id", "count", "last_seen")


@dataclass(frozen=True)
class MaxAge:
    """How long an id may be unseen: ``length``, in the unit of the timestamps, which is seconds if ``in_seconds``."""

    text: str
    length: int
    in_seconds: bool

    @staticmethod
    def parse(text: str) -> MaxAge:
        """Read ``90d``, ``36h`` or an integer in the unit of the timestamps.

        Raises:
            InputError: it is neither.
        """
        found = re.fullmatch(r"([0-9]{1,15})([dh]?)", text)
        if not found or int(found[1]) < 1:
            raise InputError(f"{EXPIRE} {text}: expected days or hours, as in 90d or 36h, or an integer from 1 on")
        return MaxAge(text, int(found[1]) * _SECONDS.get(found[2], 1), bool(found[2]))

    def before(self, newest: int) -> int:
        """The time before which an id must have been last seen to expire, ``newest`` being that of the last event.

        Raises:
            InputError: the timestamps are in no seconds, in which the span is.
        """
        if self.in_seconds and exceed_seconds_range(newest):
            raise InputError(
                f"{EXPIRE} {self.text}: is counted in seconds, but the timestamps reach {newest}, which is no time in "
                "seconds; give an INTEGER in the unit of the column"
            )
        return newest - self.length


def plan_id_policies(
    connection: duckdb.DuckDBPyConnection,
    source: str,
    sides: Mapping[str, Side],
    id_types: Mapping[str, IdType],
    admit: Mapping[str, int],
    spans: Mapping[str, MaxAge],
    base: BaseDataset | None,
) -> dict[Side, IdPolicy]:
    """What to watch of the events in the table ``source``: sides that no option is about are left out.

    Raises:
        InputError: a span is in seconds, and the timestamps are not.
    """
    newest = fetch_one(connection, f"SELECT max(timestamp) FROM {source}")[0]
    assert newest is None or isinstance(newest, int)
    place = 0 if base is None else len(base.lineage())
    watches: dict[Side, IdPolicy] = {}
    for entity, side in sides.items():
        seen = entity in spans or (base is not None and base.manifest.entities[entity].has_last_seen)
        if seen or entity in admit:
            expires = spans[entity].before(newest) if entity in spans and newest is not None else None
            watches[side] = IdPolicy(side, entity, id_types[side], admit.get(entity), seen, newest, expires, place)
    return watches


def count_sightings(
    connection: duckdb.DuckDBPyConnection, watch: IdPolicy, source: str, base: BaseDataset | None
) -> None:
    """Make the table ``sighted_SIDE`` (number, id, count, last_seen) of the ids in ``source``.

    ``count`` are the events of positive weight, those of earlier days included for ids that waited: these are in
    ``pending_SIDE`` (id, count, last_seen), which it makes too.

    Raises:
        InputError: a file of the earlier data is missing or damaged.
    """
    side = watch.side
    execute(connection, f"CREATE TABLE pending_{side} (id {SQL_TYPES[watch.id_type]}, count BIGINT, last_seen BIGINT)")
    if base is not None:
        files = ParquetFiles(base.folder)
        for file in base.manifest.entities[watch.entity].pending:
            for index in range(len(file.row_groups)):
                connection.register("piece", plain_strings(files.read(file, index, COLUMNS)))
                execute(connection, f"INSERT INTO pending_{side} SELECT id, count, last_seen FROM piece")
                connection.unregister("piece")
    later = "(p.last_seen IS NULL OR timestamp IS NULL OR timestamp > p.last_seen)"
    execute(
        connection,
        f"CREATE TABLE sighted_{side} AS SELECT number, i.id, "
        f"count(*) FILTER (weight > 0 AND {later}) + coalesce(any_value(p.count), 0) AS count, "
        "greatest(max(timestamp), any_value(p.last_seen)) AS last_seen "
        f"FROM {source} e JOIN ids_{side} i ON i.number = e.{side} LEFT JOIN pending_{side} p ON p.id = i.id "
        "GROUP BY number, i.id",
    )


def filter_admitted(
    connection: duckdb.DuckDBPyConnection,
    watches: Sequence[IdPolicy],
    base: BaseDataset | None,
    source: str,
    target: str,
) -> int:
    """Make the table ``target`` of the events of ``source`` whose ids are admitted; returns how many are left out.

    Admitted is an id that has a row in ``base``, or the count that is asked for.

    Raises:
        InputError: no event of positive weight is left.
    """
    conditions, asked = ["true"], []
    for watch in watches:
        if watch.admit is None:
            continue
        known = f" OR id IN (SELECT id FROM base_{watch.side} WHERE id IS NOT NULL)" if base is not None else ""
        admitted = f"SELECT number FROM sighted_{watch.side} WHERE count >= {watch.admit}{known}"
        conditions.append(f"{watch.side} IN ({admitted})")
        asked.append(f"{watch.entity}={watch.admit}")
    execute(connection, f"CREATE TABLE {target} AS SELECT * FROM {source} WHERE {' AND '.join(conditions)}")
    if not fetch_count(connection, f"SELECT count(*) FROM {target} WHERE weight > 0"):
        raise InputError(f"{ADMIT} {','.join(asked)}: admits no interaction at all; lower it, or give more events")
    before, after = (fetch_count(connection, f"SELECT count(*) FROM {table}") for table in (source, target))
    return before - after


def write_pending(connection: duckdb.DuckDBPyConnection, watch: IdPolicy, staged: Staged) -> list[DataFile]:
    """Write the ids of one side that wait for a row in ``vocabulary_SIDE``, sorted, but those that have expired."""
    side, columns = watch.side, ", ".join(COLUMNS)
    kept = "" if watch.expires is None else f" AND coalesce(last_seen >= {watch.expires}, true)"
    execute(
        connection,
        f"CREATE TABLE waiting_{side} AS SELECT {columns} FROM ("
        f"SELECT {columns} FROM sighted_{side} UNION ALL "
        f"SELECT {columns} FROM pending_{side} ANTI JOIN sighted_{side} USING (id)"
        f") ANTI JOIN vocabulary_{side} USING (id) WHERE count > 0{kept}",
    )
    group_rows = row_group_rows(fetch_count(connection, f"SELECT count(*) FROM waiting_{side}"))
    with PartWriter(staged, f"{PENDING}/{watch.entity}", pending_schema(watch.id_type), group_rows) as writer:
        for batch in connection.sql(f"SELECT {columns} FROM waiting_{side} ORDER BY id").to_arrow_reader(group_rows):
            writer.write(batch)
        return writer.close()


def pending_schema(id_type: IdType) -> pa.Schema:
    """The columns of a file of ids that wait for a row."""
    kind = pa.int64() if id_type == "int64" else pa.string()
    return pa.schema(
        [
            pa.field("id", kind, nullable=False),
            pa.field("count", pa.int64(), nullable=False),
            pa.field("last_seen", pa.int64()),
        ]
    )
