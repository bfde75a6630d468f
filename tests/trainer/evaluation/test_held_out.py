"""Which held-out items count: those that are new to a query, or all."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from builders import make_interactions, write_data_set
from preparing import prepare_files, vocabulary_tuples, write_parquet

from crossfade.kvstore.io.folder import Folder
from crossfade.trainer.config.schema import EvaluateConfig, SplitName
from crossfade.trainer.data.manifest import read_manifest
from crossfade.trainer.data.reader import InteractionReader
from crossfade.trainer.evaluation.held_out import HeldOut, load_held_out

QUERIES, ITEMS = 30, 50


def write_pairs(folder: Path, pairs: Mapping[str, list[tuple[int, int]]]) -> None:
    splits = {name: [[make_interactions(*zip(*of_split, strict=True))]] for name, of_split in pairs.items()}
    write_data_set(folder, splits, queries=QUERIES, items=ITEMS)


def load(data: Path, exclude: list[SplitName], rank: int = 0, workers: int = 1) -> HeldOut:
    manifest = read_manifest(Folder(data))
    spec = EvaluateConfig(exclude_splits=exclude)
    return load_held_out(InteractionReader(Folder(data), manifest), manifest, "test", spec, rank, workers)


def test_query_whose_held_out_items_are_all_known_is_left_out(tmp_path: Path) -> None:
    # Query 0 plays item 1 again; query 1 has item 2 in train, and item 3 is new to it.
    write_pairs(tmp_path, {"train": [(0, 1), (1, 2)], "test": [(0, 1), (1, 2), (1, 3)]})
    found = load(tmp_path, ["train"])
    assert (found.queries_Q.tolist(), found.truth.items_N.tolist(), found.excluded.items_N.tolist()) == ([1], [3], [2])
    assert found.dropped == 2
    # The first of two workers has query 0, and so nothing to rank.
    parts = [load(tmp_path, ["train"], rank, workers=2) for rank in (0, 1)]
    assert [(part.queries_Q.tolist(), part.dropped) for part in parts] == [([], 1), ([1], 1)]


def test_disjoint_splits_drop_nothing(tmp_path: Path) -> None:
    """Published splits are disjoint, so figures on them depend on what is excluded and on nothing else."""
    places_N = np.random.default_rng(1).permutation(QUERIES * ITEMS)
    pairs = [(int(place) // ITEMS, int(place) % ITEMS) for place in places_N]
    write_pairs(tmp_path, {"train": pairs[:500], "valid": pairs[500:600], "test": pairs[600:750]})
    found, everything = load(tmp_path, ["train"]), load(tmp_path, [])
    assert found.dropped == 0
    assert found.queries_Q.tolist() == everything.queries_Q.tolist() == sorted({query for query, _ in pairs[600:750]})
    assert found.truth.items_N.tolist() == everything.truth.items_N.tolist()
    assert len(found.truth.items_N) == 150
    assert len(found.excluded.items_N) > 0 == len(everything.excluded.items_N)


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
            lists = [of.slice(place, place + 1).items_N for of in (held_out.truth, held_out.excluded)]
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
