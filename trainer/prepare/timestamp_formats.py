"""Read the column ``timestamp`` of ``raw`` as seconds since 1970, in one or several formats.

    check_formats(connection, ["iso", "%d/%m/%Y %H:%M", "epoch-ms"])
    f"SELECT {formats_sql(['iso', '%d/%m/%Y %H:%M', 'epoch-ms'])} FROM raw"     # null where none fits

A value is read in the first format that fits it. Of several epoch units, the size of a number gives its unit.
"""

from __future__ import annotations

from collections.abc import Sequence

import duckdb

from crossfade.base.errors import OptionError
from crossfade.trainer.prepare.database import literal

ISO = "iso"
_FIRST_YEAR = -30_610_224_000
"""The year 1000 in seconds since 1970: 31-05-24 is no ISO date of the year 31."""
_ISO_SECONDS = "epoch(TRY_CAST(timestamp AS TIMESTAMPTZ))"
ISO_SQL = (  # in the session's zone, UTC, if the text names none
    f"CASE WHEN isfinite(TRY_CAST(timestamp AS TIMESTAMPTZ)) AND {_ISO_SECONDS} >= {_FIRST_YEAR} "
    f"THEN CAST(floor({_ISO_SECONDS}) AS BIGINT) END"
)
_INTEGER = "TRY_CAST(timestamp AS BIGINT)"
_IS_INTEGER = f"(CAST(timestamp AS VARCHAR) = CAST({_INTEGER} AS VARCHAR))"
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


def _format_sql(text: str, units: Sequence[str]) -> str:
    if text == ISO:
        return ISO_SQL
    if text not in UNITS:
        return f"CAST(floor(epoch(try_strptime(CAST(timestamp AS VARCHAR), {literal(text)}))) AS BIGINT)"
    per_second = UNITS[text]
    condition = _IS_INTEGER
    if text != units[0]:
        condition += f" AND abs({_INTEGER}) >= {UNITS[units[units.index(text) - 1]] * MAX_SECONDS}"
    if text != units[-1]:
        condition += f" AND abs({_INTEGER}) < {per_second * MAX_SECONDS}"
    remainder = f"((({_INTEGER} % {per_second}) + {per_second}) % {per_second})"  # of floored division
    return f"CASE WHEN {condition} THEN ({_INTEGER} - {remainder}) // {per_second} END"
