"""Interaction reader: order, and errors of files that differ from the manifest."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import (
    SplitFiles,
    interaction_table,
    make_interactions,
    numbered_interactions,
    write_data_set,
    write_groups,
)

from crossfade.base.arrays import IntArray
from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.trainer.data import parquet as parquet_files
from crossfade.trainer.data.manifest import Split, read_manifest
from crossfade.trainer.data.parquet import file_entry
from crossfade.trainer.data.reader import InteractionReader, Interactions, RowGroup, row_groups
from crossfade.trainer.data.schedule import BatchSchedule

QUERIES, ITEMS = 11, 13
UNEVEN = [[40, 7, 31], [90], [1, 1, 58, 20], [0, 5], [12, 12, 12, 12]]
ROWS = sum(map(sum, UNEVEN))


def numbers(interactions: Interactions) -> IntArray:
    """Return which interactions these are: each one's weight is its number."""
    return interactions.weight_N.astype(np.int64)


def test_read_all_keeps_the_order_of_the_manifest(tmp_path: Path) -> None:
    manifest = write_data_set(
        tmp_path, {"train": numbered_interactions(UNEVEN, QUERIES, ITEMS)}, queries=QUERIES, items=ITEMS
    )
    reader = InteractionReader(Folder(tmp_path), manifest)
    rows = [numbers(part) for part in reader.read_all(manifest.splits["train"])]
    assert [len(part) for part in rows] == [size for sizes in UNEVEN for size in sizes if size]
    np.testing.assert_array_equal(np.concatenate(rows), np.arange(ROWS))


def test_reader_reads_many_files_repeatedly(tmp_path: Path) -> None:
    files = numbered_interactions([[1]] * 70, QUERIES, ITEMS)
    manifest = write_data_set(tmp_path, {"train": files}, queries=QUERIES, items=ITEMS)
    reader = InteractionReader(Folder(tmp_path), manifest)
    for _ in range(2):
        rows = [numbers(part)[0] for part in reader.read_all(manifest.splits["train"])]
        assert rows == list(range(70))
    reader.close()


def test_weights_of_either_sign_are_read_unchanged(tmp_path: Path) -> None:
    weights = [-1.0, 0.0, 2.5, np.finfo(np.float32).min]
    files = [[make_interactions(range(4), range(4), weights)]]
    manifest = write_data_set(tmp_path, {"train": files}, queries=QUERIES, items=ITEMS)
    [read] = InteractionReader(Folder(tmp_path), manifest).read_all(manifest.splits["train"])
    assert read.weight_N.tolist() == np.array(weights, np.float32).tolist()


VALID: SplitFiles = [[make_interactions(range(5), range(5)), make_interactions(range(4), range(4))]]
SECOND_GROUP = "train/part-00000.parquet, row group 1"


def replace_second_group(**columns: pa.Array) -> Callable[[Path], None]:
    """Return a function that replaces columns of a file's second row group."""

    def corrupt(path: Path) -> None:
        first, second = (interaction_table(group) for group in VALID[0])
        for name, column in columns.items():
            workspace = second.column_names.index(name)
            second = second.set_column(workspace, name, column)
            first = first.set_column(workspace, name, first.column(name).cast(column.type))
        write_groups(path, [first, second])

    return corrupt


def drop_weights(path: Path) -> None:
    write_groups(path, [interaction_table(group).drop_columns("weight") for group in VALID[0]])


def shorten_second_group(path: Path) -> None:
    first, second = (interaction_table(group) for group in VALID[0])
    write_groups(path, [first, second.slice(0, 3)])


def drop_second_group(path: Path) -> None:
    write_groups(path, [interaction_table(VALID[0][0])])


def add_third_group(path: Path) -> None:
    write_groups(path, [interaction_table(group) for group in (*VALID[0], VALID[0][0])])


