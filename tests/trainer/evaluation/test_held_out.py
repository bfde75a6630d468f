"""Which held-out items count: those that are new to a query, or all."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from builders import make_interactions, write_data_set
from preparing import prepare_files, vocabulary_tuples, write_parquet

from crossfade.base.io.folder import Folder
from crossfade.trainer.config.schema import EvaluateConfig
from crossfade.trainer.data.lineage import LineageReader
from crossfade.trainer.data.manifest import read_manifest
from crossfade.trainer.data.query_history import latest_histories
from crossfade.trainer.data.split_names import SplitName
from crossfade.trainer.evaluation.held_out import HeldOut, load_held_out

pytestmark = pytest.mark.slow

QUERIES, ITEMS = 30, 50


def write_pairs(folder: Path, pairs: Mapping[str, list[tuple[int, int]]]) -> None:
    splits = {name: [[make_interactions(*zip(*of_split, strict=True))]] for name, of_split in pairs.items()}
    write_data_set(folder, splits, queries=QUERIES, items=ITEMS)


def load(data: Path, exclude: list[SplitName], rank: int = 0, workers: int = 1) -> HeldOut:
    manifest = read_manifest(Folder(data))
    spec = EvaluateConfig(exclude_splits=exclude)
    return load_held_out(LineageReader(Folder(data), manifest), "test", spec, rank, workers)


def test_query_whose_held_out_items_are_all_known_is_left_out(tmp_path: Path) -> None:
    # Query 0 plays item 1 again; query 1 has item 2 in train, and item 3 is new to it.
    write_pairs(tmp_path, {"train": [(0, 1), (1, 2)], "test": [(0, 1), (1, 2), (1, 3)]})
    found = load(tmp_path, ["train"])
    assert found.queries_Q.tolist() == [1]
    assert (found.truth.values_N.tolist(), found.excluded.values_N.tolist()) == ([3], [2])
    assert found.dropped == 2
    # The first of two workers has query 0, and so nothing to rank.
    parts = [load(tmp_path, ["train"], rank, workers=2) for rank in (0, 1)]
    assert [(part.queries_Q.tolist(), part.dropped) for part in parts] == [([], 1), ([1], 1)]


def test_query_is_a_customer_in_the_context_of_the_held_out_event(tmp_path: Path) -> None:
    """Customer a holds out items 1 and 2 in the car, 3 on the phone and 4 without a device; it has 2 in train."""
    train = write_parquet(
        tmp_path / "train.parquet", customer=["a", "a", "b"], item=[9, 2, 9], device=["car", "tv", "phone"]
    )
    test = write_parquet(
        tmp_path / "test.parquet",
        customer=["a", "a", "a", "a", "b", "a"],
        item=[1, 2, 3, 4, 1, 1],
        device=["car", "car", "phone", None, "phone", "car"],
    )
    manifest = prepare_files(tmp_path / "out", train, test=[test], context={"device": "device"}, item="item")
    customers, items, devices = (
        [str(row[1]) for row in vocabulary_tuples(tmp_path / "out", name)] for name in ("customer", "item", "device")
    )

    def queries(held_out: HeldOut) -> dict[tuple[str, str], tuple[list[str], list[str]]]:
        assert list(held_out.context) == ["device"]
        found = {}
        for place, (row, device) in enumerate(zip(held_out.queries_Q, held_out.context["device"], strict=True)):
            lists = [of.take(np.array([place])).values_N for of in (held_out.truth, held_out.excluded)]
            truth, excluded = ([items[item] for item in found_N] for found_N in lists)
            found[customers[row], devices[device] if device >= 0 else "none"] = truth, sorted(excluded)
        return found

    assert manifest.context == ["device"]
    everything = load(tmp_path / "out", ["train"])
    assert queries(everything) == {
        ("a", "car"): (["1"], ["2", "9"]),
        ("a", "phone"): (["3"], ["2", "9"]),
        ("a", "none"): (["4"], ["2", "9"]),
        ("b", "phone"): (["1"], ["9"]),
    }
    assert everything.dropped == 1
    parts = [load(tmp_path / "out", ["train"], rank, workers=3) for rank in range(3)]
    assert sum(part.dropped for part in parts) == 1
    assert {**queries(parts[0]), **queries(parts[1]), **queries(parts[2])} == queries(everything)
    assert [len(part.queries_Q) for part in parts] == [2, 1, 1]
    halves = [queries(chunk) for chunk in everything.chunks(2)]
    assert {**halves[0], **halves[1]} == queries(everything)


def test_query_by_moment_has_the_history_before_it(tmp_path: Path) -> None:
    """Customer a plays 4 items in train and 3 in test, two of these at the same time; 7 has a negative weight."""
    train = write_parquet(
        tmp_path / "train.parquet",
        customer=["a", "a", "a", "a", "b"],
        item=[1, 2, 3, 7, 1],
        weight=[1.0, 1.0, 1.0, -1.0, 1.0],
        timestamp=[10, 20, 30, 35, 5],
    )
    test = write_parquet(
        tmp_path / "test.parquet",
        customer=["a", "a", "a", "a", "b"],
        item=[4, 5, 6, 1, 2],
        weight=[1.0] * 5,
        timestamp=[40, 40, 50, 60, 40],
    )
    manifest = prepare_files(tmp_path / "out", train, test=[test], item="item", weight="weight", timestamp="timestamp")
    customers, items = (
        [str(row[1]) for row in vocabulary_tuples(tmp_path / "out", name)] for name in ("customer", "item")
    )
    lineage = LineageReader(Folder(tmp_path / "out"), manifest)
    spec = EvaluateConfig(by="moment", task="repeat")
    parts = [
        (part.query_N, part.item_N, np.arange(len(part))) for part in lineage.own.read_all(manifest.splits["train"])
    ]
    latest = latest_histories(parts, manifest.entities["customer"].rows, length=3)

    def queries(held_out: HeldOut) -> list[tuple[str, list[str], list[str]]]:
        assert held_out.histories is not None
        before = held_out.histories.before
        found = []
        for place, row in enumerate(held_out.queries_Q):
            first, end = before.first_N[place], before.first_N[place] + before.count_N[place]
            truth = sorted(items[item] for item in held_out.truth.take(np.array([place])).values_N)
            found.append((customers[row], truth, [items[item] for item in before.items_S[first:end]]))
        return sorted(found)

    everything = load_held_out(lineage, "test", spec, 0, 1, latest)
    (at_60, at_40, at_50, of_b) = queries(everything)  # sorted by customer and held-out items
    assert at_40 == ("a", ["4", "5"], ["1", "2", "3"])
    assert (at_50[1], sorted(at_50[2])) == (["6"], ["3", "4", "5"])
    assert (at_60[1], sorted(at_60[2])) == (["1"], ["4", "5", "6"])
    assert of_b == ("b", ["2"], ["1"])
    chunks = [queries(chunk) for chunk in everything.chunks(3)]
    assert sorted([*chunks[0], *chunks[1]]) == queries(everything)
    halves = [load_held_out(lineage, "test", spec, rank, 2, latest) for rank in (0, 1)]
    assert sorted([*queries(halves[0]), *queries(halves[1])]) == queries(everything)
    new = load_held_out(lineage, "test", EvaluateConfig(by="moment"), 0, 1, latest)
    assert [truth for _, truth, _ in queries(new)] == [["4", "5"], ["6"], ["2"]]
    assert new.dropped == 1
    by_query = load_held_out(lineage, "test", EvaluateConfig(), 0, 1, latest)
    assert by_query.histories is None
    assert len(by_query.queries_Q) == 2
