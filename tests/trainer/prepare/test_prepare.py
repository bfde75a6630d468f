"""Preparing raw events: what is written, how it is split, what is refused, and that nothing half-done is left."""

import argparse
import csv
import datetime as dt
import hashlib
import http.server
import io
import json
import os
import random
import re
import signal
import threading
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from refusal_table import documented

from crossfade.commands import prepare as command
from crossfade.main import main
from kvstore.errors import InputError
from kvstore.io.folder import Folder
from trainer.data.manifest import DatasetManifest, read_manifest
from trainer.prepare import disk_space as room
from trainer.prepare import lastfm as sample
from trainer.prepare.database import execute, working_database
from trainer.prepare.hold_out import parse_hold_out
from trainer.prepare.part_writer import PartWriter, row_group_rows
from trainer.prepare.pipeline import PrepareOptions, prepare
from trainer.prepare.staging import Staged
from trainer.prepare.summary import format_summary
from trainer.prepare.vocabulary_tables import NamesFile

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
Row = tuple[Any, ...]


def write_parquet(path: Path, **columns: Sequence[Any] | pa.Array) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), path)
    return path


def write_text(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def make(out: Path, *train: Path | str, **options: Any) -> DatasetManifest:
    return prepare(PrepareOptions(out=out, train=train, threads=options.pop("threads", 2), **options))


def vocabulary(out: Path, entity: str) -> list[dict[str, Any]]:
    manifest = read_manifest(Folder(out))
    return [row for file in manifest.entities[entity].files for row in pq.read_table(out / file.path).to_pylist()]


def interactions(out: Path, split: str) -> list[Row]:
    """The interactions of a split with ids for rows, in the order of the shards."""
    manifest = read_manifest(Folder(out))
    ids = {entity: [row["id"] for row in vocabulary(out, entity)] for entity in manifest.entities}
    found = []
    for file in manifest.splits[split].files:
        for row in pq.read_table(out / file.path).to_pylist():
            query, item, *rest = row.values()
            found.append((ids[manifest.query][query], ids[manifest.item][item], *rest))
    return found


def all_bytes(out: Path) -> dict[str, str]:
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*.parquet"))
    }


def some_events(count: int, seed: int = 7) -> dict[str, list[Any]]:
    draw = random.Random(seed)
    return {
        "customer": [f"c{draw.randrange(60)}" for _ in range(count)],
        "item": [draw.randrange(1000, 1100) for _ in range(count)],
        "when": [draw.randrange(50) for _ in range(count)],
    }


def test_ids_become_rows_and_rows_become_the_same_ids(tmp_path: Path) -> None:
    events = some_events(3000)
    weights = [index % 5 + 0.5 for index in range(3000)]
    train = write_parquet(tmp_path / "train.parquet", **events, plays=weights)
    test = write_parquet(tmp_path / "test.parquet", customer=["new", "c1"], item=[1, 1000], when=[5, 6], plays=[1, 2])
    manifest = make(tmp_path / "out", train, test=[test], weight="plays", timestamp="when")
    expected = list(zip(events["customer"], events["item"], weights, events["when"], strict=True))
    assert Counter(interactions(tmp_path / "out", "train")) == Counter(expected)
    assert Counter(interactions(tmp_path / "out", "test")) == Counter([("new", 1, 1.0, 5), ("c1", 1000, 2.0, 6)])
    assert manifest == read_manifest(Folder(tmp_path / "out"))
    assert manifest.entities["customer"].id_type == "string"
    assert manifest.entities["item"].id_type == "int64"


def test_vocabularies_go_by_train_count_then_id_and_hold_ids_of_every_split(tmp_path: Path) -> None:
    events = some_events(2000)
    train = write_parquet(tmp_path / "train.parquet", **events)
    valid = write_parquet(tmp_path / "valid.parquet", customer=["zz", "aa"], item=[7, 1000])
    make(tmp_path / "out", train, valid=[valid])
    for entity, unseen in (("customer", ["aa", "zz"]), ("item", [7])):
        counted = Counter(events[entity])
        counted.update(dict.fromkeys(unseen, 0))
        expected = sorted(counted.items(), key=lambda pair: (-pair[1], pair[0]))
        found = vocabulary(tmp_path / "out", entity)
        assert [(row["id"], row["count"]) for row in found] == expected
        assert [row["row"] for row in found] == list(range(len(expected)))


def test_columns_and_types_are_those_of_the_manifest_format(tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "e.parquet", **some_events(10))
    make(tmp_path / "bare", train)
    make(tmp_path / "timed", train, timestamp="when")
    bare = pq.read_schema(tmp_path / "bare/train/part-00000.parquet")
    timed = pq.read_schema(tmp_path / "timed/train/part-00000.parquet")
    expected = [("customer", "int64"), ("item", "int64"), ("weight", "float")]
    assert [(field.name, str(field.type)) for field in bare] == expected
    assert [(field.name, str(field.type)) for field in timed] == [*expected, ("timestamp", "int64")]
    assert not any(field.nullable for field in timed)


def test_the_manifest_lists_the_row_groups_that_the_footers_have(tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "e.parquet", **some_events(5000))
    manifest = make(tmp_path / "out", train)
    (file,) = manifest.splits["train"].files
    footer = pq.read_metadata(tmp_path / "out" / file.path)
    assert file.row_groups == [footer.row_group(index).num_rows for index in range(footer.num_row_groups)]
    assert file.row_groups == [1024, 1024, 1024, 1024, 904]
    assert file.bytes == (tmp_path / "out" / file.path).stat().st_size


@pytest.mark.parametrize(("rows", "expected"), [(1, 1024), (65_536, 1024), (65_537, 1025), (10**10, 131_072)])
def test_row_groups_grow_with_the_data_within_bounds(rows: int, expected: int) -> None:
    assert row_group_rows(rows) == expected


def test_a_writer_cuts_exact_row_groups_and_files_of_64_from_batches_of_any_size(tmp_path: Path) -> None:
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


def test_every_run_gives_the_same_bytes_whatever_the_threads_and_the_format(tmp_path: Path) -> None:
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
        make(tmp_path / name, path, hold_out="random:0.2", threads=threads)
    first = all_bytes(tmp_path / "a")
    assert len(first) == 5
    assert all(all_bytes(tmp_path / name) == first for name in "bc")


