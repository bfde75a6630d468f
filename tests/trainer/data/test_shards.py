"""The order of interactions: each once an epoch, whoever reads, wherever a run resumes; and what a reader refuses."""

import random
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import (
    ITEM,
    QUERY,
    SplitFiles,
    interaction_table,
    make_interactions,
    numbered_interactions,
    write_data_set,
    write_groups,
)
from waiting import wait_until

from kvstore.arrays import IntArray
from kvstore.errors import InputError, StorageUnavailableError
from kvstore.io.folder import Folder
from trainer.data import parquet as parquet_files
from trainer.data.manifest import DatasetManifest, Split, read_manifest
from trainer.data.parquet import file_entry
from trainer.data.prefetch import Prefetcher
from trainer.data.reader import InteractionReader, Interactions, RowGroup, row_groups
from trainer.data.schedule import BatchSchedule, BatchSlice
from trainer.data.stopwatch import Stopwatch

QUERIES, ITEMS = 11, 13
PATIENCE_SECONDS = 30.0
UNEVEN = [[40, 7, 31], [90], [1, 1, 58, 20], [0, 5], [12, 12, 12, 12]]
ROWS = sum(map(sum, UNEVEN))
WORKERS = [1, 2, 3, 5]

Example = tuple[int, int, int]


@pytest.fixture(scope="module")
def uneven_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uneven")
    write_data_set(folder, {"train": numbered_interactions(UNEVEN, QUERIES, ITEMS)}, queries=QUERIES, items=ITEMS)
    return folder


def schedule_of(folder: Path, **changes: int) -> BatchSchedule:
    manifest = read_manifest(Folder(folder))
    options = {"batch_size": 32, "partitions": 4, "shuffle_block_rows": 50, "seed": 1, **changes}
    return BatchSchedule(InteractionReader(Folder(folder), manifest), row_groups(manifest.splits["train"]), **options)


def numbers(interactions: Interactions) -> IntArray:
    """Which interactions these are: their weights say."""
    return interactions.weight_N.astype(np.int64)


def examples_of(share: BatchSlice) -> list[Example]:
    rows = share.interactions
    return list(zip(rows.query_N.tolist(), rows.item_N.tolist(), numbers(rows).tolist(), strict=True))


def global_batches(schedule: BatchSchedule, epoch: int, workers: int, first_step: int = 0) -> list[dict[int, Example]]:
    """The examples of each step by their positions, from the shares of all workers."""
    steps: list[dict[int, Example]] = []
    shares = [schedule.slices(epoch, first_step, rank, workers) for rank in range(workers)]
    for shares_of_step in zip(*shares, strict=True):  # strict: all workers take the same number of steps
        (global_size,) = {share.global_size for share in shares_of_step}
        positions = [position for share in shares_of_step for position in share.positions_B.tolist()]
        assert sorted(positions) == list(range(global_size))
        steps.append(dict(zip(positions, [e for share in shares_of_step for e in examples_of(share)], strict=True)))
    return steps


def order(schedule: BatchSchedule, epoch: int = 0) -> IntArray:
    """The interactions of an epoch in the order in which one worker meets them."""
    return np.concatenate([numbers(share.interactions) for share in schedule.slices(epoch, 0, 0, 1)])


@pytest.mark.parametrize(
    "options",
    [{}, {"partitions": 1}, {"partitions": 100}, {"shuffle_block_rows": 1}, {"shuffle_block_rows": 10**6}],
    ids=str,
)
@pytest.mark.parametrize("workers", WORKERS)
def test_every_interaction_is_read_exactly_once_an_epoch(uneven_data: Path, workers: int, options: dict) -> None:
    batches = global_batches(schedule_of(uneven_data, **options), 0, workers)
    read = Counter(example for batch in batches for example in batch.values())
    assert read == Counter((n % QUERIES, n * 7 % ITEMS, n) for n in range(ROWS))


