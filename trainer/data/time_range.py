"""Interactions of a time: ``since`` <= timestamp < ``until``, and how many of each row group there are.

    span = Timespan.of("2024-05-01", None)
    kept = count_within(reader, split, span, progress)        # rows of each row group of each file

A date means seconds since 1970, UTC where it names no zone; a number is in the unit of the timestamps. The footer of a
file says between which timestamps each row group lies: where that decides, nothing else of it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from kvstore.arrays import BoolArray, IntArray
from kvstore.errors import InputError
from trainer.data.manifest import TIMESTAMP, DataFile, DatasetManifest, Split
from trainer.data.parquet import ParquetFiles
from trainer.data.reporter import ProgressReporter
from trainer.data.time_values import exceed_seconds_range, iso_seconds

TimeValue = int | str


def parse_time_value(value: TimeValue) -> tuple[int, bool]:
    """A timestamp as an integer, and whether it was a date. A part of a second counts as a whole one.

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
    """From ``since`` on and before ``until``, None being open; ``dated``: one of them is a date, and so in seconds."""

    since: int | None
    until: int | None
    dated: bool
    text: str

    @staticmethod
    def of(since: TimeValue | None, until: TimeValue | None) -> TimeRange | None:
        """The time between the two, or None if there is no limit.

        Raises:
            ValueError: one is no moment, or there is nothing between them.
        """
        if since is None and until is None:
            return None
        limits = [None if value is None else parse_time_value(value) for value in (since, until)]
        first, last = (None if limit is None else limit[0] for limit in limits)
        if first is not None and last is not None and first >= last:
            raise ValueError(f"since '{since}' is not before until '{until}': no interaction would be left")
        text = [f"{name} {value}" for name, value in (("since", since), ("until", until)) if value is not None]
        return TimeRange(first, last, any(limit is not None and limit[1] for limit in limits), " ".join(text))

    def __str__(self) -> str:
        """As the job says it."""
        return self.text

    def contains(self, timestamps_N: IntArray) -> BoolArray:
        """Which of ``timestamps_N`` lie in it."""
        inside_N = np.ones(len(timestamps_N), dtype=np.bool_)
        if self.since is not None:
            inside_N &= timestamps_N >= self.since
        if self.until is not None:
            inside_N &= timestamps_N < self.until
        return inside_N

    def decide(self, low: int, high: int) -> bool | None:
        """Whether all timestamps from ``low`` to ``high`` lie in it, or none; None if it depends."""
        inside = self.contains(np.array([low, high]))
        if inside.all():
            return True
        before = self.since is not None and high < self.since
        after = self.until is not None and low >= self.until
        return False if before or after else None


class Reader(Protocol):
    """What counting needs of a reader of shards."""

    @property
    def files(self) -> ParquetFiles:
        """The files of the data."""

    def map(self, work: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        """What ``work`` makes of each of ``items``, in order, in several threads."""


def count_within(
    reader: Reader, manifest: DatasetManifest, split: Split, span: TimeRange, progress: ProgressReporter
) -> list[list[int]]:
    """How many rows of each row group of each file of ``split`` lie in ``span``.

    Raises:
        InputError: the data have no timestamps, in another unit than dates are in, or none in ``span``; or a file
            cannot be read.
        UnreachableError: storage does not answer.
    """
    where = reader.files.folder.uri
    if not manifest.has_timestamp:
        raise InputError(
            f"data.{span}: {where} has no timestamps; prepare the data with --timestamp COLUMN, or leave data.since "
            "and data.until out"
        )
    progress.phase("count interactions by time", split.rows, "row")
    kept: list[list[int]] = []
    first, last = np.iinfo(np.int64).max, np.iinfo(np.int64).min
    for counts, low, high in reader.map(lambda file: _count_file(reader.files, file, span), split.files):
        kept.append(counts)
        first, last = min(first, low), max(last, high)
        progress.advance(split.files[len(kept) - 1].rows)
    if span.dated and exceed_seconds_range(last):
        raise InputError(
            f"data.{span}: a date is compared in seconds, but the timestamps of {where} reach {last}, which is no time "
            "in seconds; give an integer in the unit of the column"
        )
    if not any(map(sum, kept)):
        raise InputError(
            f"data.{span}: no interaction of {where} is of that time (its timestamps run from {first} to {last}); "
            "there is nothing to train on"
        )
    return kept


def _count_file(files: ParquetFiles, file: DataFile, span: TimeRange) -> tuple[list[int], int, int]:
    """The rows of each row group of ``file`` that lie in ``span``; and its first and last timestamp."""
    ranges = files.integer_ranges(file, TIMESTAMP)
    counts: list[int] = []
    lows, highs = [np.iinfo(np.int64).max], [np.iinfo(np.int64).min]
    for index, (rows, known) in enumerate(zip(file.row_groups, ranges, strict=True)):
        decided = None if known is None else span.decide(*known)
        if not rows:
            counts.append(0)
        elif known is not None and decided is not None:
            counts.append(rows if decided else 0)
            lows.append(known[0])
            highs.append(known[1])
        else:
            column = files.column(file, index, TIMESTAMP, pa.int64())
            counts.append(int(np.count_nonzero(span.contains(column))))
            lows.append(int(column.min()))
            highs.append(int(column.max()))
    return counts, int(min(lows)), int(max(highs))