def test_another_seed_gives_another_order_of_the_same_events(tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "e.parquet", **some_events(300))
    make(tmp_path / "a", train, seed=0)
    make(tmp_path / "b", train, seed=1)
    a, b = interactions(tmp_path / "a", "train"), interactions(tmp_path / "b", "train")
    assert a != b
    assert sorted(a) == sorted(b)


def test_shards_are_shuffled_so_that_no_row_group_belongs_to_one_customer(tmp_path: Path) -> None:
    train = write_parquet(
        tmp_path / "e.parquet", customer=[n // 1000 for n in range(8000)], item=[n % 1000 for n in range(8000)]
    )
    make(tmp_path / "out", train)
    file = pq.ParquetFile(tmp_path / "out/train/part-00000.parquet")
    for group in range(7):
        shares = Counter(file.read_row_group(group)["customer"].to_pylist())
        assert len(shares) == 8
        assert max(shares.values()) < 220  # 128 expected, with a deviation of 11


def test_the_customers_of_a_row_group_are_those_of_the_whole(tmp_path: Path) -> None:
    # Events in the order of customers, of which some have many: the worst order there is.
    counts = [2000 // (n + 1) + 1 for n in range(400)]
    customers = [n for n, times in enumerate(counts) for _ in range(times)]
    train = write_parquet(tmp_path / "e.parquet", customer=customers, item=list(range(len(customers))))
    make(tmp_path / "out", train)
    # Rows of the vocabulary are in the order of counts, and so of these ids.
    expected = np.bincount(customers)[:20] / len(customers)
    file = pq.ParquetFile(tmp_path / "out/train/part-00000.parquet")
    for index in range(file.num_row_groups - 1):
        rows = file.read_row_group(index)["customer"].to_numpy()
        found = np.bincount(rows, minlength=20)[:20]
        deviation = (found - expected * len(rows)) / np.sqrt(expected * len(rows))
        assert (deviation**2).sum() < 60  # chi-square with 20 degrees of freedom: one in 100,000
        assert len(set(rows.tolist())) > 200  # 1,024 draws meet about 240 of the 400


def test_temporary_files_go_where_they_are_told_and_none_is_left(tmp_path: Path) -> None:
    class Looks:
        def phase(self, name: str, total: int | None, unit: str) -> None:
            seen.update(path.name for path in work.rglob("*"))

        def advance(self, amount: int) -> None:
            pass

    seen: set[str] = set()
    work = tmp_path / "work"
    work.mkdir()
    train = write_parquet(tmp_path / "e.parquet", **some_events(500))
    prepare(PrepareOptions(out=tmp_path / "out", train=[train], work=work), Looks())
    assert "events.duckdb" in seen
    assert list(work.iterdir()) == []
    with pytest.raises(InputError, match=r"--work .*nowhere: cannot be written"):
        make(tmp_path / "other", train, work=tmp_path / "nowhere")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.parquet", "out", "work"]


def test_a_disk_that_may_be_too_small_is_told_of_at_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = write_parquet(tmp_path / "e.parquet", **some_events(500))
    make(tmp_path / "out", train)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    make(tmp_path / "again", train)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"0\.0 GB are free, and this may take 0\.0 GB there.*--work DIR", line)


def test_repeated_events_are_kept_and_scattered(tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "e.parquet", customer=[1] * 3000 + list(range(3000)), item=[1] * 6000)
    make(tmp_path / "out", train)
    customers = [row[0] for row in interactions(tmp_path / "out", "train")]
    assert customers.count(1) == 3001
    assert 1000 < sum(customer == 1 for customer in customers[:3000]) < 2000


def test_csv_with_quotes_and_line_ends_in_fields_is_read_as_the_csv_module_reads_it(tmp_path: Path) -> None:
    ids = [
        'say "hi", you',
        "two\nlines",
        "  padded ",
        "Ünïcodé ☃",
        "a\ttab",
        "#hash",
        "\N{NO-BREAK SPACE}x\N{LINE SEPARATOR}y",
    ]
    train = tmp_path / "e.csv"
    with train.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([("x", "item", "customer"), *((n, n + 5, text) for n, text in enumerate(ids))])
    make(tmp_path / "out", train)
    assert {row[0] for row in interactions(tmp_path / "out", "train")} == set(ids)


def test_tsv_has_no_quoting_so_that_quotes_and_backslashes_are_letters(tmp_path: Path) -> None:
    ids = ['"Weird Al" Yankovic', "Royce da 5'9\"", '"', "back\\slash", "c,omma", "\N{NEXT LINE}nel"]
    lines = ["customer\titem", *(f"{number}\t{text}" for number, text in enumerate(ids))]
    for newline in ("\n", "\r\n"):
        out = tmp_path / f"out{len(newline)}"
        make(out, write_text(tmp_path / "e.dat", newline.join(lines)))
        assert {row[1] for row in interactions(out, "train")} == set(ids)


def test_adjacency_text_gives_its_pairs_and_allows_lines_without_items(tmp_path: Path) -> None:
    train = write_text(tmp_path / "train.txt", "0 3 4 5\n1\n\n2 3\t9  4 \n")
    test = write_text(tmp_path / "test.txt", "0 9\r\n1\r\n7 100")
    manifest = make(tmp_path / "out", train, test=[test], format="lightgcn")
    pairs = [(0, 3), (0, 4), (0, 5), (2, 3), (2, 9), (2, 4)]
    assert Counter(interactions(tmp_path / "out", "train")) == Counter((*pair, 1.0) for pair in pairs)
    assert Counter(interactions(tmp_path / "out", "test")) == Counter([(0, 9, 1.0), (7, 100, 1.0)])
    assert manifest.source["lines_without_items"] == 2
    assert "2 lines that name no item" in format_summary(manifest, Folder(tmp_path / "out"))


def test_a_line_of_adjacency_text_may_be_longer_than_two_megabytes(tmp_path: Path) -> None:
    items = range(1_000_000, 1_270_000)
    train = write_text(tmp_path / "train.txt", f"0 {' '.join(map(str, items))}\n1 1000000\n")
    assert make(tmp_path / "out", train, format="lightgcn").splits["train"].rows == 270_001


def test_paths_with_spaces_quotes_unicode_and_wildcard_letters_are_read(tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s a "día" [1]'
    one = write_parquet(folder / "a*.parquet", customer=[1], item=[1])
    two = folder / "b?.csv"
    write_text(two, "customer,item\n2,2\n")
    three = folder / "c [x].txt.tsv"
    write_text(three, "customer\titem\n3\t3\n")
    write_parquet(folder / "abc.parquet", customer=[9], item=[9])  # which 'a*.parquet' would match as a pattern
    make(tmp_path / "ö u't", one, two, three.as_uri())
    assert sorted(interactions(tmp_path / "ö u't", "train")) == [(1, 1, 1.0), (2, 2, 1.0), (3, 3, 1.0)]


def test_globs_match_files_in_order_and_formats_may_mix(tmp_path: Path) -> None:
    write_parquet(tmp_path / "in/deep/a.parquet", customer=[1], item=[1])
    write_parquet(tmp_path / "in/b.parquet", customer=[2], item=[1])
    write_text(tmp_path / "in/c.csv", "item,customer\n1,3\n")
    make(tmp_path / "out", str(tmp_path / "in/**/*.parquet"), str(tmp_path / "in/*.csv"))
    assert sorted(row[0] for row in interactions(tmp_path / "out", "train")) == [1, 2, 3]


def test_text_ids_are_integers_only_where_nothing_is_lost(tmp_path: Path) -> None:
    make(tmp_path / "plain", write_text(tmp_path / "a.csv", "customer,item\n10,7\n9,8\n"))
    make(tmp_path / "zeros", write_text(tmp_path / "b.csv", "customer,item\n10,007\n9,8\n"))
    make(tmp_path / "huge", write_text(tmp_path / "c.csv", "customer,item\n10,9223372036854775808\n9,8\n"))
    make(tmp_path / "asked", tmp_path / "a.csv", ids="string")
    assert read_manifest(Folder(tmp_path / "plain")).entities["item"].id_type == "int64"
    assert {row["id"] for row in vocabulary(tmp_path / "zeros", "item")} == {"007", "8"}
    assert {row["id"] for row in vocabulary(tmp_path / "huge", "item")} == {"9223372036854775808", "8"}
    assert [row["id"] for row in vocabulary(tmp_path / "asked", "customer")] == ["10", "9"]


def test_parquet_strings_stay_strings_and_small_integers_become_int64(tmp_path: Path) -> None:
    customers = pa.array(["1", "2"]).dictionary_encode()
    train = write_parquet(tmp_path / "e.parquet", customer=customers, item=pa.array([3, 4], pa.uint16()))
    manifest = make(tmp_path / "out", train)
    assert manifest.entities["customer"].id_type == "string"
    assert {row[:2] for row in interactions(tmp_path / "out", "train")} == {("1", 3), ("2", 4)}


def test_event_weights_weigh_events_and_drop_those_of_weight_zero(tmp_path: Path) -> None:
    train = write_text(tmp_path / "e.csv", "customer,item,what\n1,1,play\n1,2,it's\n2,3,skip\n2,1,play\n")
    weights = {"play": 1.0, "it's": 2.5, "skip": 0.0}
    manifest = make(tmp_path / "out", train, event="what", event_weights=weights)
    assert Counter(interactions(tmp_path / "out", "train")) == Counter([(1, 1, 1.0), (1, 2, 2.5), (2, 1, 1.0)])
    assert [row["id"] for row in vocabulary(tmp_path / "out", "item")] == [1, 2]  # 3 was only skipped
    assert "1 rows of weight 0" in format_summary(manifest, Folder(tmp_path / "out"))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([5, -7], pa.int32()), [5, -7]),
        (pa.array([1_577_836_800_999_999, -1], pa.timestamp("us")), [1_577_836_800, -1]),
        (pa.array([1_577_836_800_999, 0], pa.timestamp("ms", tz="America/New_York")), [1_577_836_800, 0]),
        (pa.array([1_577_836_800_999_999_001, 0], pa.timestamp("ns")), [1_577_836_800, 0]),
        (pa.array([dt.date(2020, 1, 1), dt.date(1969, 12, 31)]), [1_577_836_800, -86_400]),
        (pa.array(["2020-01-01T02:00:00+02:00", "2020-01-01 00:00:01.5"]), [1_577_836_800, 1_577_836_801]),
        (pa.array(["12", "-3"]), [12, -3]),
    ],
    ids=str,
)
def test_timestamps_become_seconds_and_integers_stay_as_they_are(
    tmp_path: Path, values: pa.Array, expected: list[int]
) -> None:
    train = write_parquet(tmp_path / "e.parquet", customer=[1, 2], item=[1, 1], at=values)
    manifest = make(tmp_path / "out", train, timestamp="at")
    assert manifest.has_timestamp
    assert [row[3] for row in sorted(interactions(tmp_path / "out", "train"))] == expected


