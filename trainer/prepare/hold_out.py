# ruff: noqa: S608  (what is put into SQL is quoted by `identifier` and `literal`, or is a number of this program)
"""Hold-outs: which interactions of ``train`` become ``valid`` or ``test``.

    last-N            the last N of each query entity by timestamp (ties: by item id, then by the order of the files)
    random:FRACTION   that share of the (query, item) pairs, drawn from a hash of seed, query id and item id
    after:TIME        those with a timestamp later than TIME, an integer or an ISO date (UTC where it names no zone)

A hold-out leaves every query entity at least one interaction in ``train``: the earliest, or for ``random`` one pair.
A pair that occurs several times is never torn apart by ``random``.

Interactions of negative weight, which say what is not wanted, neither count as one of the last N nor as the one that
stays. They go where the time or the draw of their pair puts them, and nothing that is judged takes them for liked.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import duckdb

from kvstore.errors import InputError
from trainer.data.manifest import SPLITS
from trainer.data.time_values import TimeOption, check_seconds, parse_time_option
from trainer.prepare.database import execute, fetch_count, fetch_one

Kind = Literal["last", "random", "after"]

_FORMS = "expected last-N, random:FRACTION or after:TIMESTAMP, such as last-1, random:0.1 or after:2024-05-31"
_PAYLOAD = "query, item, weight, timestamp, seq"


@dataclass(frozen=True)
class HoldOut:
    """One hold-out, parsed. Of ``number``, ``fraction``, ``after`` the one that ``kind`` needs is set."""

    option: str
    text: str
    kind: Kind
    number: int = 0
    fraction: float = 0.0
    after: TimeOption | None = None

    @property
    def needs_timestamp(self) -> bool:
        """Whether it can do without a column of timestamps."""
        return self.kind != "random"

    def __str__(self) -> str:
        """The option as the user would type it."""
        return f"{self.option} {self.text}"


def parse_hold_out(option: str, text: str) -> HoldOut:
    """Read ``text``, the value of ``option``.

    Raises:
        InputError: it has none of the three forms.
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
            raise InputError(f"{option} {text}: the fraction must be a number between 0 and 1, such as random:0.1")
        return HoldOut(option, text, "random", fraction=fraction)
    if name == "after":
        return HoldOut(option, text, "after", after=parse_time_option(f"{option} {text}", value, _FORMS))
    raise InputError(f"{option} {text}: no such hold-out; {_FORMS}")


def plan_hold_outs(
    both: str | None, valid: str | None, test: str | None, given: set[str], has_timestamp: bool
) -> dict[str, HoldOut]:
    """Which hold-out makes which split, in the order to apply them: ``test`` first, then ``valid`` from what is left.

    ``both`` makes test and then valid, except ``after:``, which makes test alone. ``given`` are the splits with files.

    Raises:
        InputError: a hold-out is not understood, needs a timestamp that is not there, or meets another or a given file.
    """
    plan: dict[str, HoldOut] = {}
    if both is not None:
        if valid is not None or test is not None:
            raise InputError(
                f"--hold-out {both}: cannot stand beside --hold-out-valid or --hold-out-test; "
                "use either the one, or the two for a different hold-out of each"
            )
        parsed = parse_hold_out("--hold-out", both)
        plan = {"test": parsed} if parsed.kind == "after" else {"test": parsed, "valid": parsed}
    if test is not None:
        plan["test"] = parse_hold_out("--hold-out-test", test)
    if valid is not None:
        plan["valid"] = parse_hold_out("--hold-out-valid", valid)
    for split, hold_out in plan.items():
        if split in given:
            other = "valid" if split == "test" else "test"
            mend = f" or use --hold-out-{other} for {other} alone" if both is not None and len(plan) == 2 else ""
            raise InputError(f"{hold_out}: {split} comes from --{split} files already; leave one of the two out{mend}")
        if hold_out.needs_timestamp and not has_timestamp:
            raise InputError(f"{hold_out}: needs to know when each event happened; name the column with --timestamp")
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
    """Make the table ``target`` of the relation ``source``, with interactions moved from train to ``split``.

    ``source`` has ``seq`` (a number for each interaction, unique) beside the columns of ``events``. ``timestamps``
    tells whether they were 'integer' or 'moment'. Returns how many interactions would have moved, had train not
    needed them.

    Raises:
        InputError: the hold-out takes nothing, or its time cannot be compared with the timestamps.
    """
    if hold_out.after is not None and timestamps == "integer":
        check_seconds(hold_out.after, fetch_one(connection, f"SELECT max(timestamp) FROM {source}")[0])
    code = SPLITS.index(split)
    execute(
        connection,
        f"CREATE TABLE {target} AS "
        f"SELECT {_PAYLOAD}, CASE WHEN wanted AND NOT spared THEN {code} ELSE 0 END::UTINYINT AS split, "
        f"wanted AND spared AS stayed FROM ({_candidates(hold_out, split, seed, source)}) "
        f"UNION ALL SELECT {_PAYLOAD}, split, false FROM {source} WHERE split <> 0",
    )
    if not fetch_count(connection, f"SELECT count(*) FILTER (split = ? AND weight > 0) FROM {target}", [code]):
        first, last = fetch_one(connection, f"SELECT min(timestamp), max(timestamp) FROM {target} WHERE split = 0")
        span = f" (timestamps run from {first} to {last})" if hold_out.kind == "after" else ""
        raise InputError(
            f"{hold_out}: takes no interaction for {split}{span}; each {_LEAST[hold_out.kind]}: choose another hold-out"
        )
    return fetch_count(connection, f"SELECT count(*) FILTER (stayed) FROM {target}")


