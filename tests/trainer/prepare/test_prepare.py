"""Preparing raw events: vocabularies, shards and the manifest that are written, and that they are deterministic."""

import csv
import random
from collections import Counter
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from preparing import checksums, interactions, prepare_files, random_events, vocabulary, write_parquet, write_text

from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import read_manifest
from crossfade.trainer.prepare import id_encoder
from crossfade.trainer.prepare.option_values import NamesFile
from crossfade.trainer.prepare.staging import PartWriter, Staged
from crossfade.trainer.prepare.summary import format_summary

pytestmark = pytest.mark.slow


def test_rows_map_back_to_ids(tmp_path: Path) -> None:
    events = random_events(3000)
    weights = [index % 5 + 0.5 for index in range(3000)]
    train = write_parquet(tmp_path / "train.parquet", **events, plays=weights)
    test = write_parquet(tmp_path / "test.parquet", customer=["new", "c1"], item=[1, 1000], when=[5, 6], plays=[1, 2])
    manifest = prepare_files(tmp_path / "out", train, test=[test], weight="plays", timestamp="when")
    expected = list(zip(events["customer"], events["item"], weights, events["when"], strict=True))
    assert Counter(interactions(tmp_path / "out", "train")) == Counter(expected)
    assert Counter(interactions(tmp_path / "out", "test")) == Counter([("new", 1, 1.0, 5), ("c1", 1000, 2.0, 6)])
    assert manifest == read_manifest(Folder(tmp_path / "out"))
    assert manifest.entities["customer"].id_type == "string"
    assert manifest.entities["item"].id_type == "int64"


def test_vocabulary_is_ordered_by_train_count_then_id_and_holds_ids_of_all_splits(tmp_path: Path) -> None:
    events = random_events(2000)
    train = write_parquet(tmp_path / "train.parquet", **events)
    valid = write_parquet(tmp_path / "valid.parquet", customer=["zz", "aa"], item=[7, 1000])
    prepare_files(tmp_path / "out", train, valid=[valid])
    for entity, unseen in (("customer", ["aa", "zz"]), ("item", [7])):
        counted = Counter(events[entity])
        counted.update(dict.fromkeys(unseen, 0))
        expected = sorted(counted.items(), key=lambda pair: (-pair[1], pair[0]))
        rows = vocabulary(tmp_path / "out", entity)
        assert [(row["id"], row["count"]) for row in rows] == expected
        assert [row["row"] for row in rows] == list(range(len(expected)))


def test_part_writer_cuts_exact_row_groups_and_files_of_64_groups(tmp_path: Path) -> None:
    schema = pa.schema([pa.field("x", pa.int64(), nullable=False)])
    folder, numbers, sizes = Folder(tmp_path), iter(range(10**6)), [1, 250, 7, 0, 93, 300, 5]
    with PartWriter(Staged(folder, False, folder, tmp_path, ""), "train", schema, 10) as writer:
        for size in sizes:
            writer.write(pa.record_batch([pa.array([next(numbers) for _ in range(size)], pa.int64())], schema=schema))
        files = writer.close()
    assert [file.row_groups for file in files] == [[10] * 64, [10] * 1 + [6]]
    assert [file.path for file in files] == ["train/part-00000.parquet", "train/part-00001.parquet"]
    values = [value for file in files for value in pq.read_table(tmp_path / file.path)["x"].to_pylist()]
    assert values == list(range(sum(sizes)))


def test_interactions_of_a_query_are_together_and_in_random_order(tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "e.parquet", **random_events(5000))
    assert prepare_files(tmp_path / "out", train, hold_out_valid="none").is_grouped
    rows = interactions(tmp_path / "out", "train")
    groups = [(query, [row[1] for row in group]) for query, group in groupby(rows, key=itemgetter(0))]
    assert len(groups) == len({query for query, _ in groups})
    # Neither the queries nor the items of a query are sorted.
    ordered = [first < second for first, second in pairwise(query for query, _ in groups)]
    assert 0.2 < np.mean(ordered) < 0.8
    ordered = [first <= second for _, items in groups for first, second in pairwise(items)]
    assert 0.4 < np.mean(ordered) < 0.6


@pytest.mark.slow
def test_output_bytes_do_not_depend_on_threads_or_input_format(tmp_path: Path) -> None:
    count = 125_000  # more than one of DuckDB's own row groups, so that threads do share the work
    draw = random.Random(3)
    columns = {
        "customer": [draw.randrange(9000) for _ in range(count)],
        "item": [draw.randrange(500) for _ in range(count)],
    }
    train = write_parquet(tmp_path / "e.parquet", **columns)
    text = tmp_path / "e.csv"
    with text.open("w", newline="") as file:
        csv.writer(file).writerows([("customer", "item"), *zip(*columns.values(), strict=True)])
    runs = [("a", train, 1), ("b", train, 4), ("c", text, 3)]
    for name, path, threads in runs:
        prepare_files(tmp_path / name, path, hold_out="random:0.2", threads=threads)
    first = checksums(tmp_path / "a")
    assert len(first) == 5
    assert all(checksums(tmp_path / name) == first for name in "bc")


def test_output_bytes_do_not_depend_on_blocks_or_the_width_of_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [range(100), range(150), range(600)]
    files = [
        write_parquet(
            tmp_path / f"{len(numbers)}.parquet",
            customer=[f"c{n % 400}" for n in numbers],
            item=[n * 7 % 300 for n in numbers],
            when=[n % 50 for n in numbers],
        )
        for numbers in rows
    ]

    def prepared(name: str) -> dict[str, str]:
        prepare_files(tmp_path / name, *files, hold_out="last-1", timestamp="when", context={"at": "item"})
        return checksums(tmp_path / name)

    whole = prepared("whole")
    # The first file waits to the end, and the others are blocks. The hashes of many IDs are taken.
    monkeypatch.setattr(id_encoder, "_BLOCK_ROWS", 120)
    monkeypatch.setattr(id_encoder, "_HASH_BITS", 8)
    assert prepared("blocks") == whole


def test_seed_changes_order_but_not_events(tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "e.parquet", **random_events(300))
    prepare_files(tmp_path / "a", train, seed=0, hold_out_valid="none")
    prepare_files(tmp_path / "b", train, seed=1, hold_out_valid="none")
    a, b = interactions(tmp_path / "a", "train"), interactions(tmp_path / "b", "train")
    assert a != b
    assert sorted(a) == sorted(b)


def test_names_are_joined_and_missing_names_are_null(tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "e.parquet", customer=[1, 1, 2], item=[10, 20, 30])
    names = write_text(tmp_path / "n.dat", 'id\tname\n10\t"Ten"\n10\tsecond\n20\t\n99\tnobody\n')
    manifest = prepare_files(tmp_path / "out", train, names={"item": NamesFile(names, "id", "name")})
    found = {row["id"]: row["name"] for row in vocabulary(tmp_path / "out", "item")}
    assert found == {10: '"Ten"', 20: None, 30: None}
    assert manifest.entities["item"].has_names
    assert not manifest.entities["customer"].has_names
    assert "names: 1 of 3 rows of item" in format_summary(manifest, Folder(tmp_path / "out"))
    assert "1 name without an event ignored" in format_summary(manifest, Folder(tmp_path / "out"))


def test_summary_lists_rows_and_interactions(tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "e.parquet", customer=[1, 1, 2, 3], item=[10, 20, 10, 10])
    text = format_summary(prepare_files(tmp_path / "out", train), Folder(tmp_path / "out"))
    for part in ("customer x item", "3 rows", "2 rows", "10 (3)", "4 interactions", "dropped: nothing"):
        assert part in text
