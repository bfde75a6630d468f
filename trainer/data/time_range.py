"""Time ranges of interactions: ``since`` <= timestamp < ``until``, how many lie in one, and weights by age.

    time_range = TimeRange.of("2024-05-01", None)
    row_counts = count_within(reader, manifest, split, time_range, reporter)    # for each row group of each file
    factor_N = AgeWeights(half_life=2_592_000, latest=1_704_067_200, mean=0.3).factors(timestamp_N)

A date means seconds since 1970, in UTC where it has no time zone; a number is in the unit of the timestamps. The footer
of a file has the smallest and the largest timestamp of each row group; where these decide, nothing else of it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from crossfade.base.arrays import BoolArray, FloatArray, IntArray
from crossfade.base.errors import InputError, command
from crossfade.trainer.data.column_names import TIMESTAMP
from crossfade.trainer.data.manifest import DataFile, DatasetManifest, Split
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.data.time_values import exceed_seconds_range, iso_seconds

if TYPE_CHECKING:
    from crossfade.trainer.data.parquet import ParquetFiles

_MAX_HALVINGS = 100.0
"""Older interactions weigh no less, so that weights stay normal float32 numbers and keep their sign."""

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
            f"data.{time_range}: {where} has no timestamps; prepare the data with "
            f"{command('prepare', timestamp='COLUMN')}, or leave data.since and data.until out"
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
    import pyarrow as pa  # takes time to import, and the schema of jobs imports this module

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


@dataclass(frozen=True)
class AgeWeights:
    """Factors of weights, which halve with each ``half_life`` of age before ``latest``, divided by their ``mean``."""

    half_life: int
    latest: int
    mean: float

    def factors(self, timestamp_N: IntArray) -> FloatArray:
        """Return the factor of the weight of an interaction at each time, float32 (N,)."""
        factor_N: FloatArray = (np.exp2(self._halvings(timestamp_N)) / self.mean).astype(np.float32)
        return factor_N

    def _halvings(self, timestamp_N: IntArray) -> FloatArray:
        """Return minus the age in half-lives, float64 (N,); float, since ages of integers may overflow."""
        return np.clip((timestamp_N.astype(np.float64) - self.latest) / self.half_life, -_MAX_HALVINGS, 0.0)
