# ruff: noqa: S608  (what is put into SQL is quoted by `identifier` and `literal`, or is a number of this program)
"""Clean events before they are split: sum repeated pairs, and filter to the k-core.

    summed = sum_duplicates(connection, "events", "distinct_events")
    report = filter_k_core(connection, {"item": 5}, entities, "distinct_events", "core_events", progress)

Both work on integers only; ``filter_k_core`` keeps one counter per ID in memory, and reads the events once per round.

Shapes: N events of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa

from crossfade.base.arrays import IntArray
from crossfade.base.errors import OptionError
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.prepare.database import count_rows, execute_on, fetch_count, fetch_one
from crossfade.trainer.prepare.id_encoder import SIDES

_BATCH_ROWS = 1 << 20
_FRACTION = 1024
_EXACT_BELOW = 2.0**53 / _FRACTION
"""Sums of multiples of 1 / ``_FRACTION`` are exact in float64 below this."""


@dataclass(frozen=True)
class SumReport:
    """The number of events merged into another one of their pair, and of pairs whose weights canceled out."""

    merged: int
    cancelled: int


@dataclass(frozen=True)
class KCoreReport:
    """The numbers of interactions and of IDs (by side) that were left out."""

    interactions: int
    ids: dict[str, int]


def sum_duplicates(connection: duckdb.DuckDBPyConnection, source: str, target: str) -> SumReport:
    """Create the table ``target`` of ``source`` with one interaction for each (query, item) pair of a split.

    Its weight is the sum of the weights, its timestamp the latest one, its ``seq`` the first one. Pairs whose weights
    sum to 0 are left out: an item liked and skipped in equal measure gives no signal.

    Raises:
        InputError: a sum is too large for a 32-bit float.
    """
    is_fraction, magnitude, events = fetch_one(
        connection,
        f"SELECT bool_and(weight * {_FRACTION} = trunc(weight * {_FRACTION})), sum(abs(weight::DOUBLE)), count(*) "
        f"FROM {source}",
    )
    assert isinstance(magnitude, float)
    assert isinstance(events, int)
    # Exact sums are the same in any order; others are added in the order of the events, to be deterministic.
    order = "" if is_fraction and magnitude < _EXACT_BELOW else " ORDER BY seq"
    connection.execute(
        f"CREATE TABLE summed AS SELECT query, item, sum(weight::DOUBLE{order}) AS weight, "
        f"max(timestamp) AS timestamp, split, min(seq) AS seq FROM {source} GROUP BY split, query, item"
    )
    largest = fetch_one(connection, "SELECT max(abs(weight)) FROM summed")[0]
    if isinstance(largest, float) and largest > np.finfo(np.float32).max:
        raise OptionError(
            "duplicates",
            found="sum",
            problem=f"the weights of a pair sum to {largest:g}, which is too large for a 32-bit float",
            fix="scale them down",
        )
    connection.execute(
        f"CREATE TABLE {target} AS SELECT query, item, weight::FLOAT AS weight, timestamp, split, seq FROM summed "
        "WHERE weight::FLOAT <> 0"
    )
    pairs = count_rows(connection, "summed")
    connection.execute("DROP TABLE summed")
    return SumReport(merged=events - pairs, cancelled=pairs - count_rows(connection, target))


def filter_k_core(
    connection: duckdb.DuckDBPyConnection,
    minimums: Mapping[str, int],
    entities: Mapping[str, str],
    source: str,
    target: str,
    progress: ProgressReporter,
) -> KCoreReport:
    """Create the table ``target``: the events of ``source`` whose IDs have the ``minimums`` of interactions (by side).

    Removing an ID may leave others with too few interactions, so counting is repeated until nothing changes: what
    remains is the k-core (Seidman, 1983). Only interactions of positive weight count; those of negative weight are
    removed with their IDs. ``entities`` are the names of the sides, for messages.

    Raises:
        InputError: no interaction of positive weight is left.
    """
    before = {side: _count_present(connection, source, side) for side in SIDES}
    alive = {side: np.ones(count_rows(connection, f"ids_{side}"), dtype=np.bool_) for side in SIDES}
    connection.execute(
        "CREATE TABLE positive_ranks AS SELECT q.id_rank - 1 AS query, i.id_rank - 1 AS item "
        f"FROM {source} e JOIN ids_query q ON q.number = e.query JOIN ids_item i ON i.number = e.item WHERE weight > 0"
    )
    progress.phase("min-count", None, "round")
    changed, positives = True, 0
    while changed:
        counts = _count_alive(connection, alive)
        positives = int(counts["query"].sum())
        changed = False
        for side, minimum in minimums.items():
            rare = alive[side] & (counts[side] < minimum)
            alive[side] &= ~rare
            changed = changed or bool(rare.any())
        progress.advance(1)
    connection.execute("DROP TABLE positive_ranks")
    if not positives:
        raise nothing_left(minimums, entities)
    for side in SIDES:
        ranks = pa.table({"id_rank": np.flatnonzero(alive[side]) + 1})
        ids = f"SELECT number FROM ids_{side} SEMI JOIN part USING (id_rank)"
        execute_on(connection, ranks, f"CREATE TABLE alive_{side} AS {ids}")
    connection.execute(
        f"CREATE TABLE {target} AS SELECT e.* FROM {source} e "
        "WHERE query IN (SELECT number FROM alive_query) AND item IN (SELECT number FROM alive_item)"
    )
    events = [count_rows(connection, table) for table in (source, target)]
    removed = {side: before[side] - _count_present(connection, target, side) for side in SIDES}
    return KCoreReport(interactions=events[0] - events[1], ids=removed)


def nothing_left(minimums: Mapping[str, int], entities: Mapping[str, str]) -> OptionError:
    """Return the error that no interaction of positive weight has the ``minimums`` (by side)."""
    required = " and ".join(f"{minimum} of each {entities[side]}" for side, minimum in minimums.items())
    return OptionError("min_count", problem=f"requiring {required} leaves no interaction", fix="lower it")


def _count_present(connection: duckdb.DuckDBPyConnection, table: str, side: str) -> int:
    return fetch_count(connection, f"SELECT count(DISTINCT {side}) FROM {table}")


def _count_alive(
    connection: duckdb.DuckDBPyConnection, alive: Mapping[str, np.ndarray[tuple[int], np.dtype[np.bool_]]]
) -> dict[str, IntArray]:
    """Count the interactions in ``positive_ranks`` of each ID, by its place in the order of IDs, if both are alive."""
    counts = {side: np.zeros(len(alive[side]), dtype=np.int64) for side in SIDES}
    for batch in connection.sql("SELECT query, item FROM positive_ranks").to_arrow_reader(_BATCH_ROWS):
        number_N = {side: batch.column(side).to_numpy() for side in SIDES}
        are_alive_N = alive["query"][number_N["query"]] & alive["item"][number_N["item"]]
        for side in SIDES:
            np.add.at(counts[side], number_N[side][are_alive_N], 1)
    return counts
