# ruff: noqa: S608  (what is put into SQL is quoted by `literal`, or is a number of this program)
"""Read the column ``timestamp`` of ``raw`` as seconds since 1970, in one or several formats.

    check_formats(connection, ["iso", "%d/%m/%Y %H:%M", "epoch-ms"])
    f"SELECT {formats_sql(['iso', '%d/%m/%Y %H:%M', 'epoch-ms'])} FROM raw"     # null where none fits

A value is read in the first format that fits it. Of several epoch units, the size of a number gives its unit.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import duckdb

from crossfade.base.errors import InputError, Option, OptionError
from crossfade.trainer.prepare.database import execute, fetch_one, literal
from crossfade.trainer.prepare.input_files import RawFile
from crossfade.trainer.prepare.raw_files import Kind
from crossfade.trainer.prepare.text_records import find_place, find_records

ISO = "iso"
_FIRST_YEAR = -30_610_224_000
"""The year 1000 in seconds since 1970: 31-05-24 is no ISO date of the year 31."""
_ISO_SECONDS = "epoch(TRY_CAST(timestamp AS TIMESTAMPTZ))"
ISO_SQL = (  # in the session's zone, UTC, if the text names none
    f"CASE WHEN isfinite(TRY_CAST(timestamp AS TIMESTAMPTZ)) AND {_ISO_SECONDS} >= {_FIRST_YEAR} "
    f"THEN CAST(floor({_ISO_SECONDS}) AS BIGINT) END"
)
INTEGER = "TRY_CAST(timestamp AS BIGINT)"
IS_INTEGER = f"(CAST(timestamp AS VARCHAR) = CAST({INTEGER} AS VARCHAR))"
UNITS = {"epoch-s": 1, "epoch-ms": 10**3, "epoch-us": 10**6, "epoch-ns": 10**9}
MAX_SECONDS = 10**11
"""Times in seconds are below this (the year 5138), and those in a unit of n a second below n times this."""


def check_formats(connection: duckdb.DuckDBPyConnection, formats: Sequence[str]) -> None:
    """Check that each of ``formats`` is one.

    Raises:
        InputError: one is not.
    """
    for text in formats:
        if text == ISO or text in UNITS:
            continue
        try:
            connection.execute(f"SELECT try_strptime('', {literal(text)})")
        except duckdb.Error:
            is_format = False
        else:
            is_format = "%" in text
        if not is_format:
            raise OptionError(
                "timestamp_format",
                found=text,
                expected=f"a format of strptime, such as '%d/%m/%Y %H:%M', or one of {ISO}, {', '.join(UNITS)}",
            )


def formats_sql(formats: Sequence[str]) -> str:
    """Return SQL of the timestamp in seconds, null if it has none of ``formats``."""
    units = [unit for unit in UNITS if unit in formats]
    return f"coalesce({', '.join(_format_sql(text, units) for text in formats)})"


def strptime_sql(text: str) -> str:
    """Return SQL of the timestamp by the format ``text`` of strptime, null if it has another one."""
    return f"try_strptime(CAST(timestamp AS VARCHAR), {literal(text)})"


def _format_sql(text: str, units: Sequence[str]) -> str:
    if text == ISO:
        return ISO_SQL
    if text not in UNITS:
        return f"CAST(floor(epoch({strptime_sql(text)})) AS BIGINT)"
    per_second = UNITS[text]
    condition = IS_INTEGER
    if text != units[0]:
        condition += f" AND abs({INTEGER}) >= {UNITS[units[units.index(text) - 1]] * MAX_SECONDS}"
    if text != units[-1]:
        condition += f" AND abs({INTEGER}) < {per_second * MAX_SECONDS}"
    remainder = f"((({INTEGER} % {per_second}) + {per_second}) % {per_second})"  # of floored division
    return f"CASE WHEN {condition} THEN ({INTEGER} - {remainder}) // {per_second} END"


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
        suggested = (", as in ", Option("timestamp_format", _EXAMPLE))
    else:
        quoted = [f"'{text}'" for text in formats]
        units = _units(connection) if 0 in forms else []
        suggested = (": ", Option("timestamp_format", " ".join([*iso, *quoted, *units])))
    why = f" ({'; '.join(notes)})" if notes else ""
    return InputError(f"{file}: column '{column}' {wrong}", suggested, f"{why}")


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


_logger = logging.getLogger(__name__)
_HAS_ZONE = r"regexp_matches(trim(timestamp), ':\d\d(\.\d+)? ?([zZ]|UTC|[+-]\d\d(:?\d\d)?)$')"


class TimestampAmbiguity:
    """What timestamps leave open.

    Attributes:
        without_zone: whether a time had no zone, and so was read as UTC.
    """

    def __init__(self, formats: Sequence[str]) -> None:
        self.without_zone = False
        self._formats = formats
        swapped = {text: _swap(text) for text in formats if "%d" in text and "%m" in text}
        self._undecided = {text: other for text, other in swapped.items() if other not in formats}
        self._used: set[str] = set()

    def read(self, connection: duckdb.DuckDBPyConnection, kind: Kind) -> None:
        """Read the timestamps of ``raw``, a column of this ``kind``."""
        if kind == "datetime":
            types = execute(connection, "SELECT typeof(timestamp) FROM raw LIMIT 1")
            self.without_zone |= any("ZONE" not in str(name) for (name,) in types)
        if kind not in ("text", "string"):
            return
        self.without_zone = self.without_zone or _occurs(connection, self._zoneless_sql())
        for text, other in list(self._undecided.items()):
            earlier = [strptime_sql(each) for each in self._formats[: self._formats.index(text)] if "%" in each]
            fits = " AND ".join([f"{strptime_sql(text)} IS NOT NULL", *(f"{each} IS NULL" for each in earlier)])
            if _occurs(connection, f"{fits} AND {strptime_sql(other)} IS NULL"):
                del self._undecided[text]
            elif _occurs(connection, fits):
                self._used.add(text)

    def state(self) -> dict[str, Any]:
        """Return what was read as JSON for ``absorb``."""
        return {"without_zone": self.without_zone, "undecided": self._undecided, "used": sorted(self._used)}

    def absorb(self, state: Mapping[str, Any]) -> None:
        """Add what was read of another file, its ``state``."""
        self.without_zone |= state["without_zone"]
        self._undecided = {text: other for text, other in self._undecided.items() if text in state["undecided"]}
        self._used |= set(state["used"])

    def warn(self) -> None:
        """Log a warning for each format that day and month could be swapped in, as far as the values show."""
        for text, other in self._undecided.items():
            if text in self._used:
                _logger.warning(
                    f"times of the format '{text}': no day is above 12, so that every value fits '{other}' too; check "
                    "the order of day and month"
                )

    def _zoneless_sql(self) -> str:
        of_text = [text for text in self._formats if "%" in text and "%z" not in text and "%Z" not in text]
        conditions = [f"{strptime_sql(text)} IS NOT NULL" for text in of_text]
        if ISO in self._formats or not self._formats:
            conditions.append(f"{IS_INTEGER} IS NOT TRUE AND {ISO_SQL} IS NOT NULL AND NOT {_HAS_ZONE}")
        return " OR ".join(f"({condition})" for condition in conditions) or "false"


def _swap(text: str) -> str:
    return text.replace("%d", "%D").replace("%m", "%d").replace("%D", "%m")


def _occurs(connection: duckdb.DuckDBPyConnection, condition: str) -> bool:
    return bool(execute(connection, f"SELECT 1 FROM raw WHERE {condition} LIMIT 1"))
