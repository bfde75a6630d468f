# ruff: noqa: S608  (what is put into SQL is quoted by `identifier` and `literal`, or is a number of this program)
"""Hold-outs: which interactions of ``train`` become ``valid`` or ``test``.

    plan = plan_hold_outs(options)
    check_times(plan, gap, "integer", newest)
    reports = groups.apply([create_interactions, partial(take, plan, 0)])       # the view interactions, and others
    check_taken(plan, reports)

    last-N            the last N of each query entity by timestamp (ties: by item ID, then by the order of the files)
    random:FRACTION   this fraction of the (query, item) pairs, drawn by a hash of seed, query ID and item ID
    after:TIME        interactions with a timestamp later than TIME, an integer or an ISO date (UTC if it has no zone)

A hold-out leaves every query entity at least one interaction in ``train``: the earliest, or for ``random`` one pair.
With a gap, ``after`` leaves none that is later: query entities without an earlier one are left out (``drop_gaps``).
``random`` moves all interactions of a pair or none.

A dataset without a valid split gets a small one, unless ``none`` is asked for or test comes from files (which are then
splits that others compare with, so it takes ``default`` to ask for one): a random ``DEFAULT_FRACTION`` of the pairs in
train, of at most about ``DEFAULT_PAIRS``, or nothing if there are too few. Training needs it to choose an epoch.

Interactions of negative weight (negative feedback) count neither among the last N nor as the one that stays. They
follow the time or the draw of their pair, and evaluation never treats them as relevant.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

import duckdb

from crossfade.base.errors import Option, OptionError
from crossfade.base.options import alternatives
from crossfade.base.text import counted
from crossfade.trainer.data.split_names import ALL_SPLITS
from crossfade.trainer.data.time_values import TimeOption, TimeSpan, check_seconds, check_span
from crossfade.trainer.prepare.database import count_rows, execute, fetch_count, fetch_one
from crossfade.trainer.prepare.event_groups import Report, earliest, latest, replace_events
from crossfade.trainer.prepare.id_encoder import SIDES
from crossfade.trainer.prepare.options import PrepareOptions, needs_timestamp

_logger = logging.getLogger(__name__)

Kind = Literal["last", "random", "after"]

_FORMS = "last-N, random:FRACTION or after:TIMESTAMP, such as last-1, random:0.1 or after:2024-05-31"
DEFAULT_FRACTION = 0.05
DEFAULT_PAIRS = 100_000
NONE, DEFAULT = "none", "default"
_FEW_HELD_OUT = 100
"""A metric on fewer held-out interactions is mostly chance."""
_MOST_KEPT = 16
"""The largest N of last-N for which the latest times of each query entity are found first: they are kept in memory."""
_COLUMNS = "query, item, weight, timestamp, split, seq"


@dataclass(frozen=True)
class HoldOut:
    """A parsed hold-out. Of ``number``, ``fraction`` and ``after``, the one that ``kind`` needs is set.

    One ``by_default`` is bounded, and may take nothing.
    """

    option: str
    text: str
    kind: Kind
    number: int = 0
    fraction: float = 0.0
    after: TimeOption | None = None
    by_default: bool = False

    def bounded(self, rows: int) -> HoldOut:
        """Return this hold-out of ``rows`` interactions; a default takes about ``DEFAULT_PAIRS``, at most."""
        most = DEFAULT_PAIRS / max(rows, 1) if self.by_default else 1.0
        return replace(self, fraction=min(self.fraction, most))

    @staticmethod
    def parse(option: str, text: str) -> HoldOut:
        """Parse ``text``, the value of ``option``.

        Raises:
            OptionError: it has none of the three forms.
        """
        name, _, value = text.partition(":")
        last = re.fullmatch(r"last-([0-9]+)", text)
        if last and int(last[1]) >= 1:
            return HoldOut(option, text, "last", number=int(last[1]))
        if name == "random":
            try:
                fraction = float(value)
            except ValueError:
                fraction = 0.0
            if not 0 < fraction < 1:
                raise OptionError(
                    option, found=text, problem="the fraction must be a number between 0 and 1, such as random:0.1"
                )
            return HoldOut(option, text, "random", fraction=fraction)
        if name == "after":
            return HoldOut(option, text, "after", after=TimeOption.parse(option, text, value, _FORMS))
        raise OptionError(option, found=text, problem="no such hold-out", expected=_FORMS)


def plan_hold_outs(options: PrepareOptions) -> dict[str, HoldOut]:
    """Plan which hold-out creates which split, in the order to apply them: ``test``, then ``valid`` from the rest.

    ``hold_out`` creates test and then valid in the same way, except ``after:``, which creates only test. Valid is also
    held out by default, unless it or test has files. ``hold_out_valid`` ``none`` prevents it; ``default`` asks for it.

    Raises:
        OptionError: a hold-out has an unknown form, lacks a timestamp, or conflicts with another one or with files.
    """
    plan: dict[str, HoldOut] = {}
    both, valid, test = options.hold_out, options.hold_out_valid, options.hold_out_test
    if both is not None:
        if valid not in (None, NONE) or test is not None:
            others = alternatives(map(Option, ("hold_out_valid", "hold_out_test")))
            raise OptionError(
                "hold_out",
                found=both,
                problem=("cannot be combined with ", others),
                fix=("use either ", Option("hold_out"), ", or the other two for a different hold-out of each split"),
            )
        parsed = HoldOut.parse("hold_out", both)
        plan = {"test": parsed} if parsed.kind == "after" or valid == NONE else {"test": parsed, "valid": parsed}
    if test is not None:
        plan["test"] = HoldOut.parse("hold_out_test", test)
    if valid not in (None, NONE, DEFAULT):
        plan["valid"] = HoldOut.parse("hold_out_valid", valid)
    if valid == DEFAULT or (valid is None and "valid" not in plan and not options.valid and not options.test):
        text = f"random:{DEFAULT_FRACTION}"
        plan["valid"] = HoldOut("hold_out_valid", text, "random", fraction=DEFAULT_FRACTION, by_default=True)
    for split, hold_out in plan.items():
        if getattr(options, split):
            raise OptionError(
                hold_out.option,
                found=hold_out.text,
                problem=(f"{split} comes from ", Option(split), " files already"),
                fix="leave out one of the two",
            )
        if hold_out.kind != "random" and options.timestamp is None:
            raise needs_timestamp(hold_out.option, hold_out.text)
    _check_order(plan)
    if options.hold_out_gap is not None and not moments(plan):
        raise OptionError(
            "hold_out_gap",
            found=options.hold_out_gap.text,
            problem="comes before what is held out by time, and nothing is",
            fix=("add ", Option("hold_out_test", "after:TIME")),
        )
    return plan


def _check_order(plan: Mapping[str, HoldOut]) -> None:
    """Reject a time of valid that is no earlier than the time of test, which takes all that is later.

    Raises:
        OptionError: that is so.
    """
    cuts = moments(plan)  # of test, and of valid
    if len(cuts) == len(plan) == 2 and cuts[1].value >= cuts[0].value:
        raise OptionError(
            "hold_out_valid",
            found=plan["valid"].text,
            problem=("is no earlier than ", Option("hold_out_test", plan["test"].text), ", which leaves valid nothing"),
            fix="give valid an earlier time",
        )


def moments(plan: Mapping[str, HoldOut]) -> list[TimeOption]:
    """Return the times at which ``plan`` cuts."""
    return [hold_out.after for hold_out in plan.values() if hold_out.after is not None]


def check_times(plan: Mapping[str, HoldOut], gap: TimeSpan | None, timestamps: str | None, newest: int | None) -> None:
    """Check that times of ``plan`` and the ``gap`` can be compared with the timestamps, up to the ``newest``.

    ``timestamps`` is their type, 'integer' or 'datetime'.

    Raises:
        OptionError: a date or the gap is in seconds, and timestamps are not.
    """
    if gap is not None:
        check_span("hold_out_gap", gap, newest)
    for moment in moments(plan):
        if gap is not None or timestamps == "integer":
            check_seconds(moment, newest)


def drop_gaps(plan: Mapping[str, HoldOut], gap: TimeSpan, connection: duckdb.DuckDBPyConnection) -> Report:
    """Delete what a strict split by time leaves out of ``events``; report the numbers.

    That is, of train, events within ``gap`` before each time of ``plan``, and all after the first time of query
    entities without a positive event before: a model that was trained then would have nothing of them.
    """
    cuts = [moment.value for moment in moments(plan)]
    within = " OR ".join(f"timestamp BETWEEN {cut - gap.length + 1} AND {cut}" for cut in cuts)
    first = min(cuts)
    known = f"SELECT query FROM events WHERE split = 0 AND weight > 0 AND timestamp <= {first}"
    left_out = [f"split = 0 AND ({within})", f"split = 0 AND timestamp > {first} AND query NOT IN ({known})"]
    numbers = [count_rows(connection, "events")]
    for condition in left_out:
        replace_events(connection, f"SELECT * FROM events WHERE NOT ({condition})")
        numbers.append(count_rows(connection, "events"))
    return {"dropped_gap": numbers[0] - numbers[1], "dropped_without_history": numbers[1] - numbers[2]}


def _steps(plan: Mapping[str, HoldOut]) -> list[dict[str, HoldOut]]:
    """Return the hold-outs of ``plan`` that are applied together: all, if each takes the last interactions."""
    all_last = all(hold_out.kind == "last" for hold_out in plan.values())
    return [dict(plan)] if all_last and plan else [{split: hold_out} for split, hold_out in plan.items()]


def create_interactions(connection: duckdb.DuckDBPyConnection) -> Report:
    """Create the view ``interactions`` of ``events``, of which hold-outs move some to the table ``moved``.

    ``train_interactions`` are those of train: queries of it alone take half the time that they take of the union.
    The view ``counts_split`` has the ``count`` of the interactions of each split, and of its ``positives``.
    The views ``counts_query`` and ``counts_item`` have each ID (``number``) of any split, and the ``count`` of its
    interactions of positive weight in train.
    """
    connection.execute(f"CREATE TABLE moved AS SELECT {_COLUMNS} FROM events LIMIT 0")
    connection.execute(
        f"CREATE VIEW train_interactions AS SELECT {_COLUMNS} FROM events ANTI JOIN moved USING (seq) WHERE split = 0"
    )
    connection.execute(
        f"CREATE VIEW interactions AS SELECT {_COLUMNS} FROM train_interactions "
        f"UNION ALL SELECT {_COLUMNS} FROM events WHERE split <> 0 UNION ALL SELECT {_COLUMNS} FROM moved"
    )
    counted = "count(*) AS count, count(*) FILTER (weight > 0) AS positives"
    connection.execute(  # without the join of train_interactions
        "CREATE VIEW counts_split AS SELECT split, sum(count)::BIGINT AS count, sum(positives)::BIGINT AS positives "
        f"FROM (SELECT split, {counted} FROM events GROUP BY split UNION ALL "
        f"SELECT split, {counted} FROM moved GROUP BY split UNION ALL "
        f"SELECT 0, -count, -positives FROM (SELECT {counted} FROM moved)) GROUP BY split"
    )
    for side in SIDES:
        connection.execute(
            f"CREATE TABLE IF NOT EXISTS all_counts_{side} AS SELECT {side} AS number, "
            f"count(*) FILTER (split = 0 AND weight > 0) AS count FROM events GROUP BY {side}"
        )
        connection.execute(
            f"CREATE VIEW counts_{side} AS SELECT number, a.count - coalesce(m.count, 0) AS count "
            f"FROM all_counts_{side} a LEFT JOIN (SELECT {side} AS number, count(*) FILTER (weight > 0) AS count "
            f"FROM moved GROUP BY {side}) m USING (number)"
        )
    return {}


def take(plan: Mapping[str, HoldOut], seed: int, connection: duckdb.DuckDBPyConnection) -> Report:
    """Move interactions from train to the splits of ``plan``, in its order.

    Reports how many interactions were kept in train only because each query entity needs one there, except by a
    default; and the splits that got no positive one, with the first and last times that were left in train.
    """
    kept, untaken = 0, {}
    for step in _steps(plan):
        hold_out = next(iter(step.values()))
        if hold_out.kind == "last":
            kept += _take_last(connection, {split: each.number for split, each in step.items()})
        else:
            kept_for_it = _take_chosen(connection, hold_out, next(iter(step)), seed)
            kept += 0 if hold_out.by_default else kept_for_it
        for split in step:
            taken = f"SELECT count(*) FROM moved WHERE split = {ALL_SPLITS.index(split)} AND weight > 0"
            if not fetch_count(connection, taken):
                span = fetch_one(connection, "SELECT min(timestamp), max(timestamp) FROM train_interactions")
                untaken[split] = dict(zip(("first", "last"), span, strict=True))
    return {"kept_for_train": kept, "untaken": untaken}


def check_taken(plan: Mapping[str, HoldOut], reports: Sequence[Report]) -> None:
    """Check by what ``take`` reports that each split of ``plan`` has a positive interaction, except by a default.

    Raises:
        OptionError: one has none.
    """
    for split, hold_out in plan.items():
        spans = [report["untaken"][split] for report in reports if split in report["untaken"]]
        if len(spans) == len(reports) and not hold_out.by_default:
            first, last = earliest(spans, "first"), latest(spans, "last")
            span = f" (timestamps run from {first} to {last})" if hold_out.kind == "after" else ""
            raise OptionError(
                hold_out.option,
                found=hold_out.text,
                problem=f"takes no interaction for {split}{span}",
                fix="each query entity keeps one interaction in train: choose another hold-out",
            )


def describe_interactions(connection: duckdb.DuckDBPyConnection) -> Report:
    """Report the numbers of the interactions of each split, and their times.

    The view ``found_SIDE`` has the ``id`` of each, its ``count`` in train and, of a query, the count in each split.
    """
    splits = ", ".join(f"count(*) FILTER (split = {code}) AS {split}" for code, split in enumerate(ALL_SPLITS))
    connection.execute(
        f"CREATE OR REPLACE VIEW found_query AS SELECT id, count, {', '.join(ALL_SPLITS)} FROM counts_query "
        f"JOIN ids_query USING (number) JOIN (SELECT query AS number, {splits} FROM interactions GROUP BY query) "
        "USING (number)"
    )
    connection.execute(
        "CREATE OR REPLACE VIEW found_item AS SELECT id, count FROM counts_item JOIN ids_item USING (number)"
    )
    negative, first, last = fetch_one(
        connection, "SELECT count(*) FILTER (weight < 0), min(timestamp), max(timestamp) FROM events"
    )
    found = {code: (rows, positives) for code, rows, positives in execute(connection, "FROM counts_split")}
    report: Report = {"negative": negative, "first": first, "last": last}
    for code, split in enumerate(ALL_SPLITS):
        report[split], report[f"{split}_positives"] = found.get(code, (0, 0))
    return report


def check_split(split: str, rows: int, positives: int, has_files: bool) -> None:
    """Check the numbers of the interactions of ``split``, and of its positive ones; warn of few that are held out.

    Raises:
        OptionError: one with files, or train, has no positive one.
    """
    if split != "train" and 0 < rows < _FEW_HELD_OUT:
        _logger.warning(
            f"{split}: has {counted(rows, 'interaction')}, so that a metric on it is mostly chance; hold out at least "
            f"{_FEW_HELD_OUT}"
        )
    if (has_files or split == "train") and not positives:
        raise OptionError(
            split,
            problem="the files hold no interaction with a weight above 0",
            fix=("add one, or leave out ", Option(split)),
        )


def _take_last(connection: duckdb.DuckDBPyConnection, numbers: Mapping[str, int]) -> int:
    """Move the last interactions of each query entity, their ``numbers`` by split; return how many were kept.

    Of many, only interactions at or after the time of the last positive one to move are sorted: no earlier one is
    among the last. To find that time takes longer than to sort a few.
    """
    codes = map(ALL_SPLITS.index, numbers)
    bounds = dict(zip(codes, accumulate(numbers.values()), strict=True))
    cases = " ".join(f"WHEN place <= {bound} THEN {code}" for code, bound in bounds.items())
    kept = " + ".join(f"count(*) FILTER (count BETWEEN 1 AND {bound})" for bound in bounds.values())
    kept_rows = fetch_count(connection, f"SELECT {kept} FROM counts_query")
    candidates, last = "train_interactions", max(bounds.values())
    are_many = f"SELECT coalesce(sum(count), 0) > {3 * last} * count(*) FROM counts_query"
    if last <= _MOST_KEPT and fetch_count(connection, are_many):
        since = "max(timestamp)" if last == 1 else f"max(timestamp, {last})[{last}]"
        since = f"SELECT query, {since} AS since FROM train_interactions WHERE weight > 0 GROUP BY query"
        candidates += f" LEFT JOIN ({since}) USING (query) WHERE since IS NULL OR timestamp >= since"
    nth = "row_number() OVER latest"
    if fetch_count(connection, "SELECT count(*) FROM train_interactions WHERE weight < 0"):
        # A negative one is placed as the positive one before it in time would be.
        nth = "count(*) FILTER (weight > 0) OVER (latest ROWS UNBOUNDED PRECEDING) + (weight < 0)::BIGINT"
    connection.execute(
        f"INSERT INTO moved SELECT query, item, weight, timestamp, CASE {cases} END, seq FROM ("
        f"SELECT query, item, weight, timestamp, seq, {nth} AS place FROM "
        f"(SELECT {_COLUMNS} FROM {candidates}) "
        "JOIN (SELECT number, row_number() OVER (ORDER BY id) AS id_place FROM ids_item) ON number = item "
        "WINDOW latest AS (PARTITION BY query ORDER BY timestamp DESC, id_place DESC, seq DESC)"
        f") JOIN counts_query ON number = query WHERE place <= {last} AND place < count"
    )
    return kept_rows


def _take_chosen(connection: duckdb.DuckDBPyConnection, hold_out: HoldOut, split: str, seed: int) -> int:
    """Move the interactions that a hold-out 'random' or 'after' chooses; return how many were kept.

    Where all positive ones of a query entity are chosen, the first of them (or with the last draw) stays.
    """
    if hold_out.kind == "random":
        chosen, stays = _drawn_sql(hold_out, split, seed), "max"
    else:
        assert hold_out.after is not None
        chosen, stays = _later_sql(hold_out.after.value), "min"
    connection.execute(f"CREATE TABLE chosen AS {chosen}")
    (moved,) = connection.execute(
        f"INSERT INTO moved SELECT query, item, weight, timestamp, {ALL_SPLITS.index(split)}, seq FROM chosen "
        f"LEFT JOIN (SELECT query, count(*) AS positives, {stays}(place) AS place FROM chosen WHERE weight > 0 "
        "GROUP BY query) best USING (query) JOIN counts_query ON number = query "
        "WHERE NOT coalesce(positives = count AND chosen.place = best.place, false)"
    ).fetchone() or (0,)
    kept = fetch_count(connection, "SELECT count(*) FROM chosen") - int(moved)
    connection.execute("DROP TABLE chosen")
    return kept


def _later_sql(time: int) -> str:
    """Return SQL of the interactions of train later than ``time``, each with its ``place`` in the order of time."""
    return (
        "SELECT query, item, weight, timestamp, seq, ROW(timestamp, id, seq) AS place FROM train_interactions "
        f"JOIN ids_item ON number = item WHERE timestamp > {time}"
    )


def _drawn_sql(hold_out: HoldOut, split: str, seed: int) -> str:
    """Return SQL of the interactions of train that are drawn, each with its draw as ``place``."""
    # The draw is hash(hash(seed, split, query ID, item ID)). DuckDB combines hashes so that the last is an operand of
    # xor: that of each ID is computed once, and not for each interaction. The split is part of it: with one draw for
    # both, the second hold-out would find nothing left to take.
    return (
        f"WITH q AS (SELECT number, xor(hash({seed}::BIGINT, '{split}', id, 0), hash(0)) AS part FROM ids_query "
        "SEMI JOIN (SELECT number FROM counts_query WHERE count > 0) USING (number)), "
        "i AS (SELECT number, hash(id) AS part FROM ids_item) "
        "SELECT query, item, weight, timestamp, seq, hash(xor(q.part, i.part)) AS place FROM train_interactions "
        "JOIN q ON q.number = query JOIN i ON i.number = item "
        f"WHERE place < {int(hold_out.fraction * 2**64)}::UBIGINT"
    )
