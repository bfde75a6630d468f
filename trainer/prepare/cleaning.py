# ruff: noqa: S608  (what is put into SQL is quoted by `identifier` and `literal`, or is a number of this program)
"""Clean events before they are split: sum repeated pairs, and filter to the k-core.

reports = groups.apply([partial(sum_duplicates, [])])
report = filter_k_core(groups, {"item": 5}, entities, progress)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import duckdb
import numpy as np

from crossfade.base.errors import OptionError
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.prepare.database import count_rows, fetch_one
from crossfade.trainer.prepare.event_groups import EventGroups, Report, Step, replace_events, total

_FRACTION = 1024
_EXACT_BELOW = 2.0**53 / _FRACTION
"""Sums of multiples of 1 / ``_FRACTION`` are exact in float64 below this."""


@dataclass(frozen=True)
class KCoreReport:
    """The numbers of interactions and of IDs (by side) that were left out."""

    interactions: int
    ids: dict[str, int]


def sum_duplicates(moments: Sequence[int], connection: duckdb.DuckDBPyConnection) -> Report:
    """Leave one interaction for each (query, item) pair of a split in the table ``events``.

    A pair has another one after each of the ``moments``, timestamps at which hold-outs cut: what came before a cut must
    not move behind it, where it would be a held-out interaction that train lacks.

    Its weight is the sum of the weights, its timestamp the latest one, its ``seq`` the first one. Pairs whose weights
    sum to 0 are left out: an item liked and skipped in equal measure gives no signal.

    Raises:
        InputError: a sum is too large for a 32-bit float.
    """
    is_fraction, magnitude, events = fetch_one(
        connection,
        f"SELECT bool_and(weight * {_FRACTION} = trunc(weight * {_FRACTION})), sum(abs(weight::DOUBLE)), count(*) "
        "FROM events",
    )
    assert isinstance(magnitude, float)
    assert isinstance(events, int)
    # Exact sums are the same in any order; others are added in the order of the events, to be deterministic.
    order = "" if is_fraction and magnitude < _EXACT_BELOW else " ORDER BY seq"
    keys = ", ".join(["split", "query", "item", *(f"timestamp > {moment}" for moment in moments)])
    connection.execute(
        f"CREATE TABLE summed AS SELECT query, item, sum(weight::DOUBLE{order}) AS weight, "
        f"max(timestamp) AS timestamp, split, min(seq) AS seq FROM events GROUP BY {keys}"
    )
    largest = fetch_one(connection, "SELECT max(abs(weight)) FROM summed")[0]
    if isinstance(largest, float) and largest > np.finfo(np.float32).max:
        raise OptionError(
            "duplicates",
            found="sum",
            problem=f"the weights of a pair sum to {largest:g}, which is too large for a 32-bit float",
            fix="scale them down",
        )
    replace_events(
        connection,
        "SELECT query, item, weight::FLOAT AS weight, timestamp, split, seq FROM summed WHERE weight::FLOAT <> 0",
    )
    pairs = count_rows(connection, "summed")
    connection.execute("DROP TABLE summed")
    return {"merged_duplicates": events - pairs, "cancelled_pairs": pairs - count_rows(connection, "events")}


def filter_k_core(
    groups: EventGroups, minimums: Mapping[str, int], entities: Mapping[str, str], progress: ProgressReporter
) -> KCoreReport:
    """Leave the events whose IDs have the ``minimums`` of interactions (by side).

    Removing an ID may leave others with too few interactions, so counting is repeated until nothing changes: what
    remains is the k-core (Seidman, 1983). Only interactions of positive weight count; those of negative weight are
    removed with their IDs. ``entities`` are the names of the sides, for messages.

    Raises:
        InputError: no interaction of positive weight is left.
    """
    connection, least_of_item = groups.connection, minimums.get("item", 0)
    rare = f"SELECT id FROM counted_items GROUP BY id HAVING sum(count) < {least_of_item}"
    steps: list[Step] = [partial(_drop_rare, minimums.get("query", 0)), _count_items]
    progress.phase("min-count", None, "round")
    reports = before = groups.apply([_count_items], found=["counted_items"], changes=False)
    items_before = count_rows(connection, "(SELECT DISTINCT id FROM counted_items)")
    is_core = False
    while not is_core:
        connection.execute(f"CREATE OR REPLACE TABLE rare_item AS {rare}")
        reports = groups.apply(steps, given=["rare_item"], found=["counted_items"])
        is_core = not count_rows(connection, f"({rare})")
        progress.advance(1)
    if not total(reports, "positives"):
        required = " and ".join(f"{minimum} of each {entities[side]}" for side, minimum in minimums.items())
        raise OptionError("min_count", problem=f"requiring {required} leaves no interaction", fix="lower it")
    items = items_before - count_rows(connection, "(SELECT DISTINCT id FROM counted_items)")
    rows, queries = (total(before, name) - total(reports, name) for name in ("rows", "queries"))
    return KCoreReport(interactions=rows, ids={"query": queries, "item": items})


def _drop_rare(least: int, connection: duckdb.DuckDBPyConnection) -> Report:
    """Drop the events of the items in ``rare_item``, and then of query entities with less than the ``least``."""
    replace_events(
        connection,
        "SELECT * FROM events WHERE item NOT IN (SELECT number FROM ids_item SEMI JOIN rare_item USING (id))",
    )
    if least:
        frequent = f"SELECT query FROM events GROUP BY query HAVING count(*) FILTER (weight > 0) >= {least}"
        replace_events(connection, f"SELECT * FROM events WHERE query IN ({frequent})")
    return {}


def _count_items(connection: duckdb.DuckDBPyConnection) -> Report:
    """Count the positive events of each item."""
    connection.execute(
        "CREATE OR REPLACE TABLE counted_items AS SELECT id, count FROM (SELECT item AS number, "
        "count(*) FILTER (weight > 0) AS count FROM events GROUP BY item) JOIN ids_item USING (number)"
    )
    values = fetch_one(connection, "SELECT count(*), count(DISTINCT query), count(*) FILTER (weight > 0) FROM events")
    return dict(zip(("rows", "queries", "positives"), values, strict=True))
