"""Points in time that an option names, and the window that two of them make."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil, floor

from kvstore.errors import InputError

_MILLISECONDS_FROM = 100_000_000_000  # in seconds, the year 5138


def iso_seconds(text: str, *, begins: bool) -> int:
    """Seconds since 1970 of an ISO date or time, UTC where it names no zone.

    Within a second it is the second that it lies in, or the next one where it ``begins`` or ends something.

    Raises:
        ValueError: it is none.
    """
    moment = datetime.fromisoformat(text)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (ceil if begins else floor)(moment.timestamp())


def exceed_seconds_range(latest: int) -> bool:
    """Whether timestamps of which ``latest`` is the last must be in a smaller unit than seconds."""
    return latest >= _MILLISECONDS_FROM


@dataclass(frozen=True)
class TimeOption:
    """``value`` is an integer as given, in the unit of the timestamps, or seconds since 1970 where it ``is_date``.

    It prints as the ``option`` that the user typed.
    """

    option: str
    value: int
    is_date: bool = False

    def __str__(self) -> str:
        """The option."""
        return self.option


def parse_time_option(option: str, text: str, forms: str, *, begins: bool = False) -> TimeOption:
    """Read ``text``: an integer, or an ISO date or time (UTC where it names no zone). Messages name ``option``.

    ``begins`` is that of ``iso_seconds``.

    Raises:
        InputError: it is neither; the message ends with ``forms``.
    """
    if re.fullmatch(r"-?[0-9]{1,18}", text):
        return TimeOption(option, int(text))
    try:
        return TimeOption(option, iso_seconds(text, begins=begins), is_date=True)
    except ValueError:
        raise InputError(f"{option}: the time must be an integer or an ISO date; {forms}") from None


def check_seconds(moment: TimeOption, latest: object) -> None:
    """Refuse a date where integer timestamps, of which ``latest`` is the last, cannot be seconds.

    Raises:
        InputError: they cannot.
    """
    if moment.is_date and isinstance(latest, int) and exceed_seconds_range(latest):
        raise InputError(
            f"{moment}: a date is compared in seconds, but the timestamps reach {latest}, which is no time in "
            f"seconds; give an INTEGER in the unit of the column"
        )


@dataclass(frozen=True)
class EventTimeRange:
    """The events at or after ``since`` and before ``until``; None leaves that end open."""

    since: TimeOption | None = None
    until: TimeOption | None = None

    @staticmethod
    def parse(since: str | None, until: str | None, has_timestamp: bool) -> EventTimeRange:
        """The window of the options --since and --until.

        Raises:
            InputError: one is no point in time, they leave nothing between them, or there is no timestamp to compare.
        """
        forms = "such as 1700000000 or 2024-05-31"
        low = parse_time_option(f"--since {since}", since, forms, begins=True) if since is not None else None
        high = parse_time_option(f"--until {until}", until, forms, begins=True) if until is not None else None
        for moment in (low, high):
            if moment is not None and not has_timestamp:
                raise InputError(f"{moment}: needs to know when each event happened; name the column with --timestamp")
        if low is not None and high is not None and low.value >= high.value:
            raise InputError(f"{low} {high}: there is no time between the two; --until must be later")
        return EventTimeRange(low, high)

    def dates(self) -> list[TimeOption]:
        """Those of its ends that were given as dates."""
        return [moment for moment in (self.since, self.until) if moment is not None and moment.is_date]

    def outside_sql(self, timestamp: str) -> tuple[str, str]:
        """SQL conditions on ``timestamp``: that it is before the window, and that it is after it."""
        before = f"({timestamp} < {self.since.value})" if self.since is not None else "false"
        after = f"({timestamp} >= {self.until.value})" if self.until is not None else "false"
        return before, after
