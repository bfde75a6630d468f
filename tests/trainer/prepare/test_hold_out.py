"""Hold-outs: which interactions of train become valid or test."""

import random
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from preparing import Row, interactions, prepare_files, random_events, write_parquet

from crossfade.base.errors import OptionError
from crossfade.base.io.folder import Folder
from crossfade.trainer.prepare import hold_out
from crossfade.trainer.prepare.hold_out import DEFAULT_FRACTION, HoldOut
from crossfade.trainer.prepare.summary import format_summary

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("most_kept", [0, 16])
def test_last_n_takes_latest_of_each_customer_and_leaves_one_in_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_kept: int
) -> None:
    monkeypatch.setattr(hold_out, "_MOST_KEPT", most_kept)
    events = random_events(1500)
    rows = list(zip(events["customer"], events["item"], events["when"], strict=True))
    rows += [("single", 1000, 3), ("pair", 1001, 4), ("pair", 1000, 4)]
    columns = dict(zip(("customer", "item", "when"), map(list, zip(*rows, strict=True)), strict=True))
    train = write_parquet(tmp_path / "e.parquet", **columns)
    prepare_files(tmp_path / "out", train, hold_out="last-2", timestamp="when")
    by_customer = defaultdict(list)
    for position, (customer, item, when) in enumerate(rows):
        by_customer[customer].append((when, item, position))
    expected: dict[str, Counter[Row]] = {"train": Counter(), "valid": Counter(), "test": Counter()}
    for customer, events_of_customer in by_customer.items():
        remaining = sorted(events_of_customer)
        for split in ("test", "valid"):
            take = min(2, len(remaining) - 1)
            remaining, held_out = remaining[: len(remaining) - take], remaining[len(remaining) - take :]
            expected[split].update((customer, item, 1.0, when) for when, item, _ in held_out)
        expected["train"].update((customer, item, 1.0, when) for when, item, _ in remaining)
    for split, rows_of_split in expected.items():
        assert Counter(interactions(tmp_path / "out", split)) == rows_of_split
    assert ("pair", 1001, 1.0, 4) in expected["test"]  # of equal times, the larger item id is later


@pytest.mark.slow
def test_random_takes_fraction_of_pairs_and_leaves_each_customer_one(tmp_path: Path) -> None:
    draw = random.Random(5)
    customers = [f"c{draw.randrange(400)}" for _ in range(20_000)] + [f"lone{n}" for n in range(200)]
    items = [draw.randrange(300) for _ in range(20_200)]
    train = write_parquet(tmp_path / "e.parquet", customer=customers * 2, item=items * 2)
    manifest = prepare_files(tmp_path / "out", train, hold_out_test="random:0.1", hold_out_valid="random:0.5")
    pairs = {split: {row[:2] for row in interactions(tmp_path / "out", split)} for split in manifest.splits}
    assert not pairs["train"] & pairs["test"]
    assert not pairs["train"] & pairs["valid"]
    assert not pairs["valid"] & pairs["test"]
    assert {customer for customer, _ in pairs["train"]} == set(customers)
    assert manifest.splits["test"].rows / 40_000 == pytest.approx(0.1, abs=0.01)
    assert manifest.splits["valid"].rows / (40_000 * 0.9) == pytest.approx(0.5, abs=0.02)
    assert manifest.source["kept_for_train"] > 0  # type: ignore[operator]


@pytest.mark.slow
def test_random_is_independent_of_event_order(tmp_path: Path) -> None:
    events = random_events(3000)
    backwards = {name: values[::-1] for name, values in events.items()}
    prepare_files(tmp_path / "a", write_parquet(tmp_path / "a.parquet", **events), hold_out="random:0.3")
    prepare_files(tmp_path / "b", write_parquet(tmp_path / "b.parquet", **backwards), hold_out="random:0.3")
    prepare_files(tmp_path / "c", tmp_path / "a.parquet", hold_out="random:0.3", seed=9)
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
def test_after_moves_later_events_to_test_except_earliest_of_each_customer(
    tmp_path: Path, how: str, times: list[int]
) -> None:
    train = write_parquet(tmp_path / "e.parquet", customer=[1, 1, 1, 2, 2], item=[1, 2, 3, 4, 5], at=times)
    manifest = prepare_files(tmp_path / "out", train, hold_out=how, hold_out_valid="none", timestamp="at")
    assert set(manifest.splits) == {"train", "test"}
    assert {row[1] for row in interactions(tmp_path / "out", "test")} == {3, 5}
    assert "1 interaction, since each customer keeps one" in format_summary(manifest, Folder(tmp_path / "out"))


