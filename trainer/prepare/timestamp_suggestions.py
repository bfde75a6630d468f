# ruff: noqa: S608  (what is put into SQL is quoted by `literal`, or is a number of this program)
"""Suggest the formats of a column of timestamps that are not all integers, nor all ISO dates.

    error = find_unnamed_formats(connection, file, "at")
    str(error)      # … name them all: timestamp_format iso '%d/%m/%Y %H:%M' epoch-s ('31/05/2024 20:15' fits only …)

A value such as 31/05/2024 20:15 has the pattern ``#/#/%Y %R``. Of the formats that a pattern may stand for, the one
that fits most values is suggested: a day above 12 decides between day and month first.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import duckdb

from crossfade.base.errors import InputError, option_named
from crossfade.trainer.prepare.database import execute, fetch_one, literal
from crossfade.trainer.prepare.input_files import RawFile
from crossfade.trainer.prepare.text_records import find_place, find_records
from crossfade.trainer.prepare.timestamp_formats import (
    INTEGER,
    IS_INTEGER,
    ISO,
    ISO_SQL,
    MAX_SECONDS,
    UNITS,
    strptime_sql,
)

_DATE_DIGITS = 6
_MAX_PATTERNS = 6
_MAX_SHOWN = 40
_PATTERNS = (
    (r"\b[A-Za-z]{3}\b", "%b"),
    (r"\b[A-Za-z]{4,}\b", "%B"),
    (r"(?i)([0-9] ?)[ap]m\b", r"\1%p"),
    (r"(:[0-9]{2} ?)[+-][0-9]{2}:?[0-9]{2}$", r"\1%z"),
    (r"[0-9]{1,2}:[0-9]{2}:[0-9]{2}\.[0-9]+", "%X"),
    (r"[0-9]{1,2}:[0-9]{2}:[0-9]{2}", "%T"),
    (r"[0-9]{1,2}:[0-9]{2}", "%R"),
    (r"[0-9]{4}", "%Y"),
    (r"[0-9]{1,2}", "#"),
)
"""What becomes of a value, in turn: # stands for a day, a month, or a year of two digits."""
_PATTERN_SQL = reduce(
    lambda text, step: f"regexp_replace({text}, {literal(step[0])}, {literal(step[1])}, 'g')", _PATTERNS, "timestamp"
)
_TIMES = {"%X": "%H:%M:%S.%f", "%T": "%H:%M:%S", "%R": "%H:%M"}
_FORM = (
    f"CASE WHEN {IS_INTEGER} THEN 0 WHEN {ISO_SQL} IS NOT NULL THEN 1 "
    f"WHEN length(regexp_replace(timestamp, '[^0-9]', '', 'g')) >= {_DATE_DIGITS} "
    r"AND NOT regexp_matches(timestamp, '^\d{4}-\d\d-\d\d') THEN 2 END"
)
_OTHER = 2
_EXAMPLE = "iso '%d/%m/%Y %H:%M' epoch-s"


def find_unnamed_formats(
    connection: duckdb.DuckDBPyConnection, file: RawFile, column: str, first_row: int
) -> InputError | None:
    """Return an error if the texts of ``raw`` are of other formats than integers alone or ISO alone.

    Its message has examples, and suggests formats; rows are counted from ``first_row``.
    """
    found = execute(
        connection,
        f"SELECT min(position), arg_min(timestamp, position), form FROM (SELECT timestamp, position, {_FORM} AS form "
        "FROM raw) WHERE form IS NOT NULL GROUP BY form ORDER BY 1",
    )
    forms = {form for *_, form in found}
    formats, notes = _suggest(connection) if _OTHER in forms else ([], [])
    if len(forms) < 2 and not formats:
        return None
    positions = [position for position, *_ in found[:2] if isinstance(position, int)]
    examples = [
        "'{}' ({} {})".format(str(value)[:_MAX_SHOWN], *find_place(position, record, first_row))
        for position, (_, value, _), record in zip(positions, found, find_records(file, positions), strict=False)
    ]
    wrong = f"mixes timestamps of several formats, such as {' and '.join(examples)}; name them all"
    if len(forms) < 2:
        wrong = f"has timestamps of another format than ISO, such as {examples[0]}; name it"
    iso = [ISO] if 1 in forms else []
    if _OTHER in forms and not formats:
        suggested = f", as in {option_named('timestamp_format', _EXAMPLE)}"
    else:
        quoted = [f"'{text}'" for text in formats]
        units = _units(connection) if 0 in forms else []
        suggested = f": {option_named('timestamp_format', ' '.join([*iso, *quoted, *units]))}"
    why = f" ({'; '.join(notes)})" if notes else ""
    return InputError(f"{file}: column '{column}' {wrong}{suggested}{why}")


