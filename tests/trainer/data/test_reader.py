"""Interaction reader: order, and errors of files that differ from the manifest."""

import random
import resource
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

QUERIES, ITEMS = 11, 13
UNEVEN = [[40, 7, 31], [0], [90], [1, 1, 58, 20], [0, 5], [12, 12, 12, 12]]
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


def test_more_files_are_read_than_a_process_may_open(tmp_path: Path) -> None:
    files = numbered_interactions([[3]] * 300, QUERIES, ITEMS)
    manifest = write_data_set(tmp_path, {"train": files}, queries=QUERIES, items=ITEMS)
    most = max(int(path.name) for path in Path("/proc/self/fd").iterdir()) + 40
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, before[1]))
    try:
        read = list(InteractionReader(Folder(tmp_path), manifest).read_all(manifest.splits["train"]))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert len(read) == 300


def test_log_weights_keep_signs(tmp_path: Path) -> None:
    files = [[make_interactions(range(4), range(4), [1.0, -1.0, -7.0, 0.0])]]
    manifest = write_data_set(tmp_path, {"train": files}, queries=QUERIES, items=ITEMS)
    [read] = InteractionReader(Folder(tmp_path), manifest, log_weights=True).read_all(manifest.splits["train"])
    assert read.weight_N.tolist() == [1.0, -1.0, -3.0, 0.0]


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


def corrupt_second_pages(path: Path) -> None:
    """Overwrite the pages of the second row group's first column."""
    column = pq.read_metadata(path).row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(content)


INVALID: list[tuple[Callable[[Path], None], str]] = [
    (corrupt_second_pages, ": is corrupt and cannot be read"),
    (drop_weights, ": has the columns customer, track, but not 'weight'"),
    (replace_second_group(track=pa.array(range(4), pa.int32())), ": column 'track' has the type int32, but expected"),
    (replace_second_group(track=pa.array([0, 1, None, 2])), ", row 2: column 'track' is null (1 are)"),
    (replace_second_group(weight=pa.array([1, None, 1, 1], pa.float32())), ", row 1: column 'weight' is null (1 are)"),
    (
        replace_second_group(customer=pa.array([0, 1, 2, QUERIES])),
        f", row 3: column 'customer' is {QUERIES}, but the vocabulary has rows 0 to {QUERIES - 1}",
    ),
    (replace_second_group(track=pa.array([0, -1, 2, 3])), ", row 1: column 'track' is -1"),
    (replace_second_group(weight=pa.array([1, float("nan"), 1, 1], pa.float32())), ", row 1: column 'weight' is nan"),
    (replace_second_group(weight=pa.array([1, 1, float("-inf"), 1], pa.float32())), ", row 2: column 'weight' is -inf"),
]


@pytest.mark.parametrize(("corrupt", "problem"), INVALID)
def test_corrupt_row_group_is_rejected_with_its_place(
    tmp_path: Path, corrupt: Callable[[Path], None], problem: str
) -> None:
    write_data_set(tmp_path, {"train": VALID}, queries=QUERIES, items=ITEMS)
    corrupt(tmp_path / "train" / "part-00000.parquet")
    described = file_entry(Folder(tmp_path), "train/part-00000.parquet")
    manifest = read_manifest(Folder(tmp_path)).model_copy(update={"splits": {"train": Split(files=[described])}})
    with pytest.raises(InputError) as caught:
        InteractionReader(Folder(tmp_path), manifest).read(RowGroup(described, 1, 4))
    assert str(caught.value).startswith(f"{tmp_path}/{SECOND_GROUP}{problem}")


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
    ("corrupt", "problem"),
    [
        (flip_a_bit_of_the_footer, "but the manifest lists"),
        (cut_off, "bytes, but the manifest lists"),
        (zero, "is not a Parquet file, or was truncated"),
    ],
)
def test_file_that_differs_from_manifest_is_rejected_before_parsing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corrupt: Callable[[Path], None], problem: str
) -> None:
    manifest = write_data_set(tmp_path, {"train": VALID}, queries=QUERIES, items=ITEMS)
    corrupt(tmp_path / "train" / "part-00000.parquet")
    monkeypatch.setattr(parquet_files, "pq", None)
    with pytest.raises(InputError) as caught:
        InteractionReader(Folder(tmp_path), manifest).read(row_groups(manifest.splits["train"])[0])
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/train/part-00000.parquet: ")
    assert problem in message


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
    with pytest.raises(InputError) as caught:
        reader.read(second)
    assert "no such file, but the manifest lists it" in str(caught.value)


@pytest.mark.parametrize("seed", range(2))
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
