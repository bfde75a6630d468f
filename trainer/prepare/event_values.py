# ruff: noqa: S608  (what is put into SQL is quoted by `identifier` and `literal`, or is a number of this program)
"""SQL of the values of events, and the checks that they must pass, over the relation ``raw`` of ``raw_files.py``.

    for check in value_checks(kinds, types, options):
        f"SELECT min(position) FROM raw WHERE {check.violation}"        # the first row that violates it, if any

A column has one of the ``Kind`` of ``raw_files.py``; IDs and timestamps also have a type, the same in all files:
'integer', 'string' (of IDs) or 'datetime' (of timestamps).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

from crossfade.base.errors import Option, Text
from crossfade.trainer.prepare.database import execute, identifier, literal
from crossfade.trainer.prepare.faults import MAX_PLACES, Faults, Place
from crossfade.trainer.prepare.input_files import RawFile
from crossfade.trainer.prepare.options import PrepareOptions
from crossfade.trainer.prepare.raw_files import Kind
from crossfade.trainer.prepare.text_records import find_records
from crossfade.trainer.prepare.timestamp_formats import ISO_SQL, formats_sql

INTEGER_TEXT = "{0} = CAST(TRY_CAST({0} AS BIGINT) AS VARCHAR)"
"""Whether the text of a column is exactly an integer: '007' and '+7' are not the number 7."""

MAX_ID_BYTES = 4096
"""The longest ID in UTF-8: a longer text is a document in the wrong column, and every copy of it costs memory."""
_EMPTY_ID = "is missing or empty; expected an id in every row"
_CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x{84}\x{86}-\x{9f}]"
"""Control characters other than tabs and line ends, which text may hold."""


@dataclass(frozen=True)
class Check:
    """A condition over ``raw`` that no row may meet, and the problem to report of the column of ``role``."""

    role: str
    violation: str
    problem: Text


def value_checks(
    kinds: Mapping[str, Kind],
    types: Mapping[str, str],
    options: PrepareOptions,
    formats: Sequence[str] = (),
    context: Sequence[str] = (),
) -> list[Check]:
    """Return the checks of the columns in ``kinds``, by role.

    ``types`` are those of IDs and timestamps, ``formats`` those of timestamps, if they were named, and ``context`` the
    roles of IDs that may be missing.
    """
    checks = []
    for role in ("query", "item"):
        checks += _id_checks(role, kinds[role], types[role])
    if "weight" in kinds:
        checks += _weight_checks(kinds["weight"], options.decimal)
    if "event" in kinds:
        checks += _event_checks(kinds["event"], options.event_weights)
    if "timestamp" in kinds:
        checks += _timestamp_checks(kinds["timestamp"], types["timestamp"], formats)
    for role in context:
        given = f"coalesce(CAST({role} AS VARCHAR), '') <> ''"
        found = _id_checks(role, kinds[role], types[role])[1:]  # it may be missing
        checks += [Check(role, f"{given} AND {check.violation}", check.problem) for check in found]
    return checks


def _is_missing(role: str, kind: Kind) -> str:
    return f"coalesce({role}, '') = ''" if kind in ("text", "string") else f"{role} IS NULL"


def _id_checks(role: str, kind: Kind, id_type: str) -> list[Check]:
    checks = [Check(role, f"{role} IS NULL OR CAST({role} AS VARCHAR) = ''", _EMPTY_ID)]
    if id_type == "string":
        too_long = f"strlen(CAST({role} AS VARCHAR)) > {MAX_ID_BYTES}"
        control = f"CASE WHEN {too_long} THEN false ELSE regexp_matches(CAST({role} AS VARCHAR), '{_CONTROL}') END"
        checks += [
            Check(role, too_long, f"is longer than {MAX_ID_BYTES:,} bytes; shorten it, or name another column"),
            Check(role, control, "has a control character; remove it"),
        ]
    if id_type == "integer":
        not_plain = f"NOT coalesce({INTEGER_TEXT.format(f'CAST({role} AS VARCHAR)')}, false)"
        checks += [
            Check(role, f"TRY_CAST({role} AS BIGINT) < 0", "is negative; expected an integer id of at least 0"),
            Check(role, not_plain, ("is not a plain 64-bit integer; try ", Option("id_type", "string"))),
        ]
    return checks


def _weight_checks(kind: Kind, decimal: str) -> list[Check]:
    expected = f"expected a finite number of 32 bits such as 1234{decimal}5"
    not_one: Text = (f"is not allowed; {expected}, or another separator in ", Option("decimal"))
    weight = _number_sql(kind, decimal)
    return [
        Check("weight", _is_missing("weight", kind), f"is missing; {expected} in every row"),
        Check("weight", f"{weight} IS NULL OR NOT isfinite({weight})", not_one),
    ]


def _number_sql(kind: Kind, decimal: str) -> str:
    """Return SQL of the number in ``weight``, null if it is none: 1.234 is none where commas are decimal."""
    number = "translate(weight, ',.', '.,')" if decimal == "," and kind in ("text", "string") else "weight"
    return f"TRY_CAST({number} AS FLOAT)"


def _event_checks(kind: Kind, event_weights: Mapping[str, float]) -> list[Check]:
    names = ", ".join(event_weights)
    allowed = ", ".join(literal(event) for event in event_weights)
    return [
        Check("event", _is_missing("event", kind), "is missing; expected an event in every row"),
        Check(
            "event",
            f"CAST(event AS VARCHAR) NOT IN ({allowed})",
            ("has no weight; ", Option("event_weights"), f" has only: {names} (weight 0 drops an event)"),
        ),
    ]


def _timestamp_checks(kind: Kind, timestamp_type: str, formats: Sequence[str]) -> list[Check]:
    option = Option("timestamp_format")
    expected = "expected an integer, or a date such as 2024-05-31T20:15:00, or its format in "
    not_one: Text = (f"is not a timestamp; {expected}", option)
    violation = f"{timestamp_sql(timestamp_type, formats)} IS NULL"
    if timestamp_type == "integer":
        if kind != "integer":
            violation = f"NOT coalesce({INTEGER_TEXT.format('timestamp')}, false)"
        others = Option("timestamp_format", "iso epoch-s")
        not_one = ("is not an integer, as others are; name all formats with ", others)
    elif formats:
        not_one = ("has none of the formats of ", option, f": {', '.join(formats)}")
    return [
        Check("timestamp", _is_missing("timestamp", kind), "is missing; expected one in every row"),
        Check("timestamp", violation, not_one),
    ]


def id_sql(role: str, id_type: str) -> str:
    """Return SQL for the ID of ``role``, of the type 'integer' or 'string'."""
    return f"CAST({role} AS {'BIGINT' if id_type == 'integer' else 'VARCHAR'})"


def timestamp_sql(timestamp_type: str | None, formats: Sequence[str] = ()) -> str:
    """Return SQL for the timestamp as an integer, null if it is not one; of a 'datetime', seconds since 1970.

    ``formats`` are those of a 'datetime', if they were named.
    """
    if timestamp_type is None:
        return "NULL::BIGINT"
    if timestamp_type == "integer":
        return "TRY_CAST(timestamp AS BIGINT)"
    return formats_sql(formats) if formats else ISO_SQL


def weight_sql(kind: Kind | None, options: PrepareOptions) -> str:
    """Return SQL for the weight as a 32-bit float: that of the event, the column, or 1, whichever is given first."""
    if weights := options.event_weights:
        cases = " ".join(f"WHEN {literal(event)} THEN {float(weight)!r}" for event, weight in weights.items())
        return f"CAST(CASE CAST(event AS VARCHAR) {cases} END AS FLOAT)"
    return "1.0::FLOAT" if kind is None else _number_sql(kind, options.decimal)


_ROLE_NAMES = {
    "query": "query id",
    "item": "item id",
    "weight": "weight",
    "event": "event",
    "timestamp": "timestamp",
}
_MAX_SHOWN = 60


def sound_rows(checks: Sequence[Check]) -> str:
    """Return SQL of a relation with the rows of ``raw`` that violate no check."""
    return f"(SELECT * FROM raw WHERE {_fault(checks)} IS NULL)"


def report_row_faults(
    connection: duckdb.DuckDBPyConnection,
    file: RawFile,
    checks: Sequence[Check],
    columns: Mapping[str, str],
    faults: Faults,
) -> None:
    """Add the rows of ``file``, which is ``raw``, that violate a check to ``faults``; ``columns`` are by role.

    Only the first rows of each check are fetched: all rows of a wrong column are at fault.
    """
    texts = ", ".join(f"CAST({identifier(role)} AS VARCHAR)" for role in columns)
    rows = f"(SELECT position, {_fault(checks)} AS fault, [{texts}] AS texts FROM raw) WHERE fault IS NOT NULL"
    firsts = f"arg_min({{'position': position, 'texts': texts}}, position, {MAX_PLACES})"
    by_fault: list[Any] = execute(connection, f"SELECT fault, count(*), {firsts} FROM {rows} GROUP BY fault")
    counts = {fault: count for fault, count, _ in by_fault}
    first = sorted((row["position"], fault, row["texts"]) for fault, _, found in by_fault for row in found)
    records = find_records(file, [position for position, *_ in first])
    for (position, fault, values), record in zip(first, records, strict=True):
        check = checks[fault]
        value = (dict(zip(columns, values, strict=True))[check.role] or "")[:_MAX_SHOWN]
        unit, number = ("line", record.line) if record is not None else ("row", position + faults.first_row)
        place = Place(str(file), unit, number, value)
        name, column = _ROLE_NAMES.get(check.role, "context"), f" of column '{columns[check.role]}' "
        shown = f" '{value}'" if value else ""
        message = (f"{place}: the {name}{shown}{column}", check.problem)
        faults.add((f"the {name}{column}", check.problem), [place], counts.pop(fault, 0), message)  # the first adds all


def _fault(checks: Sequence[Check]) -> str:
    """Return SQL of the index of the first check that a row violates, null if there is none."""
    cases = " ".join(f"WHEN {check.violation} THEN {index}" for index, check in enumerate(checks))
    return f"CASE {cases} END"
