"""Histories of queries: from all splits, with negative feedback, and the same in parts on disk."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from builders import make_interactions, write_data_set

from crossfade.base.io.folder import Folder
from crossfade.trainer.data.lineage import LineageReader
from crossfade.trainer.data.manifest import DatasetManifest
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.recommend import history
from crossfade.trainer.recommend.history import Histories, load_histories, write_histories

QUERIES, ITEMS = 40, 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def manifest(folder: Path) -> DatasetManifest:
    generator = np.random.default_rng(5)
    weights = (-1.0, 0.0, 1.0, 2.0)

    def group(rows: int):  # type: ignore[no-untyped-def]
        queries, items = generator.integers(0, QUERIES, rows), generator.integers(0, ITEMS, rows)
        return make_interactions(queries, items, generator.choice(weights, rows))

    files = {"train": [[group(100), group(50)], [group(150)]], "test": [[group(60)]]}
    return write_data_set(folder, files, queries=QUERIES, items=ITEMS)


def expected(folder: Path, manifest: DatasetManifest, splits: list[str]) -> dict[int, dict[int, float]]:
    totals: dict[int, dict[int, float]] = {}
    with closing(LineageReader(Folder(folder), manifest)) as lineage:
        for name in splits:
            for part in lineage.own.read_all(manifest.splits[name]):  # type: ignore[index]
                for query, item, weight in zip(part.query_N, part.item_N, part.weight_N, strict=True):
                    if weight != 0:
                        of_query = totals.setdefault(int(query), {})
                        of_query[int(item)] = of_query.get(int(item), 0.0) + float(weight)
    return totals


def as_dicts(histories: Histories) -> list[dict[int, float]]:
    lists = histories.lists
    bounds = zip(lists.starts_L1[:-1], lists.starts_L1[1:], strict=True)
    return [dict(zip(lists.values_N[a:b].tolist(), histories.weight_N[a:b].tolist(), strict=True)) for a, b in bounds]


@pytest.mark.parametrize("splits", [["train"], ["train", "test"], []])
def test_history_has_each_item_once_with_the_sum_of_weights(
    folder: Path, manifest: DatasetManifest, splits: list[str]
) -> None:
    queries_Q = np.array([0, 3, 17, 39])
    with closing(LineageReader(Folder(folder), manifest)) as lineage:
        found = load_histories(lineage, splits, queries_Q, NullReporter())  # type: ignore[arg-type]
    totals = expected(folder, manifest, splits)
    assert as_dicts(found) == [dict(sorted(totals.get(int(query), {}).items())) for query in queries_Q]


@pytest.mark.parametrize("part", [1, 50, 10_000])
def test_written_histories_equal_loaded_ones(
    folder: Path, manifest: DatasetManifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    monkeypatch.setattr(history, "_MAX_PART_INTERACTIONS", part)
    with closing(LineageReader(Folder(folder), manifest)) as lineage:
        whole = load_histories(lineage, ["train", "test"], np.arange(QUERIES), NullReporter())
        written = write_histories(lineage, ["train", "test"], tmp_path, NullReporter())
    assert as_dicts(written.take(np.arange(QUERIES))) == as_dicts(whole)
    assert as_dicts(written.take(np.array([9, -1, 3]))) == [as_dicts(whole)[9], {}, as_dicts(whole)[3]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["items", "starts", "weights"]


def test_favorites_are_the_items_of_the_largest_positive_weights() -> None:
    histories = history.make_histories(
        np.array([1, 1, 1, 1, 0]), np.array([4, 2, 9, 7, 1]), np.array([1.0, 3.0, -5.0, 1.0, -1.0], np.float32), 2, 10
    )
    assert histories.favorites(1, 2).tolist() == [2, 4]
    assert histories.favorites(1, 9).tolist() == [2, 4, 7]
    assert histories.favorites(0, 9).tolist() == []
