# ruff: noqa: S608  (what is put into SQL is quoted by `literal`, or is a number of this program)
"""Find what the timestamps of event files leave open: the order of day and month, and the zone.

    ambiguity = TimestampAmbiguity(["%d/%m/%Y"])
    ambiguity.read(connection, "text")          # once for each file
    ambiguity.warn()                            # no day was above 12
    ambiguity.without_zone                      # whether a time had no zone

Queries end at the first row that decides, and later files are not asked again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import duckdb

from crossfade.trainer.prepare.database import execute
from crossfade.trainer.prepare.raw_files import Kind
from crossfade.trainer.prepare.timestamp_formats import IS_INTEGER, ISO, ISO_SQL, strptime_sql

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