def corrupt_second_pages(path: Path) -> None:
    """Overwrite the pages of the second row group's first column."""
    column = pq.read_metadata(path).row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("corrupt", "expected"),
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
        (corrupt_second_pages, "cannot be read"),
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
        "corrupt pages",
    ],
)
def test_corrupt_row_group_is_rejected_with_its_place(
    tmp_path: Path, corrupt: Callable[[Path], None], expected: str
) -> None:
    write_data_set(tmp_path, {"train": VALID}, queries=QUERIES, items=ITEMS)
    corrupt(tmp_path / "train" / "part-00000.parquet")
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
    """Replace the content by zeros of the same size."""
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize(
    ("corrupt", "expected"),
    [
        (flip_a_bit_of_the_footer, "its footer has the CRC-32 "),
        (cut_off, " bytes, but the manifest lists "),
        (zero, "is not a Parquet file, or was truncated: it does not end with PAR1"),
        (shorten_second_group, " but the manifest lists "),
        (drop_second_group, " but the manifest lists "),
        (add_third_group, " but the manifest lists "),
    ],
    ids=["bit of the footer", "cut off", "zeros", "shorter row group", "row group missing", "row group too many"],
)
def test_file_that_differs_from_manifest_is_rejected_before_parsing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corrupt: Callable[[Path], None], expected: str
) -> None:
    manifest = write_data_set(tmp_path, {"train": VALID}, queries=QUERIES, items=ITEMS)
    corrupt(tmp_path / "train" / "part-00000.parquet")
    monkeypatch.setattr(parquet_files, "pq", None)
    with pytest.raises(InputError, match=expected) as caught:
        InteractionReader(Folder(tmp_path), manifest).read(row_groups(manifest.splits["train"])[0])
    assert str(caught.value).startswith(f"{tmp_path}/train/part-00000.parquet: ")


def test_file_that_changes_while_reading_is_rejected(tmp_path: Path) -> None:
    manifest = write_data_set(tmp_path, {"train": VALID}, queries=QUERIES, items=ITEMS)
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


def test_missing_file_is_rejected_by_name(tmp_path: Path) -> None:
    manifest = write_data_set(tmp_path, {"train": VALID}, queries=QUERIES, items=ITEMS)
    shutil.rmtree(tmp_path / "train")
    with pytest.raises(InputError, match=r"train/part-00000.parquet: no such file, but the manifest lists it"):
        list(InteractionReader(Folder(tmp_path), manifest).read_all(manifest.splits["train"]))


def test_corrupt_file_raises_in_the_schedule(tmp_path: Path) -> None:
    manifest = write_data_set(tmp_path, {"train": VALID}, queries=QUERIES, items=ITEMS)
    shorten_second_group(tmp_path / "train" / "part-00000.parquet")
    reader, groups = InteractionReader(Folder(tmp_path), manifest), row_groups(manifest.splits["train"])
    schedule = BatchSchedule(reader, groups, batch_size=32, partitions=2, shuffle_block_rows=50, seed=1)
    with pytest.raises(InputError, match=r"train/part-00000.parquet: has [0-9,]+ bytes, but the manifest lists "):
        list(schedule.slices(0, 0, 0, 1))


@pytest.mark.parametrize("seed", range(4))
def test_any_changed_byte_is_detected_without_a_crash(tmp_path: Path, seed: int) -> None:
    files = numbered_interactions([[400, 70]], QUERIES, ITEMS)
    manifest = write_data_set(tmp_path, {"train": files}, queries=QUERIES, items=ITEMS)
    path = tmp_path / "train" / "part-00000.parquet"
    content, choose = path.read_bytes(), random.Random(seed)
    attempts = rejected = same = 0
    for _ in range(60):
        changed = bytearray(content)
        for _ in range(choose.choice([1, 1, 2, 8, 64])):
            changed[choose.randrange(len(changed))] = choose.randrange(256)
        path.write_bytes(changed)
        reader = InteractionReader(Folder(tmp_path), manifest)
        for group, expected in zip(row_groups(manifest.splits["train"]), files[0], strict=True):
            attempts += 1
            try:
                interactions = reader.read(group)
            except InputError as error:
                rejected += str(error).startswith(f"{path}") and "\n" not in str(error)
            else:  # the change is in the other row group, or wrote the same byte
                np.testing.assert_array_equal(numbers(interactions), numbers(expected))
                np.testing.assert_array_equal(interactions.item_N, expected.item_N)
                same += 1
    assert rejected + same == attempts
    assert rejected > 60
