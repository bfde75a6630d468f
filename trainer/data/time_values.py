"""Points in time given as options, and time ranges of raw events between two of them.

    selected = EventTimeRange.parse("2024-05-01", None, has_timestamp=True)
    too_early, too_late = selected.outside_sql("timestamp")

A date means seconds since 1970, in UTC where it has no time zone; a number is in the unit of the timestamps.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil, floor

from crossfade.base.errors import InputError

_MIN_MILLISECONDS = 100_000_000_000
"""Timestamps from here on are in milliseconds or a smaller unit: as seconds, this is the year 5138."""


def iso_seconds(text: str, *, begins: bool) -> int:
    """Convert an ISO date or time to seconds since 1970, in UTC where it has no time zone.

    A fraction of a second is rounded down or, where the time ``begins`` or ends a range, up.

    Raises:
        ValueError: ``text`` is not an ISO date or time.
    """
    moment = datetime.fromisoformat(text)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (ceil if begins else floor)(moment.timestamp())


def exceed_seconds_range(latest: int) -> bool:
    """Return whether timestamps up to ``latest`` must be in a smaller unit than seconds."""
    return latest >= _MIN_MILLISECONDS


@dataclass(frozen=True)
class TimeOption:
    """A point in time as the user gave it; prints as that option.

    Attributes:
        option: the option with its value, such as ``--since 2024-05-31``.
        value: the integer as given, in the unit of the timestamps, or seconds since 1970 if it ``is_date``.
        is_date: whether it was given as a date.
    """

    option: str
    value: int
    is_date: bool = False

    def __str__(self) -> str:
        return self.option


def parse_time_option(option: str, text: str, forms: str, *, begins: bool = False) -> TimeOption:
    """Parse ``text``, an integer or an ISO date or time; ``begins`` is as in ``iso_seconds``.

    Raises:
        InputError: it is neither; the message begins with ``option`` and ends with ``forms``.
    """
    if re.fullmatch(r"-?[0-9]{1,18}", text):
        return TimeOption(option, int(text))
    try:
        return TimeOption(option, iso_seconds(text, begins=begins), is_date=True)
    except ValueError:
        raise InputError(f"{option}: the time must be an integer or an ISO date; {forms}") from None


def check_seconds(moment: TimeOption, latest: object) -> None:
    """Reject a date where integer timestamps, up to ``latest``, cannot be seconds.

    Raises:
        InputError: they cannot.
    """
    if moment.is_date and isinstance(latest, int) and exceed_seconds_range(latest):
        raise InputError(
            f"{moment}: a date is compared in seconds, but the timestamps reach {latest}, which is not a time in "
            f"seconds; give an INTEGER in the unit of the column"
        )


@dataclass(frozen=True)
class EventTimeRange:
    """Events at or after ``since`` and before ``until``; None leaves that end open."""

    since: TimeOption | None = None
    until: TimeOption | None = None

    @staticmethod
    def parse(since: str | None, until: str | None, has_timestamp: bool) -> EventTimeRange:
        """Parse the options --since and --until.

        Raises:
            InputError: one is not a time, the range is empty, or events have no timestamp.
        """
        forms = "such as 1700000000 or 2024-05-31"
        low = parse_time_option(f"--since {since}", since, forms, begins=True) if since is not None else None
        high = parse_time_option(f"--until {until}", until, forms, begins=True) if until is not None else None
        for moment in (low, high):
            if moment is not None and not has_timestamp:
                raise InputError(f"{moment}: needs the time of each event; name its column with --timestamp")
        if low is not None and high is not None and low.value >= high.value:
            raise InputError(f"{low} {high}: the time range is empty; --until must be later than --since")
        return EventTimeRange(low, high)

    def dates(self) -> list[TimeOption]:
        """Return the ends that were given as dates."""
        return [moment for moment in (self.since, self.until) if moment is not None and moment.is_date]

    def outside_sql(self, timestamp: str) -> tuple[str, str]:
        """Return SQL conditions on the column ``timestamp``: before the range, and after it."""
        before = f"({timestamp} < {self.since.value})" if self.since is not None else "false"
        after = f"({timestamp} >= {self.until.value})" if self.until is not None else "false"
        return before, after
