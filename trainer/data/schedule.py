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

Within a lane, row groups are gathered into windows, and rows are shuffled within their window. While a lane's window is
used up, its next one is fetched by other threads, across the end of an epoch too: so a worker holds two windows a lane.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from kvstore.arrays import IntArray
from kvstore.philox import permutation
from trainer.data.reader import InteractionReader, Interactions, RowGroup, concatenate
from trainer.data.stopwatch import Stopwatch


@dataclass(frozen=True)
class BatchSlice:
    """What one worker has of one step.

    ``positions_B`` says where each example stands in the global batch, which has ``global_size`` examples. The examples
    lie lane by lane, ``lane_sizes_G`` of each, and the global batch has ``lanes`` lanes; empty: they are all of one.
    """

    interactions: Interactions
    positions_B: IntArray
    global_size: int
    partition_sizes_G: tuple[int, ...] = ()
    partitions: int = 1


@dataclass(frozen=True)
class ShuffleBlock:
    """Row groups of a lane whose rows are shuffled together, by ``position``; the first ``skip`` are left out."""

    groups: Sequence[RowGroup]
    epoch: int
    position: int
    skip: int

    @property
    def rows(self) -> int:
        """Its rows, before any are left out."""
        return sum(group.rows for group in self.groups)


class BatchSchedule:
    """Which rows each step of each epoch takes, and the reading of one worker's part of them."""

    def __init__(
        self,
        reader: InteractionReader,
        groups: Sequence[RowGroup],
        *,
        batch_size: int,
        partitions: int,
        shuffle_block_rows: int,
        seed: int,
    ) -> None:
        """Schedule ``groups`` in global batches of about ``batch_size``; see the module for how."""
        self._reader = reader
        self._groups = groups
        self._lanes = min(partitions, len(self._groups))
        self._window = shuffle_block_rows
        self._seed = seed
        self.rows = sum(group.rows for group in groups)
        self.steps = max(1, -(-self.rows // batch_size))

    def assign_partitions(self, epoch: int) -> list[list[RowGroup]]:
        """The row groups of each lane in ``epoch``: shuffled, each to the lane that has the fewest rows so far."""
        dealt: list[list[RowGroup]] = [[] for _ in range(self._lanes)]
        fill = [(0, lane) for lane in range(self._lanes)]
        for index in permutation(len(self._groups), seed=self._seed, stream="deal", epoch=epoch, position=0):
            rows, lane = heapq.heappop(fill)
            dealt[lane].append(self._groups[index])
            heapq.heappush(fill, (rows + self._groups[index].rows, lane))
        return dealt

    def slices(
        self,
        epoch: int,
        first_step: int,
        rank: int,
        workers: int,
        epochs: int = 1,
        waiting: Stopwatch | None = None,
    ) -> Iterator[BatchSlice]:
        """The shares of worker ``rank`` of ``workers`` in ``epochs`` epochs from step ``first_step`` of ``epoch`` on.

        ``waiting`` runs while a window is waited for.
        """
        deals: dict[int, list[list[RowGroup]]] = {}

        def dealt(at: int) -> list[list[RowGroup]]:
            if at not in deals:
                deals[at] = self.assign_partitions(at)
            return deals[at]

        def shuffle_blocks(lane: int) -> Iterator[ShuffleBlock]:
            for at in range(epoch, epoch + epochs):
                skip = int(self._taken(_rows(dealt(at)), first_step)[lane]) if at == epoch else 0
                yield from self.shuffle_blocks(at, lane, dealt(at)[lane], skip)

        watch = waiting or Stopwatch()
        mine = range(rank, self._lanes, workers)
        streams = {lane: _PartitionStream(self._reader, shuffle_blocks(lane), self._seed, watch) for lane in mine}
        for at in range(epoch, epoch + epochs):
            rows_L = _rows(dealt(at))
            for step in range(first_step if at == epoch else 0, self.steps):
                yield self._share(streams, self._taken(rows_L, step), self._taken(rows_L, step + 1))
            del deals[at]

    @staticmethod
    def _share(streams: dict[int, _PartitionStream], before_L: IntArray, after_L: IntArray) -> BatchSlice:
        count_L = after_L - before_L
        first_L = np.cumsum(count_L) - count_L
        parts = [streams[lane].take(int(count_L[lane])) for lane in streams]
        positions = [np.arange(first_L[lane], first_L[lane] + count_L[lane]) for lane in streams]
        return BatchSlice(
            concatenate([part for lane_parts in parts for part in lane_parts]),
            np.concatenate([np.empty(0, np.int64), *positions]),
            int(count_L.sum()),
            tuple(int(count_L[lane]) for lane in streams),
            len(count_L),
        )

    def _taken(self, rows_L: IntArray, step: int) -> IntArray:
        """How many rows of each lane are taken before ``step``."""
        offset_L = np.arange(self._lanes, dtype=np.int64) * self.steps // max(1, self._lanes)
        taken_L: IntArray = (rows_L * step + offset_L) // self.steps
        return taken_L

    def shuffle_blocks(self, epoch: int, lane: int, groups: list[RowGroup], skip: int) -> Iterator[ShuffleBlock]:
        """The windows of a lane from row ``skip`` on: row groups gathered until they have enough rows."""
        held: list[RowGroup] = []
        number = rows = 0
        for place, group in enumerate(groups):
            held.append(group)
            rows += group.rows
            if rows < self._window and place + 1 < len(groups):
                continue
            if skip < rows:
                yield ShuffleBlock(held, epoch, (lane << 32) | number, skip)
            skip = max(0, skip - rows)
            held, rows = [], 0
            number += 1

    def interrupt(self) -> None:
        """Nothing more will be taken: whoever waits for a share hears an error soon."""
        self._reader.interrupt()


def _rows(dealt: list[list[RowGroup]]) -> IntArray:
    """The rows of each lane."""
    return np.array([sum(group.rows for group in groups) for groups in dealt], dtype=np.int64)


class _Fetch:
    """A window that is being fetched: its row groups by several threads, of which the last puts them together."""

    def __init__(self, reader: InteractionReader, window: ShuffleBlock, seed: int) -> None:
        self._reader = reader
        self._window = window
        self._seed = seed
        self._parts: list[Interactions | None] = [None] * len(window.groups)
        self._left = len(window.groups)
        self._lock = threading.Lock()
        self._done: Future[Interactions] = Future()
        for place in range(len(window.groups)):
            reader.submit(self._read, place)

    def wait(self) -> Interactions:
        """Its rows.

        Raises:
            CrossfadeError: they cannot be read.
        """
        return self._done.result()

    def _read(self, place: int) -> None:
        try:
            if not self._done.done():
                self._parts[place] = self._reader.read(self._window.groups[place])
                with self._lock:
                    self._left -= 1
                    last = self._left == 0
                if last:
                    self._done.set_result(self._shuffled())
        except BaseException as error:
            with self._lock:
                if not self._done.done():
                    self._done.set_exception(error)

    def _shuffled(self) -> Interactions:
        window = self._window
        order = permutation(
            window.rows, seed=self._seed, stream="shuffle", epoch=window.epoch, position=window.position
        )
        parts, self._parts = [part for part in self._parts if part is not None], []
        return concatenate(parts).take(order[window.skip :])


class _PartitionStream:
    """One lane, of which the next window is fetched while the present one is taken."""

    def __init__(
        self, reader: InteractionReader, shuffle_blocks: Iterator[ShuffleBlock], seed: int, waiting: Stopwatch
    ) -> None:
        self._reader = reader
        self._windows = shuffle_blocks
        self._seed = seed
        self._waiting = waiting
        self._held = concatenate([])
        self._taken = 0
        self._next = self._fetch()

    def _fetch(self) -> _Fetch | None:
        window = next(self._windows, None)
        return None if window is None else _Fetch(self._reader, window, self._seed)

    def take(self, count: int) -> list[Interactions]:
        """The next ``count`` rows, in as many pieces as they lie in."""
        pieces = []
        while count:
            if self._taken == len(self._held):
                self._go_on()
            piece = self._held.take(slice(self._taken, self._taken + count))
            pieces.append(piece)
            self._taken += len(piece)
            count -= len(piece)
        return pieces

    def _go_on(self) -> None:
        """Take up the next window."""
        assert self._next is not None
        with self._waiting.running():
            self._held, self._taken = self._next.wait(), 0
        self._next = self._fetch()
