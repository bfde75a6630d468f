"""Cleaning raw events: rare ids, repeated pairs, the time range, negative weights; and the summary."""

import random
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from preparing import interactions, prepare_files, vocabulary, write_parquet, write_text

from crossfade.base.io.folder import Folder
from crossfade.trainer.prepare.summary import format_summary

pytestmark = pytest.mark.slow

Event = tuple[int, int, float, int]
WEIGHTS = {"play": 1.0, "like": 3.0, "skip": -1.0}


def write_events(rows: list[Event], path: Path) -> Path:
    columns = dict(zip(("customer", "item", "w", "at"), map(list, zip(*rows, strict=True)), strict=True))
    return write_parquet(path, **columns)


def skewed_events(count: int, seed: int = 3) -> list[Event]:
    """Return skewed events, some of them outside the k-core; a fifth has a negative weight."""
    draw = random.Random(seed)
    return [
        (
            int(draw.paretovariate(0.7)) % 300,
            int(draw.paretovariate(0.5)) % 200,
            -1.0 if draw.random() < 0.2 else float(draw.randrange(1, 4)),
            draw.randrange(1000),
        )
        for _ in range(count)
    ]


def k_core(rows: list[Event], customers: int, items: int) -> list[Event]:
    while True:
        counts = [Counter(row[side] for row in rows if row[2] > 0) for side in (0, 1)]
        kept = [row for row in rows if counts[0][row[0]] >= customers and counts[1][row[1]] >= items]
        if len(kept) == len(rows):
            return kept
        rows = kept


@pytest.mark.parametrize(("customers", "items"), [(5, 7), (20, 1)])
def test_min_count_keeps_the_k_core(tmp_path: Path, customers: int, items: int) -> None:
    rows = skewed_events(3000)
    train = write_events(rows, tmp_path / "e.parquet")
    minimums = {"customer": customers, "item": items}
    manifest = prepare_files(
        tmp_path / "out", train, weight="w", timestamp="at", min_count=minimums, hold_out_valid="none"
    )
    expected = k_core(rows, customers, items)
    assert 0 < len(expected) < len(rows)
    assert Counter(interactions(tmp_path / "out", "train")) == Counter(expected)
    assert manifest.source["dropped_rare"] == len(rows) - len(expected)
    for side, entity in enumerate(("customer", "item")):
        remaining_rows = {row[side] for row in expected}
        assert {row["id"] for row in vocabulary(tmp_path / "out", entity)} == remaining_rows
        assert manifest.source[f"{entity}_rare"] == len({row[side] for row in rows} - remaining_rows)


def test_duplicates_sum_keeps_latest_time_and_drops_cancelled_pairs(tmp_path: Path) -> None:
    rows = [*skewed_events(2000), (900, 900, 1.0, 5), (900, 900, -1.0, 6)]
    test = [(900, 1, 1.0, 7), (900, 1, 1.0, 3)]
    manifest = prepare_files(
        tmp_path / "out",
        write_events(rows, tmp_path / "e.parquet"),
        test=[write_events(test, tmp_path / "t.parquet")],
        weight="w",
        timestamp="at",
        duplicates="sum",
    )
    weight: dict[tuple[int, int], float] = defaultdict(float)
    latest: dict[tuple[int, int], int] = defaultdict(int)
    for customer, item, w, at in rows:
        weight[customer, item] += w
        latest[customer, item] = max(latest[customer, item], at)
    expected = [(*pair, w, latest[pair]) for pair, w in weight.items() if w]
    assert sorted(interactions(tmp_path / "out", "train")) == sorted(expected)
    assert interactions(tmp_path / "out", "test") == [(900, 1, 2.0, 7)]
    cancelled = sum(not w for w in weight.values())
    assert manifest.source["cancelled_pairs"] == cancelled >= 1
    assert manifest.source["merged_duplicates"] == len(rows) + len(test) - len(weight) - 1


def test_sums_do_not_cross_a_hold_out_by_time(tmp_path: Path) -> None:
    rows = [(1, 10, 1.0, 1), (1, 10, 2.0, 2), (1, 10, 4.0, 5), (1, 10, 8.0, 9), (1, 10, 16.0, 8), (1, 11, 1.0, 1)]
    prepare_files(
        tmp_path / "out",
        write_events(rows, tmp_path / "e.parquet"),
        weight="w",
        timestamp="at",
        duplicates="sum",
        hold_out_valid="after:4",
        hold_out_test="after:6",
    )
    assert sorted(interactions(tmp_path / "out", "train")) == [(1, 10, 3.0, 2), (1, 11, 1.0, 1)]
    assert interactions(tmp_path / "out", "valid") == [(1, 10, 4.0, 5)]
    assert interactions(tmp_path / "out", "test") == [(1, 10, 24.0, 9)]


