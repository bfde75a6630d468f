"""Batch schedule: every interaction once per epoch, independent of workers and resumption; block prefetching."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import numbered_interactions, write_data_set

from crossfade.base.arrays import IntArray
from crossfade.base.errors import StorageUnavailableError
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import read_manifest
from crossfade.trainer.data.reader import InteractionReader, Interactions, RowGroup, row_groups
from crossfade.trainer.data.schedule import BatchSchedule, BatchSlice, group_order
from crossfade.trainer.training.prefetcher import Prefetcher

QUERIES, ITEMS = 11, 13
TIMEOUT_SECONDS = 180.0
UNEVEN = [[40, 7, 31], [90], [1, 1, 58, 20], [0, 5], [12, 12, 12, 12]]
ROWS = sum(map(sum, UNEVEN))

Example = tuple[int, int, int]


@pytest.fixture(scope="module")
def uneven_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uneven")
    write_data_set(folder, {"train": numbered_interactions(UNEVEN, QUERIES, ITEMS)}, queries=QUERIES, items=ITEMS)
    return folder


def schedule_of(folder: Path, **changes: int | None) -> BatchSchedule:
    manifest = read_manifest(Folder(folder))
    options: dict[str, Any] = {"batch_size": 32, "partitions": 4, "shuffle_block_rows": 50, "seed": 1, **changes}
    return BatchSchedule(InteractionReader(Folder(folder), manifest), row_groups(manifest.splits["train"]), **options)


def numbers(interactions: Interactions) -> IntArray:
    """Return which interactions these are: each one's weight is its number."""
    return interactions.weight_N.astype(np.int64)


def examples_of(batch_slice: BatchSlice) -> list[Example]:
    rows = batch_slice.interactions
    return list(zip(rows.query_N.tolist(), rows.item_N.tolist(), numbers(rows).tolist(), strict=True))


def global_batches(schedule: BatchSchedule, epoch: int, workers: int, first_step: int = 0) -> list[dict[int, Example]]:
    """Return the examples of each step by position, from the slices of all workers."""
    steps: list[dict[int, Example]] = []
    slices = [schedule.slices(epoch, first_step, rank, workers) for rank in range(workers)]
    for slices_of_step in zip(*slices, strict=True):  # strict: all workers take the same number of steps
        (global_size,) = {part.global_size for part in slices_of_step}
        positions = [position for part in slices_of_step for position in part.positions_B.tolist()]
        assert sorted(positions) == list(range(global_size))
        steps.append(dict(zip(positions, [e for part in slices_of_step for e in examples_of(part)], strict=True)))
    return steps


def order(schedule: BatchSchedule, epoch: int = 0) -> IntArray:
    """Return the interactions of an epoch in the order in which one worker reads them."""
    return np.concatenate([numbers(part.interactions) for part in schedule.slices(epoch, 0, 0, 1)])


@pytest.mark.parametrize(
    ("workers", "options"),
    [
        (1, {}),
        (2, {"partitions": 1}),
        (3, {"partitions": 100}),
        (5, {"shuffle_block_rows": 1}),
        (2, {"shuffle_block_rows": 10**6}),
        (3, {"group_rows": None}),
        (5, {"group_rows": 3, "shuffle_block_rows": 10**6}),
    ],
    ids=str,
)
def test_every_interaction_is_read_exactly_once_per_epoch(uneven_data: Path, workers: int, options: dict) -> None:
    batches = global_batches(schedule_of(uneven_data, **options), 0, workers)
    read = Counter(example for batch in batches for example in batch.values())
    assert read == Counter((n % QUERIES, n * 7 % ITEMS, n) for n in range(ROWS))


@pytest.mark.parametrize(("workers", "group_rows"), [(2, 1), (3, 3), (5, None)])
def test_global_batch_does_not_depend_on_number_of_workers(
    uneven_data: Path, workers: int, group_rows: int | None
) -> None:
    schedule = schedule_of(uneven_data, group_rows=group_rows)
    for epoch in (0, 3):
        assert global_batches(schedule, epoch, workers) == global_batches(schedule, epoch, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "group_rows"), [(1, 1), (3, None)])
def test_starting_at_a_step_yields_the_remaining_slices(
    uneven_data: Path, workers: int, group_rows: int | None
) -> None:
    schedule = schedule_of(uneven_data, group_rows=group_rows)
    expected = global_batches(schedule, 1, workers)
    for first_step in range(schedule.steps + 1):
        assert global_batches(schedule, 1, workers, first_step) == expected[first_step:]


@pytest.mark.parametrize("workers", [1, 4])
def test_grouped_interactions_of_a_query_are_read_together(uneven_data: Path, workers: int) -> None:
    # One block for each of the four partitions: a query is split where a partition or a step ends.
    schedule = schedule_of(uneven_data, group_rows=None, shuffle_block_rows=10**6)
    for rank in range(workers):
        slices = schedule.slices(0, 0, rank, workers)
        queries = [part.interactions.query_N[start:end] for part in slices for start, end in partition_bounds(part)]
        partitions = len(schedule.partitions_of(rank, workers))
        for partition in range(partitions):
            query_N = np.concatenate(queries[partition::partitions])
            assert np.count_nonzero(np.diff(query_N)) == len(np.unique(query_N)) - 1


def partition_bounds(part: BatchSlice) -> list[tuple[int, int]]:
    ends = np.cumsum(part.partition_sizes_P).tolist()
    return list(pairwise([0, *ends]))


