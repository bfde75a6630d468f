"""Points in time and spans given as options, and time ranges of raw events between two points.

    selected = EventTimeRange.parse("2024-05-01", None, has_timestamp=True)
    too_early, too_late = selected.outside_sql("timestamp")

A date means seconds since 1970, in UTC where it has no time zone; a number is in the unit of the timestamps.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil, floor

from crossfade.base.errors import Option, OptionError

_MIN_MILLISECONDS = 100_000_000_000
"""Timestamps from here on are in milliseconds or a smaller unit: as seconds, this is the year 5138."""
_SECONDS = {"h": 3600, "d": 86_400}


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
class TimeSpan:
    """A time between two events: ``length``, in the unit of the timestamps; seconds if ``in_seconds``."""

    text: str
    length: int
    in_seconds: bool

    @staticmethod
    def parse(text: object) -> TimeSpan:
        """Parse ``90d``, ``36h`` or an integer in the unit of the timestamps.

        Raises:
            ValueError: the text has none of these forms.
        """
        if isinstance(text, TimeSpan):
            return text
        found = re.fullmatch(r"([0-9]{1,15})([dh]?)", text := str(text))
        if not found or int(found[1]) < 1:
            raise ValueError(text)
        return TimeSpan(text, int(found[1]) * _SECONDS.get(found[2], 1), bool(found[2]))


@dataclass(frozen=True)
class TimeOption:
    """A point in time as the user gave it.

    Attributes:
        option: the option that gave it, with ``text`` as its value.
        text: such as 2024-05-31.
        value: the integer as given, in the unit of the timestamps, or seconds since 1970 if it ``is_date``.
        is_date: whether it was given as a date.
    """

    option: str
    text: str
    value: int
    is_date: bool = False

    @staticmethod
    def parse(option: str, text: str, time: str, forms: str, *, begins: bool = False) -> TimeOption:
        """Parse ``time``, an integer or an ISO date or time; ``begins`` is as in ``iso_seconds``.

        Raises:
            OptionError: it is neither; the message has the option, ``text``, and the ``forms`` that are expected.
        """
        if re.fullmatch(r"-?[0-9]{1,18}", time):
            return TimeOption(option, text, int(time))
        try:
            return TimeOption(option, text, iso_seconds(time, begins=begins), is_date=True)
        except ValueError:
            problem = "the time must be an integer or an ISO date"
            raise OptionError(option, found=text, problem=problem, expected=forms) from None


def check_seconds(moment: TimeOption, latest: object) -> None:
    """Reject a date where integer timestamps, up to ``latest``, cannot be seconds.

    Raises:
        InputError: they cannot.
    """
    if moment.is_date and isinstance(latest, int) and exceed_seconds_range(latest):
        raise OptionError(
            moment.option,
            found=moment.text,
            problem=f"a date is compared in seconds, but the timestamps reach {latest}, which is not a time in seconds",
            fix="give an INTEGER in the unit of the column",
        )


def check_span(option: str, span: TimeSpan, latest: object) -> None:
    """Reject a span in days or hours where integer timestamps, up to ``latest``, cannot be seconds.

    Raises:
        OptionError: they cannot.
    """
    if span.in_seconds and isinstance(latest, int) and exceed_seconds_range(latest):
        raise OptionError(
            option,
            found=span.text,
            problem=f"is counted in seconds, but the timestamps reach {latest}, which is not a time in seconds",
            fix="give an INTEGER in the unit of the column",
        )


@dataclass(frozen=True)
class EventTimeRange:
    """Events at or after ``since`` and before ``until``; None leaves that end open."""

    since: TimeOption | None = None
    until: TimeOption | None = None

    @staticmethod
    def parse(since: str | None, until: str | None, has_timestamp: bool) -> EventTimeRange:
        """Parse the options ``since`` and ``until``.

        Raises:
            OptionError: one is not a time, the range is empty, or events have no timestamp.
        """
        low, high = (
            None if text is None else TimeOption.parse(option, text, text, "1700000000 or 2024-05-31", begins=True)
            for option, text in (("since", since), ("until", until))
        )
        for moment in (low, high):
            if moment is not None and not has_timestamp:
                raise OptionError(
                    moment.option,
                    found=moment.text,
                    problem="needs the time of each event",
                    fix=("name its column with ", Option("timestamp")),
                )
        if low is not None and high is not None and low.value >= high.value:
            problem = ("the time range is empty; it must be later than ", Option("since", low.text))
            raise OptionError("until", found=high.text, problem=problem)
        return EventTimeRange(low, high)

    def dates(self) -> list[TimeOption]:
        """Return the ends that were given as dates."""
        return [moment for moment in (self.since, self.until) if moment is not None and moment.is_date]

    def outside_sql(self, timestamp: str) -> tuple[str, str]:
        """Return SQL conditions on the column ``timestamp``: before the range, and after it."""
        before = f"({timestamp} < {self.since.value})" if self.since is not None else "false"
        after = f"({timestamp} >= {self.until.value})" if self.until is not None else "false"
        return before, after