def test_inexact_sums_are_computed_in_event_order(tmp_path: Path) -> None:
    draw = random.Random(1)
    count = 150_000  # more than one of DuckDB's own row groups, so that threads do share the work
    columns = {
        "customer": [draw.randrange(20) for _ in range(count)],
        "item": [draw.randrange(10) for _ in range(count)],
        "w": pa.array([draw.choice([1e20, -1e20, 1.0, 0.3]) for _ in range(count)], pa.float32()),
    }
    weight: dict[tuple[int, int], float] = defaultdict(float)
    for customer, item, w in zip(columns["customer"], columns["item"], columns["w"].to_pylist(), strict=True):
        weight[customer, item] += w
    prepare_files(
        tmp_path / "out",
        write_parquet(tmp_path / "e.parquet", **columns),
        weight="w",
        duplicates="sum",
        threads=4,
        hold_out_valid="none",
    )
    expected = {(*pair, float(np.float32(w))) for pair, w in weight.items() if w}
    assert set(interactions(tmp_path / "out", "train")) == expected


def test_negative_weights_are_kept_but_not_counted(tmp_path: Path) -> None:
    train = write_text(tmp_path / "e.csv", "customer,item,what\n1,1,play\n1,2,skip\n2,1,like\n2,3,skip\n2,3,skip\n")
    manifest = prepare_files(tmp_path / "out", train, event="what", event_weights=WEIGHTS)
    expected = [(1, 1, 1.0), (1, 2, -1.0), (2, 1, 3.0), (2, 3, -1.0), (2, 3, -1.0)]
    assert Counter(interactions(tmp_path / "out", "train")) == Counter(expected)
    assert {row["id"]: row["count"] for row in vocabulary(tmp_path / "out", "item")} == {1: 2, 2: 0, 3: 0}
    assert "3 of all interactions have a negative weight" in format_summary(manifest, Folder(tmp_path / "out"))


def test_last_n_counts_positives_and_takes_later_negatives(tmp_path: Path) -> None:
    rows: list[Event] = [
        (1, 10, 1.0, 1), (1, 11, 1.0, 2), (1, 12, -1.0, 3), (1, 13, 1.0, 4), (1, 14, -1.0, 5),
        (2, 10, 1.0, 1), (2, 11, -1.0, 2),  # its only positive stays in train, and so do later events
        (3, 10, -1.0, 1), (3, 11, -1.0, 2),
    ]  # fmt: skip
    train = write_events(rows, tmp_path / "e.parquet")
    prepare_files(tmp_path / "out", train, weight="w", timestamp="at", hold_out_test="last-1", hold_out_valid="none")
    assert sorted(interactions(tmp_path / "out", "test")) == [(1, 13, 1.0, 4), (1, 14, -1.0, 5)]


def test_after_keeps_earliest_positive_in_train_and_takes_all_later_events(tmp_path: Path) -> None:
    rows: list[Event] = [(1, 10, -1.0, 1), (1, 11, 1.0, 6), (1, 12, -1.0, 7), (1, 13, 1.0, 8), (2, 10, -1.0, 9)]
    train = write_events(rows, tmp_path / "e.parquet")
    prepare_files(tmp_path / "out", train, weight="w", timestamp="at", hold_out="after:5", hold_out_valid="none")
    assert sorted(interactions(tmp_path / "out", "train")) == [(1, 10, -1.0, 1), (1, 11, 1.0, 6)]
    assert sorted(interactions(tmp_path / "out", "test")) == [(1, 12, -1.0, 7), (1, 13, 1.0, 8), (2, 10, -1.0, 9)]


def test_summary_lists_times_and_empty_files(tmp_path: Path) -> None:
    customers = [1] * 50 + list(range(2, 202))
    train = write_parquet(
        tmp_path / "e.parquet",
        customer=customers,
        item=[n % 7 for n in range(250)],
        at=pa.array([1_577_836_800 + n for n in range(250)], pa.timestamp("s")),
    )
    empty = write_parquet(
        tmp_path / "none.parquet",
        customer=pa.array([], pa.int64()),
        item=pa.array([], pa.int64()),
        at=pa.array([], pa.timestamp("s")),
    )
    text = format_summary(prepare_files(tmp_path / "out", train, empty, timestamp="at"), Folder(tmp_path / "out"))
    for part in (
        "read: 250 rows of 2 files, 1 of them empty",
        "time: from 2020-01-01 00:00:00 UTC to 2020-01-01 00:04:09 UTC",
    ):
        assert part in text
