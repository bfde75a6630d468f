"""Read the column ``timestamp`` of ``raw`` as seconds since 1970, in one or several formats.

    check_formats(connection, ["iso", "%d/%m/%Y %H:%M", "epoch-ms"])
    f"SELECT {formats_sql(['iso', '%d/%m/%Y %H:%M', 'epoch-ms'])} FROM raw"     # null where none fits

A value is read in the first format that fits it. Of several epoch units, the size of a number gives its unit.
"""

from __future__ import annotations

from collections.abc import Sequence

import duckdb

from crossfade.base.errors import OptionError
from crossfade.trainer.prepare.database import execute, literal

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
            execute(connection, f"SELECT try_strptime('', {literal(text)})")
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