@pytest.mark.parametrize("batch_size", [1, 32, ROWS, 10**6])
@pytest.mark.parametrize("workers", WORKERS)
def test_every_worker_takes_the_same_number_of_steps(uneven_data: Path, workers: int, batch_size: int) -> None:
    schedule = schedule_of(uneven_data, batch_size=batch_size)
    assert schedule.steps == -(-ROWS // batch_size)
    for rank in range(workers):
        assert len(list(schedule.slices(0, 0, rank, workers))) == schedule.steps


@pytest.mark.parametrize("workers", WORKERS[1:])
def test_a_global_batch_and_its_positions_do_not_depend_on_the_number_of_workers(
    uneven_data: Path, workers: int
) -> None:
    schedule = schedule_of(uneven_data)
    for epoch in (0, 3):
        assert global_batches(schedule, epoch, workers) == global_batches(schedule, epoch, 1)


def test_global_batches_have_about_the_batch_size(uneven_data: Path) -> None:
    schedule = schedule_of(uneven_data)
    sizes = [len(batch) for batch in global_batches(schedule, 0, 1)]
    assert sum(sizes) == ROWS
    assert max(sizes) - min(sizes) <= 2 * 4  # a lane's share moves by at most one


def test_a_worker_beyond_the_lanes_takes_empty_shares(uneven_data: Path) -> None:
    shares = list(schedule_of(uneven_data, partitions=2).slices(0, 0, rank=2, workers=3))
    assert shares
    for share in shares:
        assert len(share.interactions) == len(share.positions_B) == 0
        assert share.global_size > 0


@pytest.mark.parametrize("workers", [1, 3])
def test_starting_at_a_step_gives_the_shares_that_going_there_gives(uneven_data: Path, workers: int) -> None:
    schedule = schedule_of(uneven_data)
    whole = global_batches(schedule, 1, workers)
    for first_step in range(schedule.steps + 1):
        assert global_batches(schedule, 1, workers, first_step) == whole[first_step:]


def test_starting_at_a_step_gives_each_worker_its_examples_in_the_same_order(uneven_data: Path) -> None:
    schedule = schedule_of(uneven_data)
    whole = list(schedule.slices(1, 0, 0, 2))
    for share, resumed in zip(whole[5:], schedule.slices(1, 5, 0, 2), strict=True):
        assert examples_of(resumed) == examples_of(share)
        np.testing.assert_array_equal(resumed.positions_B, share.positions_B)


def test_starting_at_a_step_reads_no_window_that_came_before_it(tmp_path: Path) -> None:
    one_group_a_file = numbered_interactions([[20]] * 5, QUERIES, ITEMS)
    manifest = write_data_set(tmp_path, {"train": one_group_a_file}, queries=QUERIES, items=ITEMS)
    options = {"batch_size": 20, "partitions": 1, "shuffle_block_rows": 20, "seed": 1}
    schedule = BatchSchedule(
        InteractionReader(Folder(tmp_path), manifest), row_groups(manifest.splits["train"]), **options
    )
    for group in schedule.assign_partitions(0)[0][:3]:
        (tmp_path / group.file.path).unlink()
    assert [len(share.interactions) for share in schedule.slices(0, 3, 0, 1)] == [20, 20]


def test_the_same_seed_repeats_and_another_seed_or_epoch_differs(uneven_data: Path) -> None:
    first_N = order(schedule_of(uneven_data))
    np.testing.assert_array_equal(order(schedule_of(uneven_data)), first_N)
    for other_N in (order(schedule_of(uneven_data, seed=2)), order(schedule_of(uneven_data), epoch=1)):
        assert (first_N == other_N).mean() < 0.1


def test_row_groups_are_dealt_to_lanes_anew_each_epoch_and_evenly(uneven_data: Path) -> None:
    schedule = schedule_of(uneven_data)
    largest = max(map(max, UNEVEN))
    for epoch in range(5):
        dealt = schedule.assign_partitions(epoch)
        rows = [sum(group.rows for group in lane) for lane in dealt]
        assert sum(rows) == ROWS
        assert max(rows) - min(rows) <= largest
        assert dealt != schedule.assign_partitions(epoch + 1)


def test_a_window_mixes_the_row_groups_that_it_holds(tmp_path: Path) -> None:
    files = numbered_interactions([[100] * 8], QUERIES, ITEMS)
    write_data_set(tmp_path, {"train": files}, queries=QUERIES, items=ITEMS)
    order_N = order(schedule_of(tmp_path, partitions=1, shuffle_block_rows=400))
    for half_N in (order_N[:400], order_N[400:]):
        groups, rows = np.unique(half_N // 100, return_counts=True)
        assert rows.tolist() == [100] * 4, "a window holds four whole row groups"
        for quarter_N in np.split(half_N, 4):
            found, counts = np.unique(quarter_N // 100, return_counts=True)
            assert found.tolist() == groups.tolist()
            assert counts.min() > 10
    assert (np.diff(order_N) == 1).mean() < 0.02


def test_a_window_smaller_than_a_row_group_still_shuffles_within_it(tmp_path: Path) -> None:
    write_data_set(
        tmp_path, {"train": numbered_interactions([[200] * 2], QUERIES, ITEMS)}, queries=QUERIES, items=ITEMS
    )
    order_N = order(schedule_of(tmp_path, partitions=1, shuffle_block_rows=1))
    for half_N in np.split(order_N, 2):
        assert len(np.unique(half_N // 200)) == 1
        assert (np.diff(half_N) == 1).mean() < 0.05


def test_an_empty_split_has_one_step_of_nothing(tmp_path: Path) -> None:
    empty = Split(files=[])
    reader = InteractionReader(
        Folder(tmp_path), DatasetManifest(query=QUERY, item=ITEM, entities={}, splits={"train": empty})
    )
    schedule = BatchSchedule(reader, [], batch_size=4, partitions=4, shuffle_block_rows=10, seed=1)
    (share,) = schedule.slices(0, 0, 0, 1)
    assert (len(share.interactions), share.global_size) == (0, 0)


def test_reading_all_of_a_split_gives_its_rows_in_the_order_of_the_manifest(uneven_data: Path) -> None:
    manifest = read_manifest(Folder(uneven_data))
    reader = InteractionReader(Folder(uneven_data), manifest)
    rows = [numbers(part) for part in reader.read_all(manifest.splits["train"])]
    assert [len(part) for part in rows] == [size for sizes in UNEVEN for size in sizes if size]
    np.testing.assert_array_equal(np.concatenate(rows), np.arange(ROWS))


def test_a_reader_goes_on_after_more_files_than_it_keeps_open(tmp_path: Path) -> None:
    files = numbered_interactions([[1]] * 70, QUERIES, ITEMS)
    manifest = write_data_set(tmp_path, {"train": files}, queries=QUERIES, items=ITEMS)
    reader = InteractionReader(Folder(tmp_path), manifest)
    for _ in range(2):
        rows = [numbers(part)[0] for part in reader.read_all(manifest.splits["train"])]
        assert rows == list(range(70))
    reader.close()


def test_weights_of_either_sign_are_read_as_they_are(tmp_path: Path) -> None:
    weights = [-1.0, 0.0, 2.5, np.finfo(np.float32).min]
    files = [[make_interactions(range(4), range(4), weights)]]
    manifest = write_data_set(tmp_path, {"train": files}, queries=QUERIES, items=ITEMS)
    [read] = InteractionReader(Folder(tmp_path), manifest).read_all(manifest.splits["train"])
    assert read.weight_N.tolist() == np.array(weights, np.float32).tolist()


GOOD: SplitFiles = [[make_interactions(range(5), range(5)), make_interactions(range(4), range(4))]]
SECOND_GROUP = "train/part-00000.parquet, row group 1"


def replace_second_group(**columns: pa.Array) -> Callable[[Path], None]:
    """Spoils a file by other columns in its second row group. A column's type is one for the whole file."""

    def spoil(path: Path) -> None:
        first, second = (interaction_table(group) for group in GOOD[0])
        for name, column in columns.items():
            place = second.column_names.index(name)
            second = second.set_column(place, name, column)
            first = first.set_column(place, name, first.column(name).cast(column.type))
        write_groups(path, [first, second])

    return spoil


def drop_weights(path: Path) -> None:
    write_groups(path, [interaction_table(group).drop_columns("weight") for group in GOOD[0]])


def shorten_second_group(path: Path) -> None:
    first, second = (interaction_table(group) for group in GOOD[0])
    write_groups(path, [first, second.slice(0, 3)])


def drop_second_group(path: Path) -> None:
    write_groups(path, [interaction_table(GOOD[0][0])])


def add_third_group(path: Path) -> None:
    write_groups(path, [interaction_table(group) for group in (*GOOD[0], GOOD[0][0])])


def spoil_pages(path: Path) -> None:
    """Overwrite the pages of the second row group's first column."""
    column = pq.read_metadata(path).row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (drop_weights, "but not 'weight'"),
        (
            replace_second_group(track=pa.array(range(4), pa.int32())),
            "column 'track' has the type int32, but expected int64",
        ),
        (replace_second_group(weight=pa.array([1.0] * 4)), "column 'weight' has the type double, but expected float"),
        (replace_second_group(track=pa.array([0, 1, None, 2])), "row group 1, row 2: column 'track' is null (1 are)"),
        (
            replace_second_group(weight=pa.array([1, None, None, 1], pa.float32())),
            "row group 1, row 1: column 'weight' is null (2 are), but expected no nulls",
        ),
        (
            replace_second_group(customer=pa.array([0, 1, 2, QUERIES])),
            f"row group 1, row 3: column 'customer' is {QUERIES}, but the vocabulary has rows 0 to {QUERIES - 1}",
        ),
        (replace_second_group(track=pa.array([0, 1, 2, ITEMS])), f"row 3: column 'track' is {ITEMS}, but"),
        (replace_second_group(track=pa.array([0, -1, 2, 3])), "row 1: column 'track' is -1, but"),
        (
            replace_second_group(weight=pa.array([1, float("nan"), 1, 1], pa.float32())),
            "row 1: column 'weight' is nan, but weights must be finite",
        ),
        (
            replace_second_group(weight=pa.array([1, float("inf"), 1, 1], pa.float32())),
            "row 1: column 'weight' is inf, but weights must be finite",
        ),
        (spoil_pages, "cannot be read"),
    ],
    ids=[
        "missing column",
        "column of another integer type",
        "column of another float type",
        "null row",
        "null weight",
        "query outside the vocabulary",
        "item outside the vocabulary",
        "negative row",
        "weight not a number",
        "infinite weight",
        "damaged pages",
    ],
)
def test_a_damaged_shard_is_refused_by_file_and_row_group(
    tmp_path: Path, spoil: Callable[[Path], None], expected: str
) -> None:
    write_data_set(tmp_path, {"train": GOOD}, queries=QUERIES, items=ITEMS)
    spoil(tmp_path / "train" / "part-00000.parquet")
    described = file_entry(Folder(tmp_path), "train/part-00000.parquet")
    manifest = read_manifest(Folder(tmp_path)).model_copy(update={"splits": {"train": Split(files=[described])}})
    with pytest.raises(InputError) as caught:
        InteractionReader(Folder(tmp_path), manifest).read(RowGroup(described, 1, 4))
    assert expected in str(caught.value)
    assert f"{tmp_path}/{SECOND_GROUP}" in str(caught.value)
    assert "\n" not in str(caught.value)


def flip_a_bit_of_the_footer(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def zero(path: Path) -> None:
    """The same size, and nothing in it."""
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (flip_a_bit_of_the_footer, "its footer has the CRC-32 "),
        (cut_off, " bytes, but the manifest says "),
        (zero, "is not a Parquet file, or was truncated: it does not end with PAR1"),
        (shorten_second_group, " but the manifest says "),
        (drop_second_group, " but the manifest says "),
        (add_third_group, " but the manifest says "),
    ],
    ids=["bit of the footer", "cut off", "zeros", "shorter row group", "row group missing", "row group too many"],
)
def test_a_shard_that_is_not_the_one_of_the_manifest_is_refused_before_it_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None], expected: str
) -> None:
    manifest = write_data_set(tmp_path, {"train": GOOD}, queries=QUERIES, items=ITEMS)
    spoil(tmp_path / "train" / "part-00000.parquet")
    monkeypatch.setattr(parquet_files, "pq", None)
    with pytest.raises(InputError, match=expected) as caught:
        InteractionReader(Folder(tmp_path), manifest).read(row_groups(manifest.splits["train"])[0])
    assert str(caught.value).startswith(f"{tmp_path}/train/part-00000.parquet: ")