def test_order_repeats_by_seed_and_differs_by_seed_and_epoch(uneven_data: Path) -> None:
    first_N = order(schedule_of(uneven_data))
    np.testing.assert_array_equal(order(schedule_of(uneven_data)), first_N)
    for other_N in (order(schedule_of(uneven_data, seed=2)), order(schedule_of(uneven_data), epoch=1)):
        assert (first_N == other_N).mean() < 0.1


def test_shuffle_block_mixes_its_row_groups(tmp_path: Path) -> None:
    files = numbered_interactions([[100] * 8], QUERIES, ITEMS)
    write_data_set(tmp_path, {"train": files}, queries=QUERIES, items=ITEMS)
    order_N = order(schedule_of(tmp_path, partitions=1, shuffle_block_rows=400))
    for half_N in (order_N[:400], order_N[400:]):
        groups, rows = np.unique(half_N // 100, return_counts=True)
        assert rows.tolist() == [100] * 4, "a shuffle block holds four complete row groups"
        for quarter_N in np.split(half_N, 4):
            found, counts = np.unique(quarter_N // 100, return_counts=True)
            assert found.tolist() == groups.tolist()
            assert counts.min() > 10
    assert (np.diff(order_N) == 1).mean() < 0.02


# ---- prefetching of shuffle blocks


class CountingReader(InteractionReader):
    """Counts the rows it has read."""

    def __init__(self, folder: Path) -> None:
        super().__init__(Folder(folder), read_manifest(Folder(folder)), threads=3)
        self.rows = 0
        self._changed = threading.Condition()

    def read(
        self, group: RowGroup, context: Sequence[str] | None = None, history_length: int | None = None
    ) -> Interactions:
        interactions = super().read(group, context, history_length)
        with self._changed:
            self.rows += group.rows
            self._changed.notify_all()
        return interactions

    def wait_for(self, rows: int) -> None:
        """Wait until so many rows have been read."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.rows >= rows, TIMEOUT_SECONDS), self.rows


@pytest.fixture
def ten_groups(tmp_path: Path) -> Iterator[CountingReader]:
    """Open ten row groups of 20 rows, for two partitions with shuffle blocks of 20."""
    files = numbered_interactions([[20] * 10], QUERIES, ITEMS)
    write_data_set(tmp_path, {"train": files}, queries=QUERIES, items=ITEMS)
    with closing(CountingReader(tmp_path)) as reader:
        yield reader


def two_partitions(reader: CountingReader, folder: Path) -> BatchSchedule:
    groups = row_groups(read_manifest(Folder(folder)).splits["train"])
    return BatchSchedule(reader, groups, batch_size=10, partitions=2, shuffle_block_rows=20, seed=1)


def test_partition_prefetches_exactly_one_shuffle_block(
    tmp_path: Path, ten_groups: CountingReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossfade.trainer.data.schedule.MAX_KEPT_BYTES", 0)
    epochs = 3
    slices = two_partitions(ten_groups, tmp_path).slices(0, 0, 0, 1, epochs=epochs)
    for step in range(epochs * 20):
        assert len(next(slices).interactions) == 10
        begun = 2 * 20 * (step // 4 + 1)  # rows of blocks in use: of both partitions, four steps each
        ten_groups.wait_for(min(begun + 2 * 20, epochs * 200))
        assert ten_groups.rows <= begun + 2 * 20
    assert list(slices) == []


@pytest.mark.parametrize(("kept_bytes", "rows_read"), [(10 * 400, 200), (2 * 400, 200 + 8 * 20), (399, 400)])
def test_row_groups_that_fit_are_read_once(
    tmp_path: Path, ten_groups: CountingReader, monkeypatch: pytest.MonkeyPatch, kept_bytes: int, rows_read: int
) -> None:
    monkeypatch.setattr("crossfade.trainer.data.schedule.MAX_KEPT_BYTES", kept_bytes)
    schedule = two_partitions(ten_groups, tmp_path)
    epochs = [[part.interactions.item_N for part in schedule.slices(epoch, 0, 0, 1)] for epoch in (0, 1)]
    assert ten_groups.rows == rows_read
    first_N, second_N = map(np.concatenate, epochs)
    assert np.array_equal(np.sort(first_N), np.sort(second_N))
    assert not np.array_equal(first_N, second_N)


def test_interrupt_does_not_wait_for_pending_reads(tmp_path: Path, ten_groups: CountingReader) -> None:
    schedule = two_partitions(ten_groups, tmp_path)
    ahead = Prefetcher(schedule.slices(0, 0, 0, 1, epochs=100), interrupt=schedule.interrupt)
    with ahead:
        next(iter(ahead))
    assert not ahead._thread.is_alive()
    with pytest.raises(StorageUnavailableError, match="reading was interrupted: the run is ending"):
        ten_groups.read(schedule.assign_partitions(0)[0][0])


def test_chunks_have_at_most_the_given_rows() -> None:
    query_N = np.repeat(np.arange(50), 7)
    order_N = group_order(query_N, group_rows=3, seed=1, stream="shuffle", epoch=0, position=0)
    # Chunks of 3, 3 and 1 rows.
    chunk_N = order_N // 7 * 3 + order_N % 7 // 3
    starts_N = np.flatnonzero(np.diff(chunk_N, prepend=-1))
    assert len(starts_N) == len(np.unique(chunk_N)) == 150
