# ruff: noqa: S608  (what is put into SQL is quoted by `identifier` and `literal`, or is a number of this program)
"""Cleaning events before they are split: repeated pairs summed, and rare ids left out.

Both work on integers alone; ``keep_core`` keeps one counter for each id in memory, and reads the events once a round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa
from numba import njit

from kvstore.arrays import IntArray
from kvstore.errors import InputError
from trainer.data.reporter import ProgressReporter
from trainer.prepare.database import execute, fetch_count, fetch_one
from trainer.prepare.id_encoder import ROLES

_BATCH = 1 << 20
_FRACTION = 1024
_EXACT_BELOW = 2.0**53 / _FRACTION


@dataclass(frozen=True)
class SumReport:
    """Events that went into another one of their pair, and pairs whose weights cancelled out."""

    merged: int
    cancelled: int


@dataclass(frozen=True)
class KCoreReport:
    """Interactions and ids (by role) that were left out, and how often all were counted."""

    interactions: int
    ids: dict[str, int]
    rounds: int


def sum_duplicates(connection: duckdb.DuckDBPyConnection, source: str, target: str) -> SumReport:
    """Make the table ``target`` of ``source`` with one interaction for each (query, item) pair of a split.

    Its weight is the sum of theirs, its timestamp the latest, its place in the order that of the first. A pair whose
    weights sum to 0 is left out: what a listener both liked and skipped in equal measure teaches nothing.

    Raises:
        InputError: a sum is no 32-bit float.
    """
    whole, size, events = fetch_one(
        connection,
        f"SELECT bool_and(weight * {_FRACTION} = trunc(weight * {_FRACTION})), sum(abs(weight::DOUBLE)), count(*) "
        f"FROM {source}",
    )
    assert isinstance(size, float)
    assert isinstance(events, int)
    # Sums that float64 holds exactly are the same in any order; others are added in the order of the events.
    order = "" if whole and size < _EXACT_BELOW else " ORDER BY seq"
    execute(
        connection,
        f"CREATE TABLE summed AS SELECT query, item, sum(weight::DOUBLE{order}) AS weight, "
        f"max(timestamp) AS timestamp, split, min(seq) AS seq FROM {source} GROUP BY split, query, item",
    )
    largest = fetch_one(connection, "SELECT max(abs(weight)) FROM summed")[0]
    if isinstance(largest, float) and largest > np.finfo(np.float32).max:
        raise InputError(
            f"--duplicates sum: the weights of a pair sum to {largest:g}, which is too large for a 32-bit float; "
            "scale them down"
        )
    execute(
        connection,
        f"CREATE TABLE {target} AS SELECT query, item, weight::FLOAT AS weight, timestamp, split, seq FROM summed "
        "WHERE weight::FLOAT <> 0",
    )
    pairs = fetch_count(connection, "SELECT count(*) FROM summed")
    execute(connection, "DROP TABLE summed")
    return SumReport(merged=events - pairs, cancelled=pairs - fetch_count(connection, f"SELECT count(*) FROM {target}"))


def filter_k_core(
    connection: duckdb.DuckDBPyConnection,
    minimums: Mapping[str, int],
    entities: Mapping[str, str],
    source: str,
    target: str,
    progress: ProgressReporter,
) -> KCoreReport:
    """Make the table ``target`` of ``source`` without ids that have fewer interactions than ``minimums`` (by role).

    ``entities`` are the names of the roles, for messages.
    Whoever is left out may leave others with too few, so they are counted until nothing changes. Only interactions of
    positive weight count; those of negative weight go with their ids.

    Raises:
        InputError: nothing of positive weight is left.
    """
    ids = {role: fetch_count(connection, f"SELECT count(*) FROM ids_{role}") for role in ROLES}
    before = {role: _present(connection, source, role) for role in ROLES}
    alive = {role: np.ones(ids[role], dtype=np.bool_) for role in ROLES}
    progress.phase("min-count", None, "round")
    rounds, changed, liked = 0, True, 0
    while changed:
        counts = _count_alive(connection, source, alive)
        liked = int(counts["query"].sum())
        changed = False
        for role, minimum in minimums.items():
            rare = alive[role] & (counts[role] < minimum)
            alive[role] &= ~rare
            changed = changed or bool(rare.any())
        rounds += 1
        progress.advance(1)
    if not liked:
        wanted = " and ".join(f"{minimum} of each {entities[role]}" for role, minimum in minimums.items())
        raise InputError(f"--min-count: asking for {wanted} leaves no interaction at all; lower it")
    for role in ROLES:
        connection.register("alive", pa.table({"number": np.flatnonzero(alive[role])}))
        execute(connection, f"CREATE TABLE alive_{role} AS SELECT number FROM alive")
        connection.unregister("alive")
    execute(
        connection,
        f"CREATE TABLE {target} AS SELECT e.* FROM {source} e "
        "WHERE query IN (SELECT number FROM alive_query) AND item IN (SELECT number FROM alive_item)",
    )
    events = [fetch_count(connection, f"SELECT count(*) FROM {table}") for table in (source, target)]
    gone = {role: before[role] - _present(connection, target, role) for role in ROLES}
    return KCoreReport(interactions=events[0] - events[1], ids=gone, rounds=rounds)


def _present(connection: duckdb.DuckDBPyConnection, table: str, role: str) -> int:
    return fetch_count(connection, f"SELECT count(DISTINCT {role}) FROM {table}")


def _count_alive(
    connection: duckdb.DuckDBPyConnection, source: str, alive: Mapping[str, np.ndarray[tuple[int], np.dtype[np.bool_]]]
) -> dict[str, IntArray]:
    counts = {role: np.zeros(len(alive[role]), dtype=np.int64) for role in ROLES}
    for batch in connection.sql(f"SELECT query, item FROM {source} WHERE weight > 0").to_arrow_reader(_BATCH):
        _count_batch(
            *(batch.column(role).to_numpy() for role in ROLES),
            *(alive[role] for role in ROLES),
            *(counts[role] for role in ROLES),
        )
    return counts


@njit(cache=True)
def _count_batch(query_N, item_N, query_alive_R, item_alive_R, query_count_R, item_count_R):  # type: ignore[no-untyped-def]
    """Count the interactions whose two ends are both still there."""
    for n in range(query_N.shape[0]):
        query, item = query_N[n], item_N[n]
        if query_alive_R[query] and item_alive_R[item]:
            query_count_R[query] += 1
            item_count_R[item] += 1
