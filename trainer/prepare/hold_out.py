# ruff: noqa: S608  (what is put into SQL is quoted by `identifier` and `literal`, or is a number of this program)
"""Hold-outs: which interactions of ``train`` become ``valid`` or ``test``.

    plan = plan_hold_outs(options)
    kept = apply_hold_out(connection, plan["test"], "test", seed=0, timestamps=None, source="events", target="held_out")

    last-N            the last N of each query entity by timestamp (ties: by item ID, then by the order of the files)
    random:FRACTION   this fraction of the (query, item) pairs, drawn by a hash of seed, query ID and item ID
    after:TIME        interactions with a timestamp later than TIME, an integer or an ISO date (UTC if it has no zone)

A hold-out leaves every query entity at least one interaction in ``train``: the earliest, or for ``random`` one pair.
``random`` moves all interactions of a pair or none.

A dataset without a valid split gets a small one, unless ``none`` is asked for or test comes from files (which are then
splits that others compare with): a random ``DEFAULT_FRACTION`` of the pairs in train, of at most about
``DEFAULT_PAIRS``. Training needs it to choose an epoch.

Interactions of negative weight (negative feedback) count neither among the last N nor as the one that stays. They
follow the time or the draw of their pair, and evaluation never treats them as relevant.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

import duckdb

from crossfade.base.errors import OptionError, option_named
from crossfade.trainer.data.split_names import ALL_SPLITS
from crossfade.trainer.data.time_values import TimeOption, check_seconds
from crossfade.trainer.prepare.database import fetch_count, fetch_one
from crossfade.trainer.prepare.options import PrepareOptions, needs_timestamp

Kind = Literal["last", "random", "after"]

_FORMS = "last-N, random:FRACTION or after:TIMESTAMP, such as last-1, random:0.1 or after:2024-05-31"
DEFAULT_FRACTION = 0.05
DEFAULT_PAIRS = 100_000
NONE = "none"
_PAYLOAD = "query, item, weight, timestamp, seq"
_POSITIVES = "count(*) FILTER (weight > 0)"
_REASONS = {
    "last": "each query entity keeps one interaction in train, and none has two",
    "random": "each query entity keeps one interaction in train, and there are few others",
    "after": "each query entity keeps its earliest interaction in train",
}
"""Why a hold-out of each kind may take nothing."""


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
    held out by default, unless it or test has files; ``hold_out_valid`` ``none`` prevents it.

    Raises:
        OptionError: a hold-out has an unknown form, lacks a timestamp, or conflicts with another one or with files.
    """
    plan: dict[str, HoldOut] = {}
    both, valid, test = options.hold_out, options.hold_out_valid, options.hold_out_test
    if both is not None:
        if valid not in (None, NONE) or test is not None:
            others = option_named("hold_out_valid"), option_named("hold_out_test")
            raise OptionError(
                "hold_out",
                found=both,
                problem=f"cannot be combined with {' or '.join(others)}",
                fix=f"use either {option_named('hold_out')}, or the other two for a different hold-out of each split",
            )
        parsed = HoldOut.parse("hold_out", both)
        plan = {"test": parsed} if parsed.kind == "after" or valid == NONE else {"test": parsed, "valid": parsed}
    if test is not None:
        plan["test"] = HoldOut.parse("hold_out_test", test)
    if valid is not None and valid != NONE:
        plan["valid"] = HoldOut.parse("hold_out_valid", valid)
    if valid is None and "valid" not in plan and not options.valid and not options.test:
        text = f"random:{DEFAULT_FRACTION}"
        plan["valid"] = HoldOut("hold_out_valid", text, "random", fraction=DEFAULT_FRACTION, by_default=True)
    for split, hold_out in plan.items():
        if getattr(options, split):
            other = "valid" if split == "test" else "test"
            only = f", or use {option_named(f'hold_out_{other}')} for {other} only"
            raise OptionError(
                hold_out.option,
                found=hold_out.text,
                problem=f"{split} comes from {option_named(split)} files already",
                fix=f"leave out one of the two{only if both is not None and len(plan) == 2 else ''}",
            )
        if hold_out.kind != "random" and options.timestamp is None:
            raise needs_timestamp(hold_out.option, hold_out.text)
    return plan