def test_last_n_takes_the_latest_of_each_customer_and_leaves_one_to_train(tmp_path: Path) -> None:
    events = some_events(500)
    rows = list(zip(events["customer"], events["item"], events["when"], strict=True))
    rows += [("single", 1000, 3), ("pair", 1001, 4), ("pair", 1000, 4)]
    columns = dict(zip(("customer", "item", "when"), map(list, zip(*rows, strict=True)), strict=True))
    train = write_parquet(tmp_path / "e.parquet", **columns)
    make(tmp_path / "out", train, hold_out="last-2", timestamp="when")
    by_customer = defaultdict(list)
    for position, (customer, item, when) in enumerate(rows):
        by_customer[customer].append((when, item, position))
    expected: dict[str, Counter[Row]] = {"train": Counter(), "valid": Counter(), "test": Counter()}
    for customer, own in by_customer.items():
        left = sorted(own)
        for split in ("test", "valid"):
            take = min(2, len(left) - 1)
            left, taken = left[: len(left) - take], left[len(left) - take :]
            expected[split].update((customer, item, 1.0, when) for when, item, _ in taken)
        expected["train"].update((customer, item, 1.0, when) for when, item, _ in left)
    for split, rows_of_split in expected.items():
        assert Counter(interactions(tmp_path / "out", split)) == rows_of_split
    assert ("pair", 1001, 1.0, 4) in expected["test"]  # of equal times, the larger item id is later