_LEAST = {
    "last": "query entity keeps one for train, and none has two",
    "random": "query entity keeps one for train, and there are few others",
    "after": "query entity keeps its earliest for train",
}


def _candidates(hold_out: HoldOut, split: str, seed: int, source: str) -> str:
    """The interactions of train with two marks: ``wanted`` by the hold-out, and ``spared`` since train needs one."""
    placed = (
        f"(SELECT {', '.join(f'e.{name}' for name in _PAYLOAD.split(', '))}, place "
        f"FROM {source} e JOIN ids_item ON number = item WHERE split = 0)"
    )
    order = "PARTITION BY query ORDER BY timestamp {0}, place {0}, seq {0}"
    liked = "count(*) FILTER (weight > 0)"
    if hold_out.kind == "last":
        ranked = (
            f"SELECT {_PAYLOAD}, {liked} OVER (latest ROWS UNBOUNDED PRECEDING) AS nth, "
            f"{liked} OVER (PARTITION BY query) AS total FROM {placed} WINDOW latest AS ({order.format('DESC')})"
        )
        return (
            f"SELECT {_PAYLOAD}, CASE WHEN weight > 0 THEN nth <= {hold_out.number} "
            f"ELSE nth < least({hold_out.number}, total - 1) END AS wanted, weight > 0 AND nth = total AS spared "
            f"FROM ({ranked})"
        )
    if hold_out.after is not None:
        return (
            f"SELECT {_PAYLOAD}, timestamp > {hold_out.after.value} AS wanted, "
            f"weight > 0 AND {liked} OVER ({order.format('ASC')} ROWS UNBOUNDED PRECEDING) = 1 AS spared FROM {placed}"
        )
    # The split is part of the hash: with one draw for both, the second hold-out would find nothing left to take.
    draw = f"hash(hash({seed}::BIGINT, '{split}', q.id, i.id))"
    drawn = (
        f"SELECT query, item, weight, timestamp, seq, {draw} AS draw FROM {source} "
        "JOIN ids_query q ON q.number = query JOIN ids_item i ON i.number = item WHERE split = 0"
    )
    limit = int(hold_out.fraction * 2**64)
    return (
        f"WITH drawn AS ({drawn}), "
        "highest AS (SELECT query, max(draw) AS top FROM drawn WHERE weight > 0 GROUP BY query) "
        f"SELECT {_PAYLOAD}, draw < {limit}::UBIGINT AND top IS NOT NULL AS wanted, "
        "coalesce(draw = top, false) AS spared FROM drawn LEFT JOIN highest USING (query)"
    )
