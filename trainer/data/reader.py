"""Read interactions from the row groups of a dataset, in threads.

    with closing(InteractionReader(folder, manifest)) as reader:
        for interactions in reader.read_all(manifest.splits["valid"]):
            interactions.query_N, interactions.item_N, interactions.weight_N

Every row group is checked against the manifest: rows within the vocabularies, finite weights, no nulls.

Shapes: N interactions, M some of them, K context entities.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa

from crossfade.base.arrays import BoolArray, FloatArray, IntArray
from crossfade.base.errors import InputError, StorageUnavailableError
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.column_names import TIMESTAMP, WEIGHT
from crossfade.trainer.data.manifest import DataFile, DatasetManifest, Split
from crossfade.trainer.data.parquet import ParquetFiles, column_of
from crossfade.trainer.data.time_range import AgeWeights, TimeRange
from crossfade.trainer.data.time_values import TimeSpan, exceed_seconds_range

if TYPE_CHECKING:
    from crossfade.trainer.data.query_history import HistoryWindows

_NICENESS = 8
"""A thread gets about a sixth of the time of one at 0 that competes with it for a core."""


def yield_to_computation() -> None:
    """Lower the priority of the calling thread. On Linux only: elsewhere priorities are those of processes."""
    thread = threading.get_native_id()
    # A process that was started at a lower priority may not raise it.
    if sys.platform == "linux" and os.getpriority(os.PRIO_PROCESS, thread) < _NICENESS:
        os.setpriority(os.PRIO_PROCESS, thread, _NICENESS)


DEFAULT_READER_THREADS = 4
_MEASURED_GROUPS = 64
"""Row groups, evenly spaced, whose timestamps give the mean weight by age. Small datasets have no more."""
_LATEST = 0.999
"""The quantile of timestamps that counts as the present."""
_LN_2 = np.float32(np.log(2.0))

Value = TypeVar("Value")


@dataclass(frozen=True)
class RowGroup:
    """One row group of a split.

    Attributes:
        file: the file it is in.
        index: its place in the file.
        rows: how many of its rows are read.
        time_range: the time range of those rows; None: all rows are read.
    """

    file: DataFile
    index: int
    rows: int
    time_range: TimeRange | None = None


@dataclass(frozen=True)
class Interactions:
    """Interactions as columns: rows ``query_N`` and ``item_N`` int64, and ``weight_N`` float32 of either sign.

    ``context_NK`` has the rows of the context entities that were read, int64, -1 where an event has none; None if none
    were read. ``history`` has the histories of the queries at these interactions, and ``timestamp_N`` their times,
    int64; None if they were not asked for.
    """

    query_N: IntArray
    item_N: IntArray
    weight_N: FloatArray
    context_NK: IntArray | None = None
    history: HistoryWindows | None = None
    timestamp_N: IntArray | None = None

    def __len__(self) -> int:
        return len(self.query_N)

    @property
    def nbytes(self) -> int:
        """The size of all columns."""
        size = self.query_N.nbytes + self.item_N.nbytes + self.weight_N.nbytes
        return size + sum(part.nbytes for part in (self.context_NK, self.history, self.timestamp_N) if part is not None)

    def take(self, indices_M: IntArray | BoolArray | slice) -> Interactions:
        """Return the interactions at ``indices_M``, in that order."""
        context_MK = None if self.context_NK is None else self.context_NK[indices_M]
        history = None if self.history is None else self.history.take(indices_M)
        rows = self.query_N[indices_M], self.item_N[indices_M]
        timestamp_M = None if self.timestamp_N is None else self.timestamp_N[indices_M]
        return Interactions(*rows, self.weight_N[indices_M], context_MK, history, timestamp_M)


def concatenate(parts: Sequence[Interactions]) -> Interactions:
    """Join ``parts``, of which there may be none."""
    if not parts:
        return Interactions(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    if len(parts) == 1:
        return parts[0]
    return Interactions(
        np.concatenate([part.query_N for part in parts]),
        np.concatenate([part.item_N for part in parts]),
        np.concatenate([part.weight_N for part in parts]),
        np.concatenate([part.context_NK for part in parts]) if parts[0].context_NK is not None else None,
        _concatenate_histories([part.history for part in parts if part.history is not None]),
        np.concatenate([part.timestamp_N for part in parts]) if parts[0].timestamp_N is not None else None,
    )


def _with_history(interactions: Interactions, timestamp_N: IntArray | None, length: int) -> Interactions:
    from crossfade.trainer.data.query_history import history_windows  # loads numba, which takes time

    columns = interactions.query_N, interactions.item_N, interactions.weight_N
    return replace(interactions, history=history_windows(*columns, timestamp_N, length))


def _concatenate_histories(histories: Sequence[HistoryWindows]) -> HistoryWindows | None:
    if not histories:
        return None
    from crossfade.trainer.data.query_history import concatenate_windows

    return concatenate_windows(histories)


def row_groups(
    split: Split, time_range: TimeRange | None = None, row_counts: Sequence[Sequence[int]] | None = None
) -> list[RowGroup]:
    """List the non-empty row groups of ``split`` in the order of the manifest.

    With ``time_range``, only those with rows in it; ``row_counts`` has their number, for each row group of each file.
    """
    groups = []
    for number, file in enumerate(split.files):
        for index, stored in enumerate(file.row_groups):
            rows = stored if row_counts is None else row_counts[number][index]
            if rows:
                groups.append(RowGroup(file, index, rows, None if rows == stored else time_range))
    return groups


class InteractionReader:
    """Reads row groups of a dataset in threads, and checks them against its manifest."""

    def __init__(
        self,
        folder: Folder,
        manifest: DatasetManifest,
        threads: int = DEFAULT_READER_THREADS,
        context: Sequence[str] = (),
        ages: AgeWeights | None = None,
        *,
        log_weights: bool = False,
    ) -> None:
        """Read the dataset in ``folder`` with up to ``threads`` threads, which start when they are needed.

        Args:
            folder: the dataset.
            manifest: its manifest.
            threads: row groups that are read at a time.
            context: the context entities whose rows are read.
            ages: multiply the weights of interactions.
            log_weights: before that, replace each weight w by ±log₂(1 + |w|), so that 1 stays 1.
        """
        # A separate Folder object, since interrupt() would otherwise stop other users of the caller's.
        self._folder = Folder(folder.uri)
        self._files = ParquetFiles(self._folder)
        self._manifest = manifest
        self._context, self._ages, self._log_weights = context, ages, log_weights
        self._max_ahead = threads
        self._interrupted = threading.Event()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="reader", initializer=yield_to_computation)

    def read(
        self,
        group: RowGroup,
        context: Sequence[str] | None = None,
        history_length: int | None = None,
        *,
        timestamps: bool = False,
    ) -> Interactions:
        """Read the interactions of one row group.

        Args:
            group: the row group.
            context: other context entities than those of the reader.
            history_length: items of the history of each interaction, at most; None: histories are left out. They may
                begin before the time range of the row group.
            timestamps: whether to include timestamps, if the dataset has them.

        Raises:
            InputError: the file is missing or corrupt, or does not match the manifest.
            StorageUnavailableError: storage does not answer, or the reader was interrupted.
        """
        if self._interrupted.is_set():
            raise StorageUnavailableError(f"{self._files.uri(group.file)}: reading was interrupted: the run is ending")
        context = self._context if context is None else context
        names = [self._manifest.query, self._manifest.item, WEIGHT, *context]
        where = f"{self._files.uri(group.file)}, row group {group.index}"
        wants_timestamps = timestamps or history_length is not None or self._ages is not None
        has_timestamps = group.time_range is not None or (wants_timestamps and self._manifest.has_timestamp)
        table = self._files.read(group.file, group.index, [*names, TIMESTAMP] if has_timestamps else names)
        timestamp_N = column_of(table, TIMESTAMP, pa.int64(), where) if has_timestamps else None
        interactions = Interactions(
            self._rows(table, self._manifest.query, where),
            self._rows(table, self._manifest.item, where),
            self._weights(table, where, timestamp_N),
            np.stack([self._rows(table, name, where, lowest=-1) for name in context], axis=1) if context else None,
            timestamp_N=timestamp_N if timestamps else None,
        )
        if history_length is not None:
            interactions = _with_history(interactions, timestamp_N, history_length)
        if group.time_range is None:
            return interactions
        assert timestamp_N is not None
        found = interactions.take(group.time_range.contains(timestamp_N))
        if len(found) != group.rows:
            raise InputError(
                f"{where}: has {len(found)} rows {group.time_range}, but {group.rows} were counted: the file has "
                "changed since"
            )
        return found

    def read_all(
        self, split: Split, context: Sequence[str] | None = None, *, timestamps: bool = False
    ) -> Iterator[Interactions]:
        """Yield all interactions of ``split``, one row group at a time, in the order of the manifest; prefetches.

        ``context`` and ``timestamps`` are those of ``read``.
        """
        yield from self.map(partial(self.read, context=context, timestamps=timestamps), row_groups(split))

    def map(self, work: Callable[[Any], Value], items: Sequence[Any]) -> Iterator[Value]:
        """Yield ``work(item)`` for each item, in order; the threads run a few items ahead."""
        ahead: deque[Future[Value]] = deque()
        for item in items:
            ahead.append(self.submit(work, item))
            if len(ahead) > self._max_ahead:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def submit(self, work: Callable[..., Value], *arguments: Any) -> Future[Value]:
        """Run ``work(*arguments)`` in a thread."""
        return self._pool.submit(work, *arguments)

    @property
    def files(self) -> ParquetFiles:
        """The files of the dataset, for reading other columns than those of interactions."""
        return self._files

    def interrupt(self) -> None:
        """Stop reading: threads that wait for data get an error soon."""
        self._interrupted.set()
        self._folder.interrupt()

    def close(self) -> None:
        """Stop the threads."""
        self.interrupt()
        self._pool.shutdown(cancel_futures=True)

    def _rows(self, table: pa.Table, name: str, where: str, lowest: int = 0) -> IntArray:
        column: IntArray = column_of(table, name, pa.int64(), where)
        limit = self._manifest.entities[name].rows
        if len(column) and (column.min() < lowest or column.max() >= limit):
            first = int(np.argmax((column < lowest) | (column >= limit)))
            none = f" ({lowest}: none)" if lowest else ""
            raise InputError(
                f"{where}, row {first}: column '{name}' is {column[first]}, but the vocabulary has rows 0 to "
                f"{limit - 1}{none}; prepare the data again"
            )
        return column

    def _weights(self, table: pa.Table, where: str, timestamp_N: IntArray | None) -> FloatArray:
        column: FloatArray = column_of(table, WEIGHT, pa.float32(), where)
        finite = np.isfinite(column)
        if not finite.all():
            first = int(np.argmin(finite))
            raise InputError(
                f"{where}, row {first}: column '{WEIGHT}' is {column[first]}, but weights must be finite; prepare the "
                "data again"
            )
        if self._log_weights:
            column = np.copysign(np.log1p(np.abs(column)) / _LN_2, column)
        if self._ages is None:
            return column
        assert timestamp_N is not None
        return column * self._ages.factors(timestamp_N)


def weigh_by_age(reader: InteractionReader, groups: Sequence[RowGroup], half_life: TimeSpan) -> AgeWeights:
    """Return the weights by age of the interactions of ``groups``, which are 1 on average.

    The mean is that of up to ``_MEASURED_GROUPS`` row groups, so that every worker finds the same without reading all.
    Ages begin at the quantile ``_LATEST`` of their timestamps: beside a wrong one of the future, all others would have
    no weight.

    Raises:
        InputError: the half-life is in seconds and timestamps are not, or a file cannot be read.
        StorageUnavailableError: storage does not answer.
    """

    def times(group: RowGroup) -> IntArray:
        timestamp_N: IntArray = reader.files.column(group.file, group.index, TIMESTAMP, pa.int64())
        return timestamp_N if group.time_range is None else timestamp_N[group.time_range.contains(timestamp_N)]

    places = np.unique(((np.arange(_MEASURED_GROUPS) + 0.5) * len(groups) / _MEASURED_GROUPS).astype(np.int64))
    parts = list(reader.map(times, [groups[place] for place in places]))
    latest = int(np.quantile(np.concatenate(parts), _LATEST, method="higher"))
    if half_life.in_seconds and exceed_seconds_range(latest):
        raise InputError(
            f"train.half_life is {half_life.text}, which is counted in seconds, but the timestamps of "
            f"{reader.files.folder.uri} reach {latest}, which is not a time in seconds; give an integer in the unit of "
            "the column"
        )
    unscaled = AgeWeights(half_life.length, latest, mean=1.0)
    total = sum(float(unscaled.factors(part).sum(dtype=np.float64)) for part in parts)
    return AgeWeights(half_life.length, latest, mean=total / sum(map(len, parts)))
