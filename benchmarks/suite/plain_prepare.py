"""Prepare events by four plain DuckDB statements: what it costs without checks, hold-outs, and a manifest.

    python -m suite.plain_prepare '{"events": "events.parquet", "out": "prepared.parquet"}'

Customers and tracks are numbered by falling frequency, and events are written as numbers, those of a customer together.
"""

from __future__ import annotations

import json
import sys

import duckdb

ROW_GROUP = 131_072
NUMBERED = """
CREATE TABLE {table} AS
SELECT id, events, row_number() OVER (ORDER BY events DESC, id)::INTEGER - 1 AS number
FROM (SELECT "{column}" AS id, count(*) AS events FROM read_parquet($events) GROUP BY id)
"""
JOINED = """
CREATE TABLE plays AS
SELECT users.number AS user_number, tracks.number AS track_number, event.timestamp
FROM read_parquet($events) AS event
JOIN users ON users.id = event.customer
JOIN tracks ON tracks.id = event.track
"""
WRITTEN = f"""
COPY (FROM plays ORDER BY hash(user_number), hash(user_number, track_number, timestamp)) TO $out
(FORMAT parquet, ROW_GROUP_SIZE {ROW_GROUP})
"""


def prepare(events: str, out: str) -> None:
    """Write the events of one Parquet file as numbers into another."""
    database = duckdb.connect(config={"preserve_insertion_order": False})
    for table, column in (("users", "customer"), ("tracks", "track")):
        database.execute(NUMBERED.format(table=table, column=column), {"events": events})
    database.execute(JOINED, {"events": events})
    database.execute(WRITTEN, {"out": out})


if __name__ == "__main__":
    prepare(**json.loads(sys.argv[1]))