def test_random_takes_its_share_of_pairs_whole_and_leaves_each_customer_one(tmp_path: Path) -> None:
    draw = random.Random(5)
    customers = [f"c{draw.randrange(400)}" for _ in range(20_000)] + [f"lone{n}" for n in range(200)]
    items = [draw.randrange(300) for _ in range(20_200)]
    train = write_parquet(tmp_path / "e.parquet", customer=customers * 2, item=items * 2)
    manifest = make(tmp_path / "out", train, hold_out_test="random:0.1", hold_out_valid="random:0.5")
    pairs = {split: {row[:2] for row in interactions(tmp_path / "out", split)} for split in manifest.splits}
    assert not pairs["train"] & pairs["test"]
    assert not pairs["train"] & pairs["valid"]
    assert not pairs["valid"] & pairs["test"]
    assert {customer for customer, _ in pairs["train"]} == set(customers)
    assert manifest.splits["test"].rows / 40_000 == pytest.approx(0.1, abs=0.01)
    assert manifest.splits["valid"].rows / (40_000 * 0.9) == pytest.approx(0.5, abs=0.02)
    assert manifest.source["kept_for_train"] > 0  # type: ignore[operator]


def test_random_does_not_depend_on_the_order_of_the_events(tmp_path: Path) -> None:
    events = some_events(3000)
    backwards = {name: values[::-1] for name, values in events.items()}
    make(tmp_path / "a", write_parquet(tmp_path / "a.parquet", **events), hold_out="random:0.3")
    make(tmp_path / "b", write_parquet(tmp_path / "b.parquet", **backwards), hold_out="random:0.3")
    make(tmp_path / "c", tmp_path / "a.parquet", hold_out="random:0.3", seed=9)
    test = {name: Counter(interactions(tmp_path / name, "test")) for name in "abc"}
    assert test["a"] == test["b"] != test["c"]


@pytest.mark.parametrize(
    ("how", "times"),
    [
        ("after:100", [99, 100, 101, 200, 300]),
        ("after:2020-01-01", [0, 1_577_836_800, 1_577_836_801, 1_577_836_802, 1_577_836_803]),
        ("after:2020-01-01T02:00+02:00", [0, 1_577_836_800, 1_577_836_801, 1_577_836_802, 1_577_836_803]),
    ],
)
def test_after_makes_test_alone_of_what_is_later_but_for_the_earliest_of_each(
    tmp_path: Path, how: str, times: list[int]
) -> None:
    train = write_parquet(tmp_path / "e.parquet", customer=[1, 1, 1, 2, 2], item=[1, 2, 3, 4, 5], at=times)
    manifest = make(tmp_path / "out", train, hold_out=how, timestamp="at")
    assert set(manifest.splits) == {"train", "test"}
    assert {row[1] for row in interactions(tmp_path / "out", "test")} == {3, 5}
    assert "1 interactions, since each customer keeps one" in format_summary(manifest, Folder(tmp_path / "out"))


def test_a_given_split_and_a_hold_out_for_the_other_go_together(tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "e.parquet", **some_events(2000))
    test = write_parquet(tmp_path / "t.parquet", **some_events(50, seed=8))
    manifest = make(tmp_path / "out", train, test=[test], hold_out_valid="random:0.1")
    assert manifest.splits["test"].rows == 50
    assert manifest.splits["train"].rows + manifest.splits["valid"].rows == 2000


@pytest.mark.parametrize("text", ["last-0", "last", "random:1", "random:x", "random:nan", "after:soon", "first-1", ""])
def test_a_hold_out_of_no_known_form_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(InputError, match=r"--hold-out .*(last-N|random:0\.1)"):
        parse_hold_out("--hold-out", text)


def test_names_are_joined_missing_ones_are_null_and_others_ignored(tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "e.parquet", customer=[1, 1, 2], item=[10, 20, 30])
    names = write_text(tmp_path / "n.dat", 'id\tname\n10\t"Ten"\n10\tsecond\n20\t\n99\tnobody\n')
    manifest = make(tmp_path / "out", train, names={"item": NamesFile(names, "id", "name")})
    found = {row["id"]: row["name"] for row in vocabulary(tmp_path / "out", "item")}
    assert found == {10: '"Ten"', 20: None, 30: None}
    assert manifest.entities["item"].has_names
    assert not manifest.entities["customer"].has_names
    assert "names: 1 of 3 rows of item" in format_summary(manifest, Folder(tmp_path / "out"))
    assert "1 names ignored" in format_summary(manifest, Folder(tmp_path / "out"))


def test_describe_says_what_is_in_the_data(tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "e.parquet", customer=[1, 1, 2, 3], item=[10, 20, 10, 10])
    text = format_summary(make(tmp_path / "out", train), Folder(tmp_path / "out"))
    for part in ("customer x item", "3 rows", "2 rows", "10 (3)", "4 interactions", "66.667%", "dropped: nothing"):
        assert part in text


# What is refused. Each case makes files in a folder and returns the options; the message must hold every fragment.

Case = Callable[[Path], dict[str, Any]]


def csv_case(text: str | bytes, name: str = "e.csv", **options: Any) -> Case:
    return lambda folder: {"train": [write_text(folder / name, text)], **options}


def parquet_case(options: dict[str, Any] | None = None, **columns: Any) -> Case:
    return lambda folder: {"train": [write_parquet(folder / "e.parquet", **columns)], **(options or {})}


def lightgcn_case(text: str | bytes, **options: Any) -> Case:
    return csv_case(text, "e.txt", format="lightgcn", **options)


def two_files(first: str, second: str, **options: Any) -> Case:
    return lambda folder: {
        "train": [write_text(folder / "a.csv", first), write_text(folder / "b.csv", second)],
        **options,
    }


def cut_parquet(folder: Path) -> dict[str, Any]:
    path = write_parquet(folder / "e.parquet", customer=list(range(1000)), item=list(range(1000)))
    write_text(path, path.read_bytes()[:2000])
    return {"train": [path]}


def damaged_parquet(folder: Path) -> dict[str, Any]:
    path = write_parquet(folder / "e.parquet", customer=list(range(5000)), item=list(range(5000)))
    content = bytearray(path.read_bytes())
    content[4:3000] = bytes(2996)  # the footer stays whole
    write_text(path, bytes(content))
    return {"train": [path]}


def same_file_twice(folder: Path) -> dict[str, Any]:
    path = write_text(folder / "e.csv", "customer,item\n1,1\n")
    return {"train": [path], "test": [str(folder / "*.csv")]}