def test_gap_ends_at_the_time_and_leaves_out_who_comes_later(tmp_path: Path) -> None:
    times = [7, 8, 9, 10, 11, 11]
    train = write_parquet(tmp_path / "e.parquet", customer=[1, 1, 1, 1, 1, 2], item=times, at=times)
    manifest = prepare_files(
        tmp_path / "out", train, hold_out="after:10", hold_out_valid="none", hold_out_gap="2", timestamp="at"
    )
    found = {split: [row[:2] for row in interactions(tmp_path / "out", split)] for split in manifest.splits}
    assert {split: sorted(rows) for split, rows in found.items()} == {"train": [(1, 7), (1, 8)], "test": [(1, 11)]}
    assert (manifest.source["dropped_gap"], manifest.source["dropped_without_history"]) == (2, 1)
    assert manifest.source["hold_out_gap"] == "2"


@pytest.mark.slow
def test_given_split_stays_and_combines_with_hold_out_of_the_other(tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "e.parquet", **random_events(2000))
    test = write_parquet(tmp_path / "t.parquet", **random_events(50, seed=8))
    manifest = prepare_files(tmp_path / "out", train, test=[test], hold_out_valid="random:0.1")
    assert manifest.splits["test"].rows == 50
    assert manifest.splits["train"].rows + manifest.splits["valid"].rows == 2000
    manifest = prepare_files(tmp_path / "own", train, test=[test])
    assert (set(manifest.splits), manifest.splits["train"].rows) == ({"train", "test"}, 2000)
    asked = prepare_files(tmp_path / "asked", train, test=[test], hold_out_valid="default")
    assert (asked.splits["test"].rows, asked.source["valid_by_default"]) == (50, True)
    assert asked.splits["valid"].rows / 2000 == pytest.approx(DEFAULT_FRACTION, abs=0.02)


@pytest.mark.slow
def test_small_valid_is_held_out_by_default_where_only_test_is(tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "e.parquet", **random_events(3000))
    manifests = {
        name: prepare_files(tmp_path / name, train, timestamp="when", hold_out="after:40", **more)
        for name, more in (("default", {}), ("again", {}), ("none", {"hold_out_valid": "none"}))
    }
    assert set(manifests["none"].splits) == {"train", "test"}
    valid, whole = manifests["default"].splits["valid"].rows, manifests["none"].splits["train"].rows
    assert valid / whole == pytest.approx(DEFAULT_FRACTION, abs=0.02)
    found = {
        name: {split: Counter(interactions(tmp_path / name, split)) for split in manifests[name].splits}
        for name in manifests
    }
    assert found["default"] == found["again"]
    assert found["default"]["test"] == found["none"]["test"]
    assert found["default"]["train"] + found["default"]["valid"] == found["none"]["train"]
    assert not {row[:2] for row in found["default"]["valid"]} & {row[:2] for row in found["default"]["train"]}
    summary = format_summary(manifests["default"], Folder(tmp_path / "default"))
    assert f"held out by default: {valid:,} interactions of train as valid" in summary
    assert "by default" not in format_summary(manifests["none"], Folder(tmp_path / "none"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hold_outs", "warning"),
    [
        ({"hold_out": "random:0.2"}, "test is held out at random"),
        ({"hold_out_test": "after:40"}, "valid is held out at random, and test by time"),
        ({}, None),
    ],
)
def test_random_split_of_timed_interactions_is_named(
    tmp_path: Path, hold_outs: dict[str, str], warning: str | None
) -> None:
    train = write_parquet(tmp_path / "e.parquet", **random_events(300))
    timed = prepare_files(tmp_path / "timed", train, timestamp="when", **hold_outs)
    summary = format_summary(timed, Folder(tmp_path / "timed"))
    assert [text in summary for text in ("is held out at random", warning or "")] == [warning is not None, True]
    if warning is not None and "random" in hold_outs.get("hold_out_test", "random"):
        untimed = prepare_files(tmp_path / "untimed", train, **hold_outs)
        assert not untimed.hold_out_notes()


def test_valid_by_default_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hold_out, "DEFAULT_PAIRS", 30)
    train = write_parquet(tmp_path / "e.parquet", **random_events(3000))
    manifest = prepare_files(tmp_path / "out", train, hold_out_test="random:0.1")
    assert 10 < manifest.splits["valid"].rows < 60


@pytest.mark.parametrize("text", ["last-0", "last", "random:1", "random:x", "random:nan", "after:soon", "first-1", ""])
def test_unknown_hold_out_is_rejected_with_allowed_forms(text: str) -> None:
    with pytest.raises(OptionError, match=r"(last-N|random:0\.1)"):
        HoldOut.parse("hold_out", text)