def test_a_shard_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    manifest = write_data_set(tmp_path, {"train": GOOD}, queries=QUERIES, items=ITEMS)
    reader = InteractionReader(Folder(tmp_path), manifest)
    first, second = row_groups(manifest.splits["train"])
    path = tmp_path / "train" / "part-00000.parquet"
    assert len(reader.read(first)) == 5
    flip_a_bit_of_the_footer(path)
    with pytest.raises(InputError, match=r"part-00000.parquet: its footer .* replaced since this run began"):
        reader.read(second)
    flip_a_bit_of_the_footer(path)
    assert len(reader.read(second)) == 4
    path.unlink()
    with pytest.raises(InputError, match=r"part-00000.parquet: no such file, but the manifest lists it"):
        reader.read(second)


def test_a_missing_shard_is_refused_by_its_name(tmp_path: Path) -> None:
    manifest = write_data_set(tmp_path, {"train": GOOD}, queries=QUERIES, items=ITEMS)
    shutil.rmtree(tmp_path / "train")
    with pytest.raises(InputError, match=r"train/part-00000.parquet: no such file, but the manifest lists it"):
        list(InteractionReader(Folder(tmp_path), manifest).read_all(manifest.splits["train"]))


def test_a_damaged_shard_ends_the_epoch_of_whoever_reads_it(tmp_path: Path) -> None:
    write_data_set(tmp_path, {"train": GOOD}, queries=QUERIES, items=ITEMS)
    shorten_second_group(tmp_path / "train" / "part-00000.parquet")
    shares = schedule_of(tmp_path, partitions=2).slices(0, 0, 0, 1)
    with pytest.raises(InputError, match=r"train/part-00000.parquet: has [0-9,]+ bytes, but the manifest says "):
        list(shares)