def train_and_empty_test(folder: Path) -> dict[str, Any]:
    return {
        "train": [write_text(folder / "e.csv", "customer,item\n1,1\n")],
        "test": [write_text(folder / "t.csv", "customer,item\n")],
    }


def out_holds_input(folder: Path) -> dict[str, Any]:
    (folder / "out").mkdir()
    return {"train": [write_text(folder / "out/e.csv", "customer,item\n1,1\n")], "overwrite": True}


GOOD = "customer,item,w,t\n1,1,1,5\n"
REFUSED: dict[str, tuple[Case, list[str]]] = {
    "missing file": (lambda folder: {"train": [folder / "no.csv"]}, ["--train", "no.csv", "no such file"]),
    "glob without match": (lambda folder: {"train": [f"{folder}/*.csv"]}, ["--train", "*.csv", "matches no file"]),
    "folder": (lambda folder: {"train": [folder]}, ["is a folder", "*.parquet"]),
    "remote": (lambda _: {"train": ["ftp://bucket/e.parquet"]}, ["ftp://bucket/e.parquet", "s3://BUCKET/KEY"]),
    "unknown ending": (csv_case(GOOD, "e.txt"), ["e.txt", "'.txt'", "--format", ".parquet"]),
    "no files": (lambda _: {"train": []}, ["--train"]),
    "file given twice": (same_file_twice, ["--test", "e.csv", "--train already"]),
    "input inside out": (out_holds_input, ["e.csv", "inside --out"]),
    "cut Parquet": (cut_parquet, ["e.parquet", "not a readable Parquet file"]),
    "damaged Parquet": (damaged_parquet, ["e.parquet", "cannot be read as Parquet", "damaged"]),
    "no Parquet": (csv_case(GOOD, "e.parquet"), ["e.parquet", "not a readable Parquet file"]),
    "missing column, CSV": (csv_case("user,item\n1,1\n"), ["e.csv", "no column 'customer'", "user, item"]),
    "missing column, Parquet": (parquet_case(a=[1], b=[2]), ["e.parquet", "no column 'customer'", "a, b"]),
    "columns by case": (parquet_case(customer=[1], Customer=[2], item=[1]), ["'Customer'", "differ in case"]),
    "column twice": (csv_case("customer,item,item\n1,1,2\n"), ["2 columns 'item'"]),
    "empty file": (csv_case(""), ["e.csv", "is empty", "header"]),
    "too few fields": (csv_case("customer,item\n1,1\n2\n"), ["e.csv, line 3", "1 fields", "header has 2"]),
    "too many fields": (csv_case("customer,item\n1,1\n2,3,4\n"), ["e.csv, line 3", "3 fields", "header has 2"]),
    "open quote": (csv_case('customer,item\n1,"1\n2,3\n'), ["e.csv, line 2", "quote opens"]),
    "no UTF-8": (csv_case(b"customer,item\n1,a\n2,caf\xe9\n"), ["e.csv, line 3", "not UTF-8", "iconv"]),
    "mixed line ends": (csv_case("customer\titem\r\n1\ta\n2\tb\r\n", "e.tsv"), ["e.tsv", "line endings"]),
    "empty id, CSV": (
        csv_case('customer,item\n1,"a\nb"\n\n2,\n'),
        ["e.csv, line 5", "item id of column 'item'", "empty"],
    ),
    "null id, Parquet": (parquet_case(customer=[1, None], item=[1, 1]), ["e.parquet, row 2", "query id", "missing"]),
    "empty id, Parquet": (parquet_case(customer=["", "a"], item=[1, 1]), ["e.parquet, row 1", "query id", "empty"]),
    "negative id": (csv_case("customer,item\n1,1\n2,-5\n"), ["e.csv, line 3", "'-5'", "negative", "at least 0"]),
    "id beyond int64": (
        parquet_case(customer=[1, 2], item=pa.array([1, 2**64 - 1], pa.uint64())),
        ["e.parquet, row 2", "'18446744073709551615'", "64-bit"],
    ),
    "fractional id": (
        parquet_case(customer=[1.5], item=[1]),
        ["column 'customer'", "fractional", "integers or strings"],
    ),
    "binary id": (parquet_case(customer=[b"x"], item=[1]), ["column 'customer'", "type binary"]),
    "text where --ids integer": (
        csv_case("customer,item\n1,1\nx,2\n", ids="integer"),
        ["e.csv, line 3", "'x'", "query id", "--ids string"],
    ),
    "ids of two types": (
        two_files("customer,item\n1,1\n", "customer,item\n1,b\n"),
        ["b.csv", "'item'", "strings", "a.csv", "integers", "--ids string"],
    ),
    "text as weight": (
        csv_case("customer,item,w\n1,1,2\n1,2,x\n", weight="w"),
        ["e.csv, line 3", "'x'", "'w'", "number"],
    ),
    "no weight": (csv_case("customer,item,w\n1,1,\n", weight="w"), ["e.csv, line 2", "weight", "missing"]),
    "null weight": (
        parquet_case({"weight": "w"}, customer=[1], item=[1], w=pa.array([None], pa.float32())),
        ["row 1", "missing"],
    ),
    "NaN weight": (
        parquet_case({"weight": "w"}, customer=[1], item=[1], w=[float("nan")]),
        ["row 1", "'nan'", "finite"],
    ),
    "infinite weight": (csv_case("customer,item,w\n1,1,inf\n", weight="w"), ["line 2", "'inf'", "finite"]),
    "huge weight": (csv_case("customer,item,w\n1,1,1e300\n", weight="w"), ["line 2", "'1e300'", "too large"]),
    "date as weight": (
        parquet_case({"weight": "w"}, customer=[1], item=[1], w=[dt.date(2020, 1, 1)]),
        ["row 1", "is a date", "number"],
    ),
    "unknown event": (
        csv_case("customer,item,e\n1,1,play\n1,2,ban\n", event="e", event_weights={"play": 1.0, "skip": 0.0}),
        ["e.csv, line 3", "'ban'", "play, skip"],
    ),
    "no event": (
        csv_case("customer,item,e\n1,1,\n", event="e", event_weights={"play": 1.0}),
        ["line 2", "event", "missing"],
    ),
    "event without weights": (csv_case(GOOD, event="w"), ["--event-weights", "together"]),
    "bad event weight": (csv_case(GOOD, event="w", event_weights={"a": float("inf")}), ["a=inf", "finite"]),
    "weight and event": (csv_case(GOOD, weight="w", event="t", event_weights={"5": 1.0}), ["--weight and --event"]),
    "text as timestamp": (
        csv_case("customer,item,t\n1,1,2020-01-01\n1,2,noon\n", timestamp="t"),
        ["e.csv, line 3", "'noon'", "timestamp"],
    ),
    "no timestamp": (csv_case("customer,item,t\n1,1,\n", timestamp="t"), ["line 2", "timestamp", "missing"]),
    "timestamps of two types": (
        two_files("customer,item,t\n1,1,5\n", "customer,item,t\n1,1,2020-01-01\n", timestamp="t"),
        ["b.csv", "dates", "a.csv", "integers"],
    ),
    "fractional timestamp": (parquet_case({"timestamp": "t"}, customer=[1], item=[1], t=[1.5]), ["'t'", "fractional"]),
    "adjacency, word": (lightgcn_case("0 1\n\n1 2 x3\n"), ["e.txt, line 3", "'x3'", "whole numbers"]),
    "adjacency, negative": (lightgcn_case("0 1\n1 -2\n"), ["e.txt, line 2", "'-2'"]),
    "adjacency, binary": (lightgcn_case(b"0 1\n1 2\x013\n"), ["e.txt, line 2", "whole numbers"]),
    "adjacency, weight": (lightgcn_case("0 1\n", weight="plays"), ["lightgcn", "'plays'", "--weight"]),
    "adjacency, column": (lightgcn_case("0 1\n", query_column="uid"), ["lightgcn", "'uid'", "--query"]),
    "no interactions": (csv_case("customer,item\n"), ["no interaction"]),
    "no adjacency": (lightgcn_case("1\n2\n"), ["no interaction"]),
    "only weight 0": (csv_case("customer,item,w\n1,1,0\n", weight="w"), ["--train", "no interaction", "above 0"]),
    "empty test file": (train_and_empty_test, ["--test", "no interaction"]),
    "last-N without timestamp": (csv_case(GOOD, hold_out="last-1"), ["--hold-out last-1", "--timestamp"]),
    "after without timestamp": (csv_case(GOOD, hold_out_test="after:5"), ["--hold-out-test after:5", "--timestamp"]),
    "hold-out meets file": (
        lambda folder: {**csv_case(GOOD)(folder), "test": [folder / "e.csv"], "hold_out": "random:0.1"},
        ["--hold-out random:0.1", "--test", "--hold-out-valid"],
    ),
    "two hold-outs": (csv_case(GOOD, hold_out="random:0.1", hold_out_valid="random:0.1"), ["--hold-out-valid"]),
    "hold-out takes nothing": (
        csv_case("customer,item,t\n1,1,5\n1,2,6\n", hold_out="after:50", timestamp="t"),
        ["after:50", "no interaction", "5 to 6"],
    ),
    "date against milliseconds": (
        csv_case("customer,item,t\n1,1,5\n1,2,1577836800000\n", hold_out="after:2020-01-01", timestamp="t"),
        ["after:2020-01-01", "1577836800000", "INTEGER"],
    ),
    "names file missing": (csv_case(GOOD, names={"item": NamesFile("no.csv", "a", "b")}), ["--names item", "no.csv"]),
    "names of no entity": (
        csv_case(GOOD, names={"song": NamesFile("no.csv", "a", "b")}),
        ["song", "'customer' or 'item'"],
    ),
    "names without column": (
        lambda folder: {**csv_case(GOOD)(folder), "names": {"item": NamesFile(folder / "e.csv", "id", "w")}},
        ["e.csv", "no column 'id'"],
    ),
    "names that name nothing": (
        lambda folder: {
            **csv_case(GOOD)(folder),
            "names": {"item": NamesFile(write_text(folder / "n.csv", "id,name\n77,x\n"), "id", "name")},
        },
        ["n.csv", "none of the ids", "--names"],
    ),
    "entity as path": (csv_case(GOOD, query="../x", query_column="customer"), ["--query ../x", "entity"]),
    "entity as weight": (csv_case(GOOD, item="weight"), ["--item weight", "entity"]),
    "one entity": (csv_case(GOOD, query="item"), ["different names"]),
    "seed": (csv_case(GOOD, seed=-1), ["--seed -1"]),
}


