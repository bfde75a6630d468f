"""Time ranges: of interactions that are read, of raw events that are prepared, and how many rows of a file lie in one.

    time_range = TimeRange.of("2024-05-01", None)               # since <= timestamp < until
    row_counts = count_within(reader, manifest, split, time_range, reporter)    # for each row group of each file

    selected = EventTimeRange.parse("2024-05-01", None, has_timestamp=True)     # of options
    too_early, too_late = selected.outside_sql("timestamp")

A date means seconds since 1970, in UTC where it has no time zone; a number is in the unit of the timestamps. The footer
of a file has the smallest and the largest timestamp of each row group; where these decide, nothing else of it is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil, floor
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from crossfade.base.arrays import BoolArray, IntArray
from crossfade.base.errors import InputError
from crossfade.trainer.data.manifest import TIMESTAMP, DataFile, DatasetManifest, Split
from crossfade.trainer.data.parquet import ParquetFiles
from crossfade.trainer.data.reporter import ProgressReporter

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


TimeValue = int | str


def parse_time_value(value: TimeValue) -> tuple[int, bool]:
    """Return the timestamp as an integer, rounded up to a second, and whether it was given as a date.

    Raises:
        ValueError: it is neither an integer nor an ISO date.
    """
    if isinstance(value, int):
        return value, False
    try:
        return iso_seconds(value, begins=True), True
    except ValueError:
        raise ValueError(f"'{value}' is neither an integer nor an ISO date such as 2024-05-31") from None


@dataclass(frozen=True)
class TimeRange:
    """Timestamps from ``since`` on and before ``until``; None leaves that end open.

    Attributes:
        since: the first timestamp.
        until: the first timestamp after the range.
        dated: whether an end was given as a date, so that timestamps must be in seconds.
        text: the range as the job gave it.
    """

    since: int | None
    until: int | None
    dated: bool
    text: str

    @staticmethod
    def of(since: TimeValue | None, until: TimeValue | None) -> TimeRange | None:
        """Parse the ends of a range; return None if both are open.

        Raises:
            ValueError: an end is not a time, or the range is empty.
        """
        if since is None and until is None:
            return None
        limits = [None if value is None else parse_time_value(value) for value in (since, until)]
        first, last = (None if limit is None else limit[0] for limit in limits)
        if first is not None and last is not None and first >= last:
            raise ValueError(f"since '{since}' is not before until '{until}': the time range is empty")
        text = [f"{name} {value}" for name, value in (("since", since), ("until", until)) if value is not None]
        return TimeRange(first, last, any(limit is not None and limit[1] for limit in limits), " ".join(text))

    def __str__(self) -> str:
        return self.text

    def contains(self, timestamps_N: IntArray) -> BoolArray:
        """Return which of ``timestamps_N`` lie in the range, bool (N,)."""
        inside_N = np.ones(len(timestamps_N), dtype=np.bool_)
        if self.since is not None:
            inside_N &= timestamps_N >= self.since
        if self.until is not None:
            inside_N &= timestamps_N < self.until
        return inside_N

    def decide(self, low: int, high: int) -> bool | None:
        """Return whether all timestamps from ``low`` to ``high`` lie in the range, or none does; None if it depends."""
        inside = self.contains(np.array([low, high]))
        if inside.all():
            return True
        before = self.since is not None and high < self.since
        after = self.until is not None and low >= self.until
        return False if before or after else None


class Reader(Protocol):
    """What ``count_within`` needs of an ``InteractionReader``, which imports this module."""

    @property
    def files(self) -> ParquetFiles:
        """The files of the dataset."""

    def map(self, work: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        """Yield ``work(item)`` for each item, in order, computed in several threads."""


def count_within(
    reader: Reader, manifest: DatasetManifest, split: Split, time_range: TimeRange, reporter: ProgressReporter
) -> list[list[int]]:
    """Count the rows in ``time_range`` of each row group of each file of ``split``.

    Raises:
        InputError: the dataset has no timestamps, none in the range, or another unit than the seconds of a date;
            or a file cannot be read.
        StorageUnavailableError: storage does not answer.
    """
    where = reader.files.folder.uri
    if not manifest.has_timestamp:
        raise InputError(
            f"data.{time_range}: {where} has no timestamps; prepare the data with --timestamp COLUMN, or leave "
            "data.since and data.until out"
        )
    reporter.phase("count interactions by time", split.rows, "row")
    row_counts: list[list[int]] = []
    first, last = np.iinfo(np.int64).max, np.iinfo(np.int64).min
    for counts, low, high in reader.map(lambda file: _count_file(reader.files, file, time_range), split.files):
        row_counts.append(counts)
        first, last = min(first, low), max(last, high)
        reporter.advance(split.files[len(row_counts) - 1].rows)
    if time_range.dated and exceed_seconds_range(last):
        raise InputError(
            f"data.{time_range}: a date is compared in seconds, but the timestamps of {where} reach {last}, which is "
            "not a time in seconds; give an integer in the unit of the column"
        )
    if not any(map(sum, row_counts)):
        raise InputError(
            f"data.{time_range}: no interaction of {where} is in the time range (its timestamps run from {first} to "
            f"{last}); there is nothing to train on"
        )
    return row_counts


def _count_file(files: ParquetFiles, file: DataFile, time_range: TimeRange) -> tuple[list[int], int, int]:
    """Return the rows of each row group that lie in ``time_range``, and the file's first and last timestamp."""
    ranges = files.integer_ranges(file, TIMESTAMP)
    counts: list[int] = []
    lows, highs = [np.iinfo(np.int64).max], [np.iinfo(np.int64).min]
    for index, (rows, known) in enumerate(zip(file.row_groups, ranges, strict=True)):
        decided = None if known is None else time_range.decide(*known)
        if not rows:
            counts.append(0)
        elif known is not None and decided is not None:
            counts.append(rows if decided else 0)
            lows.append(known[0])
            highs.append(known[1])
        else:
            column = files.column(file, index, TIMESTAMP, pa.int64())
            counts.append(int(np.count_nonzero(time_range.contains(column))))
            lows.append(int(column.min()))
            highs.append(int(column.max()))
    return counts, int(min(lows)), int(max(highs))