@pytest.mark.parametrize("seed", range(4))
def test_no_change_of_bytes_goes_unnoticed_or_brings_the_reader_down(tmp_path: Path, seed: int) -> None:
    files = numbered_interactions([[400, 70]], QUERIES, ITEMS)
    manifest = write_data_set(tmp_path, {"train": files}, queries=QUERIES, items=ITEMS)
    path = tmp_path / "train" / "part-00000.parquet"
    content, choose = path.read_bytes(), random.Random(seed)
    tried = refused = same = 0
    for _ in range(60):
        changed = bytearray(content)
        for _ in range(choose.choice([1, 1, 2, 8, 64])):
            changed[choose.randrange(len(changed))] = choose.randrange(256)
        path.write_bytes(changed)
        reader = InteractionReader(Folder(tmp_path), manifest)
        for group, expected in zip(row_groups(manifest.splits["train"]), files[0], strict=True):
            tried += 1
            try:
                found = reader.read(group)
            except InputError as error:
                refused += str(error).startswith(f"{path}") and "\n" not in str(error)
            else:  # the change was in the other row group, or gave what was there
                np.testing.assert_array_equal(numbers(found), numbers(expected))
                np.testing.assert_array_equal(found.item_N, expected.item_N)
                same += 1
    assert refused + same == tried
    assert refused > 60