def _suggest(connection: duckdb.DuckDBPyConnection) -> tuple[list[str], list[str]]:
    """Return formats of strptime for the values that are neither integers nor ISO, and what decided between several."""
    patterns = execute(
        connection,
        f"SELECT {_PATTERN_SQL} AS pattern FROM raw WHERE {_FORM} = {_OTHER} GROUP BY 1 "
        f"ORDER BY count(*) DESC, 1 LIMIT {_MAX_PATTERNS}",
    )
    formats: dict[str, None] = {}
    notes: dict[str, None] = {}
    for (pattern,) in patterns:
        of_pattern = f"FROM raw WHERE {_PATTERN_SQL} = {literal(str(pattern))}"
        candidates = _candidates(str(pattern))
        fits = ", ".join(f"count({strptime_sql(text)})" for text in candidates)
        counts = fetch_one(connection, f"SELECT {fits} {of_pattern}") if candidates else ()
        fitting = dict(zip(candidates, (int(str(count)) for count in counts), strict=True))
        ranked = sorted(fitting, key=fitting.__getitem__, reverse=True)
        if not any(fitting.values()):
            continue
        formats[ranked[0]] = None
        if len(ranked) > 1:
            best, other = map(strptime_sql, ranked[:2])
            decisive, swapped = fetch_one(
                connection,
                f"SELECT arg_min(timestamp, position) FILTER ({best} IS NOT NULL AND {other} IS NULL), "
                f"count(*) FILTER ({best} IS NULL AND {other} IS NOT NULL) {of_pattern}",
            )
            if decisive is None:
                reason = "" if "%y" in ranked[0] else "no day is above 12, so "
                notes[f"{reason}check whether '{ranked[1]}' is meant"] = None
            else:
                notes[f"'{str(decisive)[:_MAX_SHOWN]}' fits only '{ranked[0]}'"] = None
            if swapped:
                formats[ranked[1]] = None
                notes["days and months are in both orders, so check those that fit both"] = None
    return list(formats), list(notes)


def _candidates(pattern: str) -> list[str]:
    """Return the formats of strptime that ``pattern`` may stand for, the most usual first."""
    for marker, written in _TIMES.items():
        pattern = pattern.replace(marker, written.replace("%H", "%I") if "%p" in pattern else written)
    numbers, year = pattern.count("#"), pattern.find("%Y")
    orders: list[tuple[str, ...]] = []
    if "%b" in pattern or "%B" in pattern:
        orders = [("%d",)] if year >= 0 else [("%d", "%y")]
    elif year >= 0:
        orders = [("%m", "%d"), ("%d", "%m")] if year < pattern.find("#") else [("%d", "%m"), ("%m", "%d")]
    else:
        orders = [("%d", "%m", "%y"), ("%m", "%d", "%y"), ("%y", "%m", "%d")]
    return [
        reduce(lambda text, part: text.replace("#", part, 1), order, pattern)
        for order in orders
        if len(order) == numbers
    ]


def _units(connection: duckdb.DuckDBPyConnection) -> Sequence[str]:
    """Return the epoch units of the integers, by their sizes."""
    limits = [MAX_SECONDS * scale for scale in UNITS.values()][:-1]
    found = execute(
        connection,
        f"SELECT DISTINCT {' + '.join(f'(abs({INTEGER}) >= {limit})::INTEGER' for limit in limits)} AS unit FROM raw "
        f"WHERE {IS_INTEGER} ORDER BY unit",
    )
    return [list(UNITS)[int(str(unit))] for (unit,) in found]
