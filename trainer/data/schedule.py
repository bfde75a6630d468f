"""The order in which interactions are read: partitions, shuffle blocks and batch slices.

    schedule = BatchSchedule(
        reader, row_groups(split), batch_size=16_384, partitions=16, shuffle_block_rows=131_072, seed=1
    )
    for batch_slice in schedule.slices(epoch=0, first_step=0, rank=0, workers=2):
        batch_slice.interactions, batch_slice.positions_B

An epoch's row groups are shuffled and assigned to *partitions*. Of P partitions, worker w of W reads those from ⌊w·P/W⌋
up to ⌊(w+1)·P/W⌋, a block, so that gradients can be summed in an order that does not depend on W
(``kvstore/tree_sums.py``). Each step takes rows from every partition, in proportion to the rows the partition has, so
that all partitions end with the epoch's last step:

    rows of partition p in step t:  c(t) up to c(t+1), where c(t) = ⌊(n_p·t + p·T/P) / T⌋
                                    T = ⌈rows / batch size⌉ steps an epoch, P partitions

The term p·T/P keeps the partitions from rounding up in the same step, so global batches differ little in size.

A global batch, and each example's position in it, thus follow only from (seed, epoch, step): neither the number of
workers nor the step at which a run resumes changes what a step sees. Every worker takes T steps, every interaction is
read exactly once an epoch, and a worker computes the size of the global batch without the others.

Within a partition, row groups are gathered into *shuffle blocks*, and rows are shuffled within their block, one by one
or in groups of the same query (``group_order``). While the current block of a partition is consumed, other threads
fetch the next one, across the end of an epoch too, so a worker holds two blocks per partition. Of the row groups that
were read, it keeps up to ``MAX_KEPT_BYTES`` for the following epochs.

Shapes: B examples of a slice, P partitions, N rows, R runs of equal queries, C chunks.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossfade.base.arrays import IntArray
from crossfade.base.stopwatch import Stopwatch
from crossfade.kvstore.jit import njit
from crossfade.kvstore.philox import permutation
from crossfade.trainer.data.query_history import concatenate_ranges
from crossfade.trainer.data.reader import InteractionReader, Interactions, RowGroup, concatenate

# Labels of the random streams. They seed the draws, so they never change.
_ASSIGNMENT_STREAM = "deal"
_SHUFFLE_STREAM = "shuffle"
MAX_KEPT_BYTES = 256 << 20
"""Row groups that a worker keeps at most: 13 million interactions without context."""


@dataclass(frozen=True)
class BatchSlice:
    """One worker's slice of a global batch.

    Attributes:
        interactions: the worker's examples, partition by partition.
        positions_B: the position of each example in the global batch.
        global_size: examples of the global batch.
        partition_sizes_P: examples of each of the worker's partitions; empty: all are of a single one.
        partitions: number of partitions of the global batch.
        first_partition: number of the worker's first partition; the others follow it.
    """

    interactions: Interactions
    positions_B: IntArray
    global_size: int
    partition_sizes_P: tuple[int, ...] = ()
    partitions: int = 1
    first_partition: int = 0


@dataclass(frozen=True)
class ShuffleBlock:
    """Consecutive row groups of a partition whose rows are shuffled together.

    Attributes:
        groups: the row groups.
        epoch: the epoch, which seeds the permutation.
        position: the block's number within the epoch, unique over partitions, which seeds it too.
        skip: how many of the shuffled rows to skip, when a run resumes within the block.
    """

    groups: Sequence[RowGroup]
    epoch: int
    position: int
    skip: int

    @property
    def rows(self) -> int:
        """Rows of the block, those to skip included."""
        return sum(group.rows for group in self.groups)


class BatchSchedule:
    """Assigns the rows of each epoch to steps, and reads one worker's slices."""

    def __init__(
        self,
        reader: InteractionReader,
        groups: Sequence[RowGroup],
        *,
        batch_size: int,
        partitions: int,
        shuffle_block_rows: int,
        seed: int,
        group_rows: int | None = 1,
        history_length: int | None = None,
    ) -> None:
        """Schedule ``groups`` in global batches of about ``batch_size``; the module describes how.

        Up to ``group_rows`` rows of a query in a shuffle block are read one after the other; None: all of them. They
        have histories of up to ``history_length`` items; None: they have none.
        """
        self._groups = groups
        self.partitions = min(partitions, len(self._groups))
        self._block_rows = shuffle_block_rows
        self._seed = seed
        self._group_rows = group_rows
        self.rows = sum(group.rows for group in groups)
        self.steps = max(1, -(-self.rows // batch_size))
        self._reader = reader
        self._read = _KeptGroups(partial(reader.read, history_length=history_length))

    def assign_partitions(self, epoch: int) -> list[list[RowGroup]]:
        """Assign the row groups of ``epoch`` to partitions: in random order, each to the one with the fewest rows."""
        assigned: list[list[RowGroup]] = [[] for _ in range(self.partitions)]
        fill = [(0, partition) for partition in range(self.partitions)]
        for index in permutation(
            len(self._groups), seed=self._seed, stream=_ASSIGNMENT_STREAM, epoch=epoch, position=0
        ):
            rows, partition = heapq.heappop(fill)
            assigned[partition].append(self._groups[index])
            heapq.heappush(fill, (rows + self._groups[index].rows, partition))
        return assigned

    def partitions_of(self, rank: int, workers: int) -> range:
        """Return the numbers of the partitions that worker ``rank`` reads."""
        return range(rank * self.partitions // workers, (rank + 1) * self.partitions // workers)

    def slices(
        self,
        epoch: int,
        first_step: int,
        rank: int,
        workers: int,
        epochs: int = 1,
        wait_timer: Stopwatch | None = None,
    ) -> Iterator[BatchSlice]:
        """Yield the slices of worker ``rank`` for ``epochs`` epochs, starting at ``first_step`` of ``epoch``.

        ``wait_timer`` measures the seconds spent waiting for shuffle blocks.
        """
        assignments: dict[int, list[list[RowGroup]]] = {}

        def assignment(at: int) -> list[list[RowGroup]]:
            if at not in assignments:
                assignments[at] = self.assign_partitions(at)
            return assignments[at]

        def shuffle_blocks(partition: int) -> Iterator[ShuffleBlock]:
            for at in range(epoch, epoch + epochs):
                skip = int(self._rows_before(_rows(assignment(at)), first_step)[partition]) if at == epoch else 0
                yield from self.shuffle_blocks(at, partition, assignment(at)[partition], skip)

        timer = wait_timer or Stopwatch()
        streams = {
            partition: _PartitionStream(self._fetch, shuffle_blocks(partition), timer)
            for partition in self.partitions_of(rank, workers)
        }
        for at in range(epoch, epoch + epochs):
            rows_P = _rows(assignment(at))
            for step in range(first_step if at == epoch else 0, self.steps):
                yield self._slice(streams, self._rows_before(rows_P, step), self._rows_before(rows_P, step + 1))
            del assignments[at]

    def _fetch(self, block: ShuffleBlock) -> _BlockFetch:
        return _BlockFetch(self._reader.submit, self._read, block, self._seed, self._group_rows)

    @staticmethod
    def _slice(streams: dict[int, _PartitionStream], before_P: IntArray, after_P: IntArray) -> BatchSlice:
        count_P = after_P - before_P
        first_P = np.cumsum(count_P) - count_P
        parts = [streams[partition].take(int(count_P[partition])) for partition in streams]
        return BatchSlice(
            concatenate([part for partition_parts in parts for part in partition_parts]),
            concatenate_ranges(first_P[list(streams)], count_P[list(streams)]),
            int(count_P.sum()),
            tuple(int(count_P[partition]) for partition in streams),
            len(count_P),
            next(iter(streams), 0),
        )

    def _rows_before(self, rows_P: IntArray, step: int) -> IntArray:
        """Return how many rows of each partition are taken before ``step``: c(step) of the module's formula."""
        offset_P = np.arange(self.partitions, dtype=np.int64) * self.steps // max(1, self.partitions)
        before_P: IntArray = (rows_P * step + offset_P) // self.steps
        return before_P

    def shuffle_blocks(self, epoch: int, partition: int, groups: list[RowGroup], skip: int) -> Iterator[ShuffleBlock]:
        """Yield the shuffle blocks of a partition from row ``skip`` on, each of as many row groups as it needs."""
        held: list[RowGroup] = []
        number = rows = 0
        for place, group in enumerate(groups):
            held.append(group)
            rows += group.rows
            if rows < self._block_rows and place + 1 < len(groups):
                continue
            if skip < rows:
                yield ShuffleBlock(held, epoch, (partition << 32) | number, skip)
            skip = max(0, skip - rows)
            held, rows = [], 0
            number += 1

    def interrupt(self) -> None:
        """Stop reading: threads that wait for a slice get an error soon."""
        self._reader.interrupt()


def _rows(assignment: list[list[RowGroup]]) -> IntArray:
    """Return the rows of each partition, int64 (P,)."""
    return np.array([sum(group.rows for group in groups) for groups in assignment], dtype=np.int64)


class _KeptGroups:
    """Reads row groups, and keeps the first ones that fit: every epoch needs all of them again."""

    def __init__(self, read: Callable[[RowGroup], Interactions]) -> None:
        self._read = read
        self._kept: dict[tuple[str, int], Interactions] = {}
        self._free_bytes = MAX_KEPT_BYTES
        self._lock = threading.Lock()

    def __call__(self, group: RowGroup) -> Interactions:
        """Return the interactions of ``group``; raises what ``InteractionReader.read`` does."""
        place = group.file.path, group.index
        if place in self._kept:
            return self._kept[place]
        found = self._read(group)
        with self._lock:
            if found.nbytes <= self._free_bytes and place not in self._kept:
                self._kept[place] = found
                self._free_bytes -= found.nbytes
        return found


@dataclass(eq=False)
class _BlockFetch:
    """A shuffle block being fetched: threads read its row groups, and the last to finish joins and shuffles them."""

    submit: Callable[..., object]
    read: Callable[[RowGroup], Interactions]
    block: ShuffleBlock
    seed: int
    group_rows: int | None

    def __post_init__(self) -> None:
        self._parts: list[Interactions | None] = [None] * len(self.block.groups)
        self._left = len(self.block.groups)
        self._lock = threading.Lock()
        self._done: Future[Interactions] = Future()
        for place in range(len(self.block.groups)):
            self.submit(self._read, place)

    def wait(self) -> Interactions:
        """Return the shuffled rows; raise the error of whichever thread failed."""
        return self._done.result()

    def _read(self, place: int) -> None:
        try:
            if not self._done.done():
                self._parts[place] = self.read(self.block.groups[place])
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
        block = self.block
        parts, self._parts = [part for part in self._parts if part is not None], []
        joined = concatenate(parts)
        order = group_order(
            joined.query_N,
            group_rows=self.group_rows,
            seed=self.seed,
            stream=_SHUFFLE_STREAM,
            epoch=block.epoch,
            position=block.position,
        )
        order_M = order[block.skip :]
        context_MK = None if joined.context_NK is None else joined.context_NK[order_M]
        columns = (_read_only(column_N) for column_N in (joined.query_N, joined.item_N, joined.weight_N))
        query_M, item_M, weight_M = _take(*columns, order_M)
        history = None if joined.history is None else joined.history.take(order_M)
        return Interactions(query_M, item_M, weight_M, context_MK, history)


def _read_only(column_N: NDArray[Any]) -> NDArray[Any]:
    """Return a view that cannot be written to, as columns of a file are: a kernel is compiled for each type."""
    view_N = column_N.view()
    view_N.flags.writeable = False
    return view_N


@njit(cache=True, error_model="numpy", nogil=True)
def _take(query_N, item_N, weight_N, order_M):  # type: ignore[no-untyped-def]
    """Return the interactions at ``order_M``, in a fifth of the time that numpy takes."""
    query_M, item_M = np.empty(order_M.shape[0], np.int64), np.empty(order_M.shape[0], np.int64)
    weight_M = np.empty(order_M.shape[0], np.float32)
    for m in range(order_M.shape[0]):
        n = order_M[m]
        query_M[m], item_M[m], weight_M[m] = query_N[n], item_N[n], weight_N[n]
    return query_M, item_M, weight_M


@dataclass(eq=False)
class _PartitionStream:
    """The rows of one partition; the next shuffle block is fetched while the current one is consumed."""

    fetch: Callable[[ShuffleBlock], _BlockFetch]
    blocks: Iterator[ShuffleBlock]
    wait_timer: Stopwatch

    def __post_init__(self) -> None:
        self._current, self._consumed = concatenate([]), 0
        self._next = self._fetch_next()

    def _fetch_next(self) -> _BlockFetch | None:
        block = next(self.blocks, None)
        return None if block is None else self.fetch(block)

    def take(self, count: int) -> list[Interactions]:
        """Return the next ``count`` rows, in one piece per shuffle block."""
        pieces = []
        while count:
            if self._consumed == len(self._current):
                self._advance()
            piece = self._current.take(slice(self._consumed, self._consumed + count))
            # Without the sequence of the complete block, which the batch would copy.
            pieces.append(piece if piece.history is None else replace(piece, history=piece.history.compact()))
            self._consumed += len(piece)
            count -= len(piece)
        return pieces

    def _advance(self) -> None:
        assert self._next is not None
        with self.wait_timer.running():
            self._current, self._consumed = self._next.wait(), 0
        self._next = self._fetch_next()


def group_order(
    query_N: IntArray, *, group_rows: int | None, seed: int, stream: str, epoch: int, position: int
) -> IntArray:
    """Return a random order of rows, int64 (N,), that keeps rows of a query together.

    A softmax over all items scores a query once for all its rows of a step. Where a step holds all interactions of a
    few queries, rather than a few interactions of most queries, an epoch scores every query about once, and pulls and
    pushes its row about once.

    Args:
        query_N: the query of each row, int64, in any order. It is fastest if the rows of a query are consecutive.
        group_rows: rows of a query that stay together, at most; None: all of them.
        seed: seed of the permutation of the chunks, as the following.
        stream: label of the random stream.
        epoch: the epoch.
        position: the position of the permutation within the epoch.
    """
    if group_rows == 1 or len(query_N) == 0:
        return permutation(len(query_N), seed=seed, stream=stream, epoch=epoch, position=position)
    starts_R = np.flatnonzero(np.concatenate([[True], query_N[1:] != query_N[:-1]]))
    sizes_R = np.diff(starts_R, append=len(query_N))
    by_query_R = np.argsort(query_N[starts_R], kind="stable")
    rows_N = concatenate_ranges(starts_R[by_query_R], sizes_R[by_query_R])
    chunk_starts_C = _chunk_starts(query_N, rows_N, group_rows or len(query_N))
    chunk_sizes_C = np.diff(chunk_starts_C, append=len(rows_N))
    order_C = permutation(len(chunk_starts_C), seed=seed, stream=stream, epoch=epoch, position=position)
    order_N: IntArray = rows_N[concatenate_ranges(chunk_starts_C[order_C], chunk_sizes_C[order_C])]
    return order_N


@njit(cache=True, error_model="numpy", nogil=True)
def _chunk_starts(query_N, rows_N, chunk_rows):  # type: ignore[no-untyped-def]
    """Return where the chunks start in ``rows_N``, rows ordered by query: at a new query, or after ``chunk_rows``."""
    starts_C, chunks = np.empty(rows_N.shape[0], np.int64), 0
    for n in range(rows_N.shape[0]):
        is_new = n == 0 or query_N[rows_N[n]] != query_N[rows_N[n - 1]]
        if is_new or n - starts_C[chunks - 1] == chunk_rows:
            starts_C[chunks] = n
            chunks += 1
    return starts_C[:chunks].copy()