def entries(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_in_one_line_that_says_where_and_leaves_nothing_behind(tmp_path: Path, name: str) -> None:
    case, fragments = REFUSED[name]
    options = case(tmp_path)
    before = entries(tmp_path)
    with pytest.raises(InputError) as caught:
        prepare(PrepareOptions(out=tmp_path / "out", **options))
    message = documented(name, str(caught.value))
    for fragment in fragments:
        assert fragment in message
    assert "\n" not in message
    assert "Error:" not in message.partition(":")[0]
    assert entries(tmp_path) == before


def test_an_existing_folder_is_refused_unless_it_holds_prepared_data_and_may_be_overwritten(tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "e.parquet", **some_events(400))
    out = tmp_path / "out"
    make(out, train)
    before = all_bytes(out)
    with pytest.raises(InputError, match=r"out: exists already.*--overwrite"):
        make(out, train, hold_out="random:0.5")
    assert all_bytes(out) == before
    make(out, train, hold_out="random:0.5", overwrite=True)
    assert set(read_manifest(Folder(out)).splits) == {"train", "valid", "test"}
    assert entries(tmp_path)[:2] == ["e.parquet", "out"]
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("e.parquet", "out")] == []


def test_overwriting_spares_folders_that_hold_anything_else(tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "e.parquet", **some_events(20))
    plain = tmp_path / "plain"
    plain.mkdir()
    with pytest.raises(InputError, match="no prepared data"):
        make(plain, train, overwrite=True)
    make(tmp_path / "out", train)
    write_text(tmp_path / "out/notes.txt", "mine")
    with pytest.raises(InputError, match=r"notes\.txt"):
        make(tmp_path / "out", train, overwrite=True)
    assert (tmp_path / "out/notes.txt").read_text() == "mine"


