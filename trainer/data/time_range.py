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
from crossfade.base.errors import InputError, Option, OptionError, command
from crossfade.trainer.data.column_names import TIMESTAMP
from crossfade.trainer.data.manifest import DataFile, DatasetManifest, Split
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.data.time_values import TimeOption, exceed_seconds_range

if TYPE_CHECKING:
    from crossfade.trainer.data.parquet import ParquetFiles

_MAX_HALVINGS = 100.0
"""Older interactions weigh no less, so that weights stay normal float32 numbers and keep their sign."""

TimeValue = int | str


@dataclass(frozen=True)
class TimeRange:
    """Timestamps from ``since`` on and before ``until``; None leaves that end open."""

    since: TimeOption | None = None
    until: TimeOption | None = None

    @staticmethod
    def of(since: TimeValue | None, until: TimeValue | None) -> TimeRange:
        """Parse the ends of a range, the options ``since`` and ``until``.

        Raises:
            OptionError: an end is not a time, or the range is empty.
        """
        first, last = _end("since", since), _end("until", until)
        if first is not None and last is not None and first.value >= last.value:
            problem = ("the time range is empty; it must be later than ", Option("since", first.text))
            raise OptionError("until", found=last.text, problem=problem)
        return TimeRange(first, last)

    def ends(self) -> list[TimeOption]:
        """Return the ends that are given."""
        return [moment for moment in (self.since, self.until) if moment is not None]

    def dates(self) -> list[TimeOption]:
        """Return the ends that were given as dates, with which timestamps must be in seconds."""
        return [moment for moment in self.ends() if moment.is_date]

    def __str__(self) -> str:
        return " ".join(f"{moment.option} {moment.text}" for moment in self.ends())

    def outside_sql(self, timestamp: str) -> tuple[str, str]:
        """Return SQL conditions on the column ``timestamp``: before the range, and after it."""
        before = "false" if self.since is None else f"({timestamp} < {self.since.value})"
        after = "false" if self.until is None else f"({timestamp} >= {self.until.value})"
        return before, after

    def contains(self, timestamps_N: IntArray) -> BoolArray:
        """Return which of ``timestamps_N`` lie in the range, bool (N,)."""
        inside_N = np.ones(len(timestamps_N), dtype=np.bool_)
        if self.since is not None:
            inside_N &= timestamps_N >= self.since.value
        if self.until is not None:
            inside_N &= timestamps_N < self.until.value
        return inside_N

    def decide(self, low: int, high: int) -> bool | None:
        """Return whether all timestamps from ``low`` to ``high`` lie in the range, or none does; None if it depends."""
        inside = self.contains(np.array([low, high]))
        if inside.all():
            return True
        before = self.since is not None and high < self.since.value
        after = self.until is not None and low >= self.until.value
        return False if before or after else None


def _end(option: str, value: TimeValue | None) -> TimeOption | None:
    if value is None or isinstance(value, int):
        return None if value is None else TimeOption(option, str(value), value)
    return TimeOption.parse(option, value, value, "1700000000 or 2024-05-31", begins=True)


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
    if time_range.dates() and exceed_seconds_range(last):
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
