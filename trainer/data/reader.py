"""TODO-DOC split from trainer/data/schedule.py."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from kvstore.arrays import BoolArray, FloatArray, IntArray
from kvstore.errors import InputError, StorageUnavailableError
from kvstore.io.folder import Folder
from trainer.data.manifest import TIMESTAMP, WEIGHT, DataFile, DatasetManifest, Split
from trainer.data.parquet import ParquetFiles, column_of
from trainer.data.time_range import TimeRange

DEFAULT_READERS = 4


Value = TypeVar("Value")


@dataclass(frozen=True)
class RowGroup:
    """One row group of a split: its file, its place in the file, and how many of its rows are read.

    ``within``: only rows of that time are read; None: all are.
    """

    file: DataFile
    index: int
    rows: int
    time_range: TimeRange | None = None


@dataclass(frozen=True)
class Interactions:
    """Interactions as columns: ``query_N`` and ``item_N`` rows int64, ``weight_N`` float32 of either sign."""

    query_N: IntArray
    item_N: IntArray
    weight_N: FloatArray

    def __len__(self) -> int:
        """How many there are."""
        return len(self.query_N)

    def take(self, indices_M: IntArray | BoolArray | slice) -> Interactions:
        """Those at ``indices_M``, in that order."""
        return Interactions(self.query_N[indices_M], self.item_N[indices_M], self.weight_N[indices_M])


def concatenate(parts: Sequence[Interactions]) -> Interactions:
    """``parts``, one after another; none at all is an empty one."""
    if not parts:
        return Interactions(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    if len(parts) == 1:
        return parts[0]
    return Interactions(
        np.concatenate([part.query_N for part in parts]),
        np.concatenate([part.item_N for part in parts]),
        np.concatenate([part.weight_N for part in parts]),
    )


def row_groups(
    split: Split, span: TimeRange | None = None, kept: Sequence[Sequence[int]] | None = None
) -> list[RowGroup]:
    """The row groups of ``split`` that hold rows, in the order of the manifest.

    With ``span``, those that hold rows of that time, of which there are ``kept`` in each row group of each file.
    """
    groups = []
    for number, file in enumerate(split.files):
        for index, stored in enumerate(file.row_groups):
            rows = stored if kept is None else kept[number][index]
            if rows:
                groups.append(RowGroup(file, index, rows, None if rows == stored else span))
    return groups


class InteractionReader:
    """Reads row groups of prepared data, in threads, and checks what it reads against the manifest."""

    def __init__(self, folder: Folder, manifest: DatasetManifest, readers: int = DEFAULT_READERS) -> None:
        """A reader of the data set in ``folder``, with ``readers`` threads that begin when they are needed."""
        # A folder of its own: interrupting it disturbs nobody else.
        self._folder = Folder(folder.uri)
        self._files = ParquetFiles(self._folder)
        self._manifest = manifest
        self._readers = readers
        self._interrupted = threading.Event()
        self._pool = ThreadPoolExecutor(readers, thread_name_prefix="reader")

    def read(self, group: RowGroup) -> Interactions:
        """The interactions of one row group.

        Raises:
            InputError: the file is missing, damaged, or does not hold what the manifest says.
            UnreachableError: storage does not answer.
        """
        if self._interrupted.is_set():
            raise StorageUnavailableError(f"{self._files.uri(group.file)}: is not read any more: the run ends")
        names = [self._manifest.query, self._manifest.item, WEIGHT]
        where = f"{self._files.uri(group.file)}, row group {group.index}"
        table = self._files.read(group.file, group.index, names if group.time_range is None else [*names, TIMESTAMP])
        interactions = Interactions(
            self._rows(table, self._manifest.query, where),
            self._rows(table, self._manifest.item, where),
            self._weights(table, where),
        )
        if group.time_range is None:
            return interactions
        found = interactions.take(group.time_range.contains(column_of(table, TIMESTAMP, pa.int64(), where)))
        if len(found) != group.rows:
            raise InputError(
                f"{where}: has {len(found)} rows {group.time_range}, but {group.rows} were counted: it has changed since"
            )
        return found

    def read_all(self, split: Split) -> Iterator[Interactions]:
        """All interactions of ``split``, a row group at a time, in the order of the manifest; some are read ahead."""
        yield from self.map(self.read, row_groups(split))

    def map(self, work: Callable[[Any], Value], items: Sequence[Any]) -> Iterator[Value]:
        """What ``work`` makes of each of ``items``, in order, made by the threads a little ahead."""
        ahead: deque[Future[Value]] = deque()
        for item in items:
            ahead.append(self.submit(work, item))
            if len(ahead) > self._readers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def submit(self, work: Callable[..., Value], *arguments: Any) -> Future[Value]:
        """Have a thread do ``work``."""
        return self._pool.submit(work, *arguments)

    @property
    def files(self) -> ParquetFiles:
        """The files, for whoever wants something else of them than interactions."""
        return self._files

    def interrupt(self) -> None:
        """Nothing more will be read: whoever waits for something hears an error soon."""
        self._interrupted.set()
        self._folder.interrupt()

    def close(self) -> None:
        """Stop the threads."""
        self.interrupt()
        self._pool.shutdown(cancel_futures=True)

    def _rows(self, table: pa.Table, name: str, where: str) -> IntArray:
        column: IntArray = column_of(table, name, pa.int64(), where)
        limit = self._manifest.entities[name].rows
        if len(column) and (column.min() < 0 or column.max() >= limit):
            first = int(np.argmax((column < 0) | (column >= limit)))
            raise InputError(
                f"{where}, row {first}: column '{name}' is {column[first]}, but the vocabulary has rows 0 to "
                f"{limit - 1}; prepare the data again"
            )
        return column

    def _weights(self, table: pa.Table, where: str) -> FloatArray:
        column: FloatArray = column_of(table, WEIGHT, pa.float32(), where)
        finite = np.isfinite(column)
        if not finite.all():
            first = int(np.argmin(finite))
            raise InputError(
                f"{where}, row {first}: column '{WEIGHT}' is {column[first]}, but weights are finite; prepare the data "
                "again"
            )
        return column