def test_a_failed_overwrite_leaves_the_old_data(tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "e.parquet", **some_events(20))
    make(tmp_path / "out", train)
    before = all_bytes(tmp_path / "out")
    with pytest.raises(InputError):
        make(tmp_path / "out", write_text(tmp_path / "bad.csv", "customer,item\n1,\n"), overwrite=True)
    assert all_bytes(tmp_path / "out") == before
    assert entries(tmp_path)[0:2] == ["bad.csv", "e.parquet"]
    assert not list(tmp_path.glob("out.*"))


class Interrupts:
    """A progress that ends everything in one phase."""

    def __init__(self, phase: str) -> None:
        self._phase = phase

    def phase(self, name: str, total: int | None, unit: str) -> None:
        if name == self._phase:
            raise KeyboardInterrupt

    def advance(self, amount: int) -> None:
        pass


@pytest.mark.parametrize("phase", ["read events", "vocabulary of item", "write train"])
def test_an_interruption_leaves_nothing_behind_and_no_parents_made_for_it(tmp_path: Path, phase: str) -> None:
    train = write_parquet(tmp_path / "e.parquet", **some_events(20))
    with pytest.raises(KeyboardInterrupt):
        prepare(PrepareOptions(out=tmp_path / "new/deep/out", train=[train]), Interrupts(phase))
    assert entries(tmp_path) == ["e.parquet"]


def test_a_signal_during_a_query_raises_what_its_handler_raised(tmp_path: Path) -> None:
    class Stopped(BaseException):
        pass

    def stop(_number: int, _frame: object) -> None:
        raise Stopped

    def work() -> None:
        with working_database(tmp_path, 200 << 20, 1) as connection:
            timer.start()
            execute(connection, "CREATE TABLE t AS SELECT hash(range) AS h FROM range(1000000000) ORDER BY h")

    before = signal.signal(signal.SIGTERM, stop)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
    try:
        with pytest.raises(Stopped):
            work()
        assert signal.getsignal(signal.SIGTERM) is stop
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, before)


# The command.


def parse(words: Sequence[str | Path]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers(required=True))
    return parser.parse_args(["prepare", *map(str, words)])


def test_the_command_prepares_prints_a_summary_and_the_next_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "a b.csv", "uid,song,did,at\n1,5,play,1\n1,6,like,2\n1,7,skip,3\n2,5,play,4\n2,6,play,5\n")
    write_text(tmp_path / "songs.csv", 'song,title\n5,"Five, live"\n')
    words = "--query=customer=uid --item=track=song --event did --event-weights play=1,like=3,skip=0 --timestamp at"
    words += " --hold-out-test last-1 --names track=songs.csv:song:title --threads 1 --memory 0.5 --out data/x"
    arguments = parse(["--events", "a b.csv", *words.split()])
    assert arguments.run(arguments) == 0
    assert sorted(interactions(Path("data/x"), "train")) == [(1, 5, 1.0, 1), (2, 5, 1.0, 4)]
    assert sorted(interactions(Path("data/x"), "test")) == [(1, 6, 3.0, 2), (2, 6, 1.0, 5)]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "data/x: customer x track"
    assert any("Five, live (2)" in line for line in lines)
    assert lines[-1] == "next: crossfade train jobs/lastfm.yaml --set data.path=data/x --set data.item=track"


def test_the_next_command_names_the_job_file_of_the_data_if_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs").mkdir()
    write_text(tmp_path / "jobs/split.yaml", "")
    assert command.next_command("data/split", "customer", "item") == "crossfade train jobs/split.yaml"
    assert command.next_command("data/a b", "customer", "artist") == (
        "crossfade train jobs/lastfm.yaml --set 'data.path=data/a b'"
    )


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["--train", "a.csv", "--sample", "lastfm"], ["found --train and --sample"]),
        ([], ["--train", "--sample", "--synthetic", "found none"]),
        (["--train", "a.csv", "--event-weights", "play"], ["'play'", "EVENT=NUMBER"]),
        (["--train", "a.csv", "--names", "x=y:z"], ["ENTITY=FILE:ID_COLUMN:NAME_COLUMN"]),
        (["--synthetic", "customers=5"], ["'customers=5'", "queries"]),
        (["--synthetic", "queries=many"], ["queries=many", "number"]),
        (["--synthetic", "queries=1.5"], ["queries=1.5", "whole"]),
        (["--synthetic", "queries=5", "--weight", "w"], ["--weight", "--synthetic"]),
        (["--sample", "lastfm", "--hold-out", "random:0.1"], ["--hold-out", "--sample"]),
        (["--train", "a.csv", "--memory", "-1"], ["--memory", "GiB"]),
    ],
)
def test_the_command_refuses_options_that_make_no_sense(tmp_path: Path, words: list[str], fragments: list[str]) -> None:
    arguments = parse([*words, "--out", tmp_path / "out"])
    with pytest.raises(InputError) as caught:
        command.run(arguments)
    for fragment in fragments:
        assert fragment in str(caught.value)
    assert entries(tmp_path) == []


# The sample.


@pytest.fixture
def archive() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("nested/user_artists.dat", "userID\tartistID\tweight\n1\t7\t10\n1\t8\t5\n2\t7\t1\n2\t9\t1\n")
        file.writestr("../artists.dat", 'id\tname\turl\n7\t"Seven"\tx\n8\tEight\ty\n9\tNine\tz\n')
        file.writestr("tags.dat", "tagID\ttagValue\n1\tmetal\n2\tgoth\n")
        file.writestr("user_taggedartists.dat", "userID\tartistID\ttagID\tday\n1\t7\t1\t3\n2\t7\t2\t4\n2\t7\t1\t5\n")
        file.writestr("user_friends.dat", "not wanted")
    return content.getvalue()


@pytest.fixture
def served(archive: bytes) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(archive)))
            self.end_headers()
            self.wfile.write(archive)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/sample.zip"
        server.shutdown()
        thread.join()


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CROSSFADE_DATA", raising=False)
    monkeypatch.setattr(sample, "__file__", str(tmp_path / "repository/trainer/prepare/sample.py"))