def apply_hold_out(
    connection: duckdb.DuckDBPyConnection,
    hold_out: HoldOut,
    split: str,
    *,
    seed: int,
    timestamps: str | None,
    source: str,
    target: str,
) -> int:
    """Create the table ``target`` of the relation ``source``, with interactions moved from train to ``split``.

    ``source`` has the columns of ``events``. ``timestamps`` is their type, 'integer' or 'datetime'. Returns how many
    interactions were kept in train only because each query entity needs one there.

    Raises:
        InputError: the hold-out takes nothing, or its time cannot be compared with the timestamps.
    """
    if hold_out.after is not None and timestamps == "integer":
        check_seconds(hold_out.after, fetch_one(connection, f"SELECT max(timestamp) FROM {source}")[0])
    if hold_out.by_default:
        rows = fetch_count(connection, f"SELECT count(*) FILTER (split = 0) FROM {source}")
        hold_out = replace(hold_out, fraction=min(hold_out.fraction, DEFAULT_PAIRS / max(rows, 1)))
    code = ALL_SPLITS.index(split)
    connection.execute(
        f"CREATE TABLE {target} AS "
        f"SELECT {_PAYLOAD}, CASE WHEN selected AND NOT spared THEN {code} ELSE 0 END::UTINYINT AS split, "
        f"selected AND spared AS kept FROM ({_candidates_sql(hold_out, split, seed, source)}) "
        f"UNION ALL SELECT {_PAYLOAD}, split, false FROM {source} WHERE split <> 0"
    )
    taken = fetch_count(connection, f"SELECT count(*) FILTER (split = ? AND weight > 0) FROM {target}", [code])
    if not taken and not hold_out.by_default:
        first, last = fetch_one(connection, f"SELECT min(timestamp), max(timestamp) FROM {target} WHERE split = 0")
        span = f" (timestamps run from {first} to {last})" if hold_out.kind == "after" else ""
        raise OptionError(
            hold_out.option,
            found=hold_out.text,
            problem=f"takes no interaction for {split}{span}",
            fix=f"{_REASONS[hold_out.kind]}: choose another hold-out",
        )
    return fetch_count(connection, f"SELECT count(*) FILTER (kept) FROM {target}")


def _candidates_sql(hold_out: HoldOut, split: str, seed: int, source: str) -> str:
    """Return SQL for the interactions of train with ``selected`` (by the hold-out) and ``spared`` (train needs it)."""
    if hold_out.kind == "random":
        return _random_sql(hold_out.fraction, split, seed, source)
    ranked = (
        f"(SELECT {', '.join(f'e.{name}' for name in _PAYLOAD.split(', '))}, id_rank "
        f"FROM {source} e JOIN ids_item ON number = item WHERE split = 0)"
    )
    order = "PARTITION BY query ORDER BY timestamp {0}, id_rank {0}, seq {0}"
    if hold_out.after is not None:
        return (
            f"SELECT {_PAYLOAD}, timestamp > {hold_out.after.value} AS selected, weight > 0 AND "
            f"{_POSITIVES} OVER ({order.format('ASC')} ROWS UNBOUNDED PRECEDING) = 1 AS spared FROM {ranked}"
        )
    counted = (
        f"SELECT {_PAYLOAD}, {_POSITIVES} OVER (latest ROWS UNBOUNDED PRECEDING) AS nth, "
        f"{_POSITIVES} OVER (PARTITION BY query) AS total FROM {ranked} WINDOW latest AS ({order.format('DESC')})"
    )
    return (
        f"SELECT {_PAYLOAD}, CASE WHEN weight > 0 THEN nth <= {hold_out.number} "
        f"ELSE nth < least({hold_out.number}, total - 1) END AS selected, weight > 0 AND nth = total AS spared "
        f"FROM ({counted})"
    )


def _random_sql(fraction: float, split: str, seed: int, source: str) -> str:
    # The split is part of the hash: with one draw for both, the second hold-out would find nothing left to take.
    draw = f"hash(hash({seed}::BIGINT, '{split}', q.id, i.id))"
    drawn = (
        f"SELECT query, item, weight, timestamp, seq, {draw} AS draw FROM {source} "
        "JOIN ids_query q ON q.number = query JOIN ids_item i ON i.number = item WHERE split = 0"
    )
    limit = int(fraction * 2**64)
    return (
        f"WITH drawn AS ({drawn}), "
        "highest AS (SELECT query, max(draw) AS top FROM drawn WHERE weight > 0 GROUP BY query) "
        f"SELECT {_PAYLOAD}, draw < {limit}::UBIGINT AND top IS NOT NULL AS selected, "
        "coalesce(draw = top, false) AS spared FROM drawn LEFT JOIN highest USING (query)"
    )
