# ruff: noqa: S608  (what is put into SQL is quoted by `literal`, or is a number of this program)
"""Read the column ``timestamp`` of ``raw`` as seconds since 1970, in one or several formats, and find mixed formats.

    check_formats(connection, ["iso", "%d/%m/%Y %H:%M", "epoch-ms"])
    f"SELECT {formats_sql(['iso', '%d/%m/%Y %H:%M', 'epoch-ms'])} FROM raw"     # null where none fits

A value is read in the first format that fits it. Of several epoch units, the size of a number gives its unit.
"""

from __future__ import annotations

from collections.abc import Sequence

import duckdb

from crossfade.kvstore.errors import InputError
from crossfade.trainer.prepare.database import execute, literal
from crossfade.trainer.prepare.input_files import RawFile
from crossfade.trainer.prepare.raw_files import find_place, find_records

OPTION = "--timestamp-format"
ISO = "iso"
ISO_SQL = (  # in the session's zone, UTC, if the text names none
    "CASE WHEN isfinite(TRY_CAST(timestamp AS TIMESTAMPTZ)) "
    "THEN CAST(floor(epoch(TRY_CAST(timestamp AS TIMESTAMPTZ))) AS BIGINT) END"
)
_INTEGER = "TRY_CAST(timestamp AS BIGINT)"
_IS_INTEGER = f"(CAST(timestamp AS VARCHAR) = CAST({_INTEGER} AS VARCHAR))"
_UNITS = {"epoch-s": 1, "epoch-ms": 10**3, "epoch-us": 10**6, "epoch-ns": 10**9}
_MAX_SECONDS = 10**11
"""Times in seconds are below this (the year 5138), and those in a unit of n a second below n times this."""
_DATE_DIGITS = 6


def check_formats(connection: duckdb.DuckDBPyConnection, formats: Sequence[str]) -> None:
    """Check that each of ``formats`` is one.

    Raises:
        InputError: one is not.
    """
    for text in formats:
        if text == ISO or text in _UNITS:
            continue
        try:
            execute(connection, f"SELECT try_strptime('', {literal(text)})")
        except duckdb.Error:
            is_format = False
        else:
            is_format = "%" in text
        if not is_format:
            raise InputError(
                f"{OPTION} {text}: expected a format of strptime, such as '%d/%m/%Y %H:%M', or one of {ISO}, "
                f"{', '.join(_UNITS)}"
            )


def formats_sql(formats: Sequence[str]) -> str:
    """Return SQL of the timestamp in seconds, null if it has none of ``formats``."""
    units = [unit for unit in _UNITS if unit in formats]
    return f"coalesce({', '.join(_format_sql(text, units) for text in formats)})"


def _format_sql(text: str, units: Sequence[str]) -> str:
    if text == ISO:
        return ISO_SQL
    if text not in _UNITS:
        return f"CAST(floor(epoch(try_strptime(CAST(timestamp AS VARCHAR), {literal(text)}))) AS BIGINT)"
    per_second = _UNITS[text]
    condition = _IS_INTEGER
    if text != units[0]:
        condition += f" AND abs({_INTEGER}) >= {_UNITS[units[units.index(text) - 1]] * _MAX_SECONDS}"
    if text != units[-1]:
        condition += f" AND abs({_INTEGER}) < {per_second * _MAX_SECONDS}"
    remainder = f"((({_INTEGER} % {per_second}) + {per_second}) % {per_second})"  # of floored division
    return f"CASE WHEN {condition} THEN ({_INTEGER} - {remainder}) // {per_second} END"


def find_mixed_formats(connection: duckdb.DuckDBPyConnection, file: RawFile, column: str) -> InputError | None:
    """Return an error if the texts of ``raw`` are of several formats: integers, ISO, and others with many digits.

    Its message has an example of two.
    """
    digits = "length(regexp_replace(timestamp, '[^0-9]', '', 'g'))"
    found = execute(
        connection,
        f"SELECT min(position), arg_min(timestamp, position) FROM (SELECT timestamp, position, CASE WHEN {_IS_INTEGER} "
        f"THEN 0 WHEN {ISO_SQL} IS NOT NULL THEN 1 WHEN {digits} >= {_DATE_DIGITS} "
        r"AND NOT regexp_matches(timestamp, '^\d{4}-\d\d-\d\d') THEN 2 END AS form FROM raw) "
        "WHERE form IS NOT NULL GROUP BY form ORDER BY 1 LIMIT 2",
    )
    if len(found) < 2:
        return None
    positions = [position for position, _ in found if isinstance(position, int)]
    examples = [
        "'{}' ({} {})".format(str(value)[:40], *find_place(position, record))
        for position, (_, value), record in zip(positions, found, find_records(file, positions), strict=True)
    ]
    return InputError(
        f"{file}: column '{column}' mixes timestamps of several formats, such as {' and '.join(examples)}; name them "
        f"all, as in {OPTION} iso '%d/%m/%Y %H:%M' epoch-s"
    )