@pytest.mark.usefixtures("nowhere")
def test_the_sample_is_downloaded_checked_and_prepared(tmp_path: Path, served: str, archive: bytes) -> None:
    said: list[str] = []
    checksum = hashlib.sha256(archive).hexdigest()
    folder = sample.locate_lastfm(tmp_path / "data", say=said.append, url=served, sha256=checksum)
    assert folder is not None
    assert said == []
    files = ["artists.dat", "tags.dat", "user_artists.dat", "user_taggedartists.dat"]
    assert sorted(path.name for path in folder.iterdir()) == files
    assert entries(tmp_path) == [
        "data",
        *(
            f"data/.cache{rest}"
            for rest in ("", "/lastfm_hetrec2011", *(f"/lastfm_hetrec2011/{name}" for name in files))
        ),
    ]
    # The second time no server is asked.
    assert sample.locate_lastfm(tmp_path / "data", say=said.append, url="http://127.0.0.1:1/") == folder


@pytest.mark.usefixtures("nowhere")
def test_a_download_with_another_checksum_is_not_used(tmp_path: Path, served: str) -> None:
    said: list[str] = []
    assert sample.locate_lastfm(tmp_path, say=said.append, url=served) is None
    assert "checksum" in said[0]
    assert "synthetic" in said[0]
    assert entries(tmp_path) == []


@pytest.mark.usefixtures("nowhere")
def test_a_download_larger_than_the_limit_is_broken_off(
    tmp_path: Path, served: str, archive: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "BYTES_MAX", 100)
    said: list[str] = []
    checksum = hashlib.sha256(archive).hexdigest()
    assert sample.locate_lastfm(tmp_path, say=said.append, url=served, sha256=checksum) is None
    assert "larger" in said[0]


@pytest.mark.usefixtures("nowhere")
def test_without_any_sample_one_line_says_so_and_synthetic_artists_stand_in(tmp_path: Path) -> None:
    said: list[str] = []
    assert sample.locate_lastfm(tmp_path, say=said.append, url="http://127.0.0.1:1/x.zip") is None
    assert len(said) == 1
    assert "\n" not in said[0]
    manifest = sample.prepare_lastfm(None, tmp_path / "out")
    assert (manifest.query, manifest.item) == ("customer", "artist")
    assert (manifest.entities["customer"].rows, manifest.entities["artist"].rows) == (2000, 4000)
    assert sum(split.rows for split in manifest.splits.values()) == 100_000


@pytest.mark.parametrize("source", ["--sample=lastfm", "--synthetic=queries=50,items=40,interactions=1500"])
@pytest.mark.usefixtures("nowhere")
def test_what_is_made_already_is_reused_if_it_is_whole_and_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], source: str
) -> None:
    monkeypatch.setattr(sample, "_download", lambda *_: pytest.fail("asked for data that are here"))
    monkeypatch.setenv("CROSSFADE_DATA", str(tmp_path))
    (tmp_path / sample.FOLDER).mkdir()
    plays = [f"{user}\t{artist}\t1" for user in range(9) for artist in range(9)]
    write_text(tmp_path / sample.FOLDER / "user_artists.dat", "\n".join(["userID\tartistID\tweight", *plays]))
    write_text(tmp_path / sample.FOLDER / "artists.dat", "\n".join(["id\tname", *(f"{n}\tA{n}" for n in range(9))]))
    words = ["prepare", source, "--out", str(tmp_path / "out"), "--reuse"]
    assert main(words) == 0
    made = (tmp_path / "out/manifest.json").stat()
    assert main(words) == 0
    assert capsys.readouterr().out.endswith("out: made already; nothing to do\n")
    left = (tmp_path / "out/manifest.json").stat()
    assert (left.st_ino, left.st_mtime_ns) == (made.st_ino, made.st_mtime_ns)
    assert main([*words, "--seed", "3"]) == 2
    assert "out: exists already" in capsys.readouterr().err
    with next((tmp_path / "out/train").iterdir()).open("ab") as file:
        file.write(b"more")
    assert main(words) == 2
    assert main([*words, "--overwrite"]) == 0
    assert main(words) == 0


@pytest.mark.parametrize(
    "source", [("--events", "plays.csv"), ("--check", "data"), ("--synthetic", "items=9", "--raw")]
)
def test_only_what_needs_no_files_is_reused(source: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", *source, "--out", "out", "--reuse"]) == 2
    assert "--reuse: is for what --sample and --synthetic prepare" in capsys.readouterr().err


def test_the_sample_is_looked_for_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "elsewhere/lastfm_hetrec2011"
    folder.mkdir(parents=True)
    for name in sample.FILES:
        write_text(folder / name, "")
    monkeypatch.setenv("CROSSFADE_DATA", str(tmp_path / "elsewhere"))
    assert sample.locate_lastfm(tmp_path) == folder


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data beside the repository")
def test_real_lastfm_is_read_without_loss(tmp_path: Path) -> None:
    folder = SHARED / "lastfm_hetrec2011"
    manifest = sample.prepare_lastfm(folder, tmp_path / "out")
    pairs = [line.split("\t")[:2] for line in (folder / "user_artists.dat").read_text().splitlines()[1:]]
    found = [row[:2] for split in manifest.splits for row in interactions(tmp_path / "out", split)]
    assert Counter(found) == Counter((int(user), int(artist)) for user, artist in pairs)
    lines = (folder / "artists.dat").read_bytes().decode("utf-8").split("\n")[1:]
    names = {int(fields[0]): fields[1] for fields in (line.split("\t") for line in lines if line)}
    assert {row["id"]: row["name"] for row in vocabulary(tmp_path / "out", "artist")} == names
    tagged = [line.split("\t")[:3] for line in (folder / "user_taggedartists.dat").read_text().splitlines()[1:]]
    users = Counter(tag for _, tag in {(user, int(tag)) for user, _, tag in tagged})
    common = {(int(artist), int(tag)) for _, artist, tag in tagged if users[int(tag)] >= 10 and int(artist) in names}
    assert manifest.features["artist"]["tag"].pairs == len(common)
    assert {row["id"] for row in vocabulary(tmp_path / "out", "tag")} == {tag for _, tag in common}
    split = SHARED / "lastfm_lightgcnpp"
    published = make(
        tmp_path / "split",
        split / "train.txt",
        valid=[split / "valid.txt"],
        test=[split / "test.txt"],
        format="lightgcn",
    )
    assert (published.entities["customer"].rows, published.entities["item"].rows) == (1885, 17_388)
    assert [published.splits[name].rows for name in ("train", "valid", "test")] == [64_315, 9_143, 18_321]
    assert json.loads((tmp_path / "split/manifest.json").read_text())["version"] == 2
