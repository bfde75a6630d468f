"""The order in which interactions are read, and the reading.

An epoch's row groups are shuffled and dealt to *lanes*; a worker reads the lanes whose number is its rank modulo the
workers. Each step takes from each lane its share of the batch, in proportion to the rows the lane has, so that all
lanes end with the epoch's last step:

    rows of lane l in step t:   c(t) up to c(t+1), where c(t) = ⌊(n_l·t + l·T/L) / T⌋
                                T = ⌈rows / batch size⌉ steps an epoch, L lanes

The term l·T/L keeps the lanes from rounding up in the same step, so global batches differ little in size.

A global batch, and each example's position in it, thus follow from (seed, epoch, step) alone: neither the number of
workers nor the point at which a run is resumed changes what a step sees. Every worker takes T steps, every interaction
is read exactly once an epoch, and no worker needs another to know how large the global batch is.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kvstore.arrays import FloatArray, IntArray
from kvstore.errors import InputError
from kvstore.philox import permutation
from kvstore.storage import Folder
from trainer.data.manifest import WEIGHT, Manifest, Split

_OPEN_FILES = 64


@dataclass(frozen=True)
class RowGroup:
    """One row group of a split: its file, its place in the file, its rows, and how many row groups the file has.

    ``file`` is a path from the folder of the data set.
    """

    file: str
    index: int
    rows: int
    of: int


@dataclass(frozen=True)
class Interactions:
    """Interactions as columns: ``query_N`` and ``item_N`` rows int64, ``weight_N`` float32 of either sign."""

    query_N: IntArray
    item_N: IntArray
    weight_N: FloatArray

    def __len__(self) -> int:
        """How many there are."""
        return len(self.query_N)

    def take(self, indices_M: IntArray | slice) -> Interactions:
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


class ShardReader:
    """Reads row groups of prepared data, and checks what it reads against the manifest."""

    def __init__(self, folder: Folder, manifest: Manifest) -> None:
        """A reader of the data set in ``folder``; it opens files as they are needed."""
        self._folder = folder
        self._manifest = manifest
        self._open: OrderedDict[str, pq.ParquetFile] = OrderedDict()

    def row_groups(self, split: Split) -> list[RowGroup]:
        """The row groups of ``split`` that hold rows, in the order of the manifest."""
        return [
            RowGroup(file.path, index, rows, len(file.row_groups))
            for file in split.files
            for index, rows in enumerate(file.row_groups)
            if rows
        ]

    def read(self, group: RowGroup) -> Interactions:
        """The interactions of one row group.

        Raises:
            InputError: the file is missing, damaged, or does not hold what the manifest says.
        """
        names = [self._manifest.query, self._manifest.item, WEIGHT]
        path = f"{self._folder.uri}/{group.file}"
        where = f"{path}, row group {group.index}"
        try:
            file = self._file(group.file)
            if file.num_row_groups != group.of:
                raise InputError(
                    f"{where}: the file has {file.num_row_groups} row groups, but the manifest says {group.of}; "
                    "prepare the data again"
                )
            table = file.read_row_group(group.index, columns=names)
        except FileNotFoundError:
            raise InputError(f"{path}: no such file, but the manifest lists it; prepare the data again") from None
        except (OSError, pa.ArrowException, IndexError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{where}: cannot be read: {reason}; prepare the data again") from error
        if table.column_names != names:
            raise InputError(f"{where}: has the columns {table.column_names}, but expected {names}")
        if table.num_rows != group.rows:
            raise InputError(f"{where}: has {table.num_rows} rows, but the manifest says {group.rows}")
        return Interactions(
            self._rows(table, self._manifest.query, where),
            self._rows(table, self._manifest.item, where),
            self._weights(table, where),
        )

    def read_all(self, split: Split) -> Iterator[Interactions]:
        """All interactions of ``split``, a row group at a time, in the order of the manifest."""
        for group in self.row_groups(split):
            yield self.read(group)

    def close(self) -> None:
        """Close the files."""
        for file in self._open.values():
            file.close()
        self._open.clear()

    def _file(self, name: str) -> pq.ParquetFile:
        file = self._open.pop(name, None) or pq.ParquetFile(self._folder.open_random(name))
        self._open[name] = file
        if len(self._open) > _OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        return file

    def _rows(self, table: pa.Table, name: str, where: str) -> IntArray:
        column: IntArray = self._column(table, name, pa.int64(), where)
        limit = self._manifest.entities[name].rows
        if len(column) and (column.min() < 0 or column.max() >= limit):
            raise InputError(
                f"{where}: column '{name}' has rows from {column.min()} to {column.max()}, "
                f"but the vocabulary has rows 0 to {limit - 1}"
            )
        return column

    def _weights(self, table: pa.Table, where: str) -> FloatArray:
        column: FloatArray = self._column(table, WEIGHT, pa.float32(), where)
        if not np.isfinite(column).all():
            raise InputError(f"{where}: column '{WEIGHT}' has values that are not finite")
        return column

    @staticmethod
    def _column(table: pa.Table, name: str, kind: pa.DataType, where: str) -> Any:
        column = table.column(name)
        if column.type != kind or column.null_count:
            found = f"{column.null_count} nulls" if column.null_count else str(column.type)
            raise InputError(f"{where}: column '{name}' has {found}, but expected {kind} without nulls")
        return column.to_numpy()


@dataclass(frozen=True)
class Share:
    """What one worker has of one step.

    ``positions_B`` says where each example stands in the global batch, which has ``global_size`` examples.
    """

    interactions: Interactions
    positions_B: IntArray
    global_size: int


class Schedule:
    """Which rows each step of each epoch takes, and the reading of one worker's part of them."""

    def __init__(self, reader: ShardReader, split: Split, *, batch_size: int, lanes: int, window: int, seed: int):
        """Schedule ``split`` in global batches of about ``batch_size``; see the module for how."""
        self._reader = reader
        self._groups = reader.row_groups(split)
        self._lanes = min(lanes, len(self._groups))
        self._window = window
        self._seed = seed
        self.rows = split.rows
        self.steps = max(1, -(-self.rows // batch_size))

    def deal(self, epoch: int) -> list[list[RowGroup]]:
        """The row groups of each lane in ``epoch``: shuffled, each to the lane that has the fewest rows so far."""
        dealt: list[list[RowGroup]] = [[] for _ in range(self._lanes)]
        fill = [(0, lane) for lane in range(self._lanes)]
        for index in permutation(len(self._groups), seed=self._seed, stream="deal", epoch=epoch, position=0):
            rows, lane = heapq.heappop(fill)
            dealt[lane].append(self._groups[index])
            heapq.heappush(fill, (rows + self._groups[index].rows, lane))
        return dealt

    def shares(self, epoch: int, first_step: int, rank: int, workers: int) -> Iterator[Share]:
        """The shares of worker ``rank`` of ``workers`` in the steps of ``epoch`` from ``first_step`` on."""
        dealt = self.deal(epoch)
        rows_L = np.array([sum(group.rows for group in groups) for groups in dealt], dtype=np.int64)
        mine = range(rank, self._lanes, workers)
        streams = {
            lane: _LaneStream(self, epoch, lane, dealt[lane], int(self._taken(rows_L, first_step)[lane]))
            for lane in mine
        }
        for step in range(first_step, self.steps):
            count_L = self._taken(rows_L, step + 1) - self._taken(rows_L, step)
            first_L = np.cumsum(count_L) - count_L
            parts = [streams[lane].take(int(count_L[lane])) for lane in mine]
            positions = [np.arange(first_L[lane], first_L[lane] + count_L[lane]) for lane in mine]
            yield Share(
                concatenate([part for lane_parts in parts for part in lane_parts]),
                np.concatenate([np.empty(0, np.int64), *positions]),
                int(count_L.sum()),
            )

    def _taken(self, rows_L: IntArray, step: int) -> IntArray:
        """How many rows of each lane are taken before ``step``."""
        offset_L = np.arange(self._lanes, dtype=np.int64) * self.steps // max(1, self._lanes)
        taken_L: IntArray = (rows_L * step + offset_L) // self.steps
        return taken_L

    def windows(self, epoch: int, lane: int, groups: list[RowGroup], skip: int) -> Iterator[Interactions]:
        """The rows of a lane from row ``skip`` on: row groups gathered into windows, each shuffled within itself."""
        held: list[RowGroup] = []
        number = 0
        for group in groups:
            held.append(group)
            rows = sum(member.rows for member in held)
            if rows < self._window and group is not groups[-1]:
                continue
            if skip < rows:
                position = (lane << 32) | number
                order = permutation(rows, seed=self._seed, stream="shuffle", epoch=epoch, position=position)
                yield concatenate([self._reader.read(member) for member in held]).take(order[skip:])
            skip = max(0, skip - rows)
            held = []
            number += 1


class _LaneStream:
    """One lane, read as far as it is taken."""

    def __init__(self, schedule: Schedule, epoch: int, lane: int, groups: list[RowGroup], skip: int) -> None:
        self._windows = schedule.windows(epoch, lane, groups, skip)
        self._held = concatenate([])
        self._taken = 0

    def take(self, count: int) -> list[Interactions]:
        """The next ``count`` rows, in as many pieces as they lie in."""
        pieces = []
        while count:
            if self._taken == len(self._held):
                self._held, self._taken = next(self._windows), 0
            piece = self._held.take(slice(self._taken, self._taken + count))
            pieces.append(piece)
            self._taken += len(piece)
            count -= len(piece)
        return pieces