# ---- reading ahead


class CountingReader(InteractionReader):
    """A reader that says what it has read, and waits before each row group while it is ``held``."""

    def __init__(self, folder: Path) -> None:
        super().__init__(Folder(folder), read_manifest(Folder(folder)), threads=3)
        self.rows = 0
        self.let_go = threading.Event()
        self.let_go.set()
        self._changed = threading.Condition()

    def read(self, group: RowGroup) -> Interactions:
        assert self.let_go.wait(PATIENCE_SECONDS)
        interactions = super().read(group)
        with self._changed:
            self.rows += group.rows
            self._changed.notify_all()
        return interactions

    def wait_for(self, rows: int) -> None:
        """Return when so many rows have been read."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.rows >= rows, PATIENCE_SECONDS), self.rows


@pytest.fixture
def ten_groups(tmp_path: Path) -> Iterator[CountingReader]:
    """Ten row groups of 20 rows, in two lanes of windows of 20."""
    files = numbered_interactions([[20] * 10], QUERIES, ITEMS)
    write_data_set(tmp_path, {"train": files}, queries=QUERIES, items=ITEMS)
    with closing(CountingReader(tmp_path)) as reader:
        yield reader


def two_lanes(reader: CountingReader, folder: Path) -> BatchSchedule:
    groups = row_groups(read_manifest(Folder(folder)).splits["train"])
    return BatchSchedule(reader, groups, batch_size=10, partitions=2, shuffle_block_rows=20, seed=1)


def test_a_lanes_next_window_is_fetched_while_the_present_one_is_taken_and_no_more(
    tmp_path: Path, ten_groups: CountingReader
) -> None:
    epochs = 3
    shares = two_lanes(ten_groups, tmp_path).slices(0, 0, 0, 1, epochs=epochs)
    for step in range(epochs * 20):
        assert len(next(shares).interactions) == 10
        begun = 2 * 20 * (step // 4 + 1)  # windows that rows were taken from: of both lanes, four steps each
        ten_groups.wait_for(min(begun + 2 * 20, epochs * 200))
        assert ten_groups.rows <= begun + 2 * 20
    assert list(shares) == []


def test_a_window_that_is_late_is_waited_for_and_the_time_counted(tmp_path: Path, ten_groups: CountingReader) -> None:
    waiting = Stopwatch()
    shares = two_lanes(ten_groups, tmp_path).slices(0, 0, 0, 1, wait_timer=waiting)
    next(shares)
    ten_groups.wait_for(80)
    ten_groups.let_go.clear()
    before = waiting.seconds
    with Prefetcher(shares, depth=1) as ahead:
        taken = iter(ahead)
        for _ in range(7):  # what is held: two windows of each lane are eight steps
            next(taken)
        wait_until(lambda: waiting.seconds > before + 0.05, PATIENCE_SECONDS, "a wait that is counted while it lasts")
        ten_groups.let_go.set()
        assert len(next(taken).interactions) == 10


def test_the_end_of_a_run_does_not_wait_for_what_is_being_fetched(tmp_path: Path, ten_groups: CountingReader) -> None:
    schedule = two_lanes(ten_groups, tmp_path)
    ahead = Prefetcher(schedule.slices(0, 0, 0, 1, epochs=100), interrupt=schedule.interrupt)
    with ahead:
        next(iter(ahead))
    assert not ahead._thread.is_alive()
    with pytest.raises(StorageUnavailableError, match="reading was interrupted: the run is ending"):
        ten_groups.read(schedule.assign_partitions(0)[0][0])


def test_epochs_one_after_another_are_those_that_are_read_alone(uneven_data: Path) -> None:
    schedule = schedule_of(uneven_data)
    together = [examples_of(share) for share in schedule.slices(1, 3, 1, 2, epochs=3)]
    alone = [
        examples_of(share) for epoch in (1, 2, 3) for share in schedule.slices(epoch, 3 if epoch == 1 else 0, 1, 2)
    ]
    assert together == alone
