# ruff: noqa: S608  (what is put into SQL is quoted by `literal`, or is a number of this program)
"""Read the column ``timestamp`` of ``raw`` as seconds since 1970, in one or several formats.

    check_formats(connection, ["iso", "%d/%m/%Y %H:%M", "epoch-ms"])
    f"SELECT {formats_sql(['iso', '%d/%m/%Y %H:%M', 'epoch-ms'])} FROM raw"     # null where none fits

A value is read in the first format that fits it. Of several epoch units, the size of a number gives its unit.
"""

from __future__ import annotations

from collections.abc import Sequence

import duckdb

from crossfade.base.errors import InputError, Option, OptionError
from crossfade.trainer.prepare.database import execute, fetch_one, literal
from crossfade.trainer.prepare.input_files import RawFile
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


def epoch_unit(timestamp: int) -> str:
    """Return the unit of an integer timestamp, by its size."""
    return [unit for unit, scale in UNITS.items() if abs(timestamp) >= scale // 1000 * MAX_SECONDS][-1]


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


_MAX_SHOWN = 40
_DAYS_AND_MONTHS = ("%d{0}%m{0}%Y", "%m{0}%d{0}%Y", "%Y{0}%m{0}%d", "%d{0}%m{0}%y", "%m{0}%d{0}%y", "%y{0}%m{0}%d")
_DATES = (
    *(order.format(separator) for separator in "/.-" for order in _DAYS_AND_MONTHS),
    *("%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%d-%b-%Y", "%a %b %d %Y", "%d/%b/%Y"),
)
_TIMES = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p", ":%H:%M:%S %z", " %H:%M:%S %z")
COMMON_FORMATS = tuple(date + time for date in _DATES for time in _TIMES)
"""What is tried to suggest a format, the more usual first."""
_MAX_SUGGESTED = 3
_FORM = (
    f"CASE WHEN {IS_INTEGER} THEN 0 WHEN {ISO_SQL} IS NOT NULL THEN 1 "
    f"WHEN length(regexp_replace(timestamp, '[^0-9]', '', 'g')) >= 6 "  # else it is no date
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
    """Return formats of strptime for the values that are neither integers nor ISO, and notes of others that fit."""
    formats, notes, left = list[str](), list[str](), f"{_FORM} = {_OTHER}"
    fits = (f"epoch({strptime_sql(text)}) >= {_FIRST_YEAR}" for text in COMMON_FORMATS)
    tried = ", ".join(f"count(*) FILTER ({fit})" for fit in fits)
    while len(formats) < _MAX_SUGGESTED:
        counts = [int(str(count)) for count in fetch_one(connection, f"SELECT {tried} FROM raw WHERE {left}")]
        best, *others = sorted(range(len(counts)), key=counts.__getitem__, reverse=True)
        if not counts[best]:
            break
        formats.append(COMMON_FORMATS[best])
        as_good = [COMMON_FORMATS[other] for other in others if counts[other] == counts[best]]
        notes += [f"check whether '{as_good[0]}' is meant, which fits as well"] if as_good else []
        left += f" AND {strptime_sql(formats[-1])} IS NULL"
    return formats, notes


def _units(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Return the epoch units of the integers, by their numbers of digits."""
    digits = f"SELECT DISTINCT length(CAST(abs({INTEGER}) AS VARCHAR)) FROM raw WHERE {IS_INTEGER} ORDER BY 1"
    return list(dict.fromkeys(epoch_unit(10 ** (int(str(count)) - 1)) for (count,) in execute(connection, digits)))
