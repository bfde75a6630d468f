"""Rankings without training against plain ones; limits, the kept results, and the commands that show them."""

import json
import math
from collections import Counter
from pathlib import Path

import pytest
from plain_rankings import DEPTHS, ITEMS, PAIRS, QUERIES, by_query, make_job, plain_recall_and_ndcg, write_pairs

from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import BASELINES_FILE, DatasetManifest
from crossfade.trainer.evaluation import baselines
from crossfade.trainer.evaluation.baselines import load_baselines
from crossfade.trainer.prepare.options import PrepareOptions
from crossfade.trainer.prepare.pipeline import prepare


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_pairs(tmp_path / "data")
    return tmp_path / "data"


def plain_scores(neighbors: int) -> dict[str, dict[int, dict[int, float]]]:
    """Return the score of each item that is ranked, for each query, by both baselines."""
    train = by_query("train")
    owners = {item: {query for query, items in train.items() if item in items} for item in range(ITEMS)}
    counts = Counter(item for _, item, weight in PAIRS["train"] if weight > 0)
    near: dict[int, dict[int, float]] = {}
    for item in range(ITEMS):
        cosines = {
            other: len(owners[item] & owners[other]) / math.sqrt(len(owners[item]) * len(owners[other]))
            for other in range(ITEMS)
            if other != item and owners[item] & owners[other]
        }
        best = sorted(cosines, key=lambda other: (-cosines[other], other))[:neighbors]
        near[item] = {other: cosines[other] for other in best}
    summed: dict[int, dict[int, float]] = {}
    for query in range(QUERIES):
        scores: dict[int, float] = {}
        for item in train.get(query, ()):
            for other, cosine in near[item].items():
                scores[other] = scores.get(other, 0.0) + cosine
        # Sums of the same cosines in another order may differ in the last bits.
        summed[query] = {item: round(score, 5) for item, score in scores.items()}
    popular = {item: float(counts[item]) for item in range(ITEMS)}
    return {"popularity": dict.fromkeys(range(QUERIES), popular), "item_cosine": summed}


@pytest.mark.parametrize("task", ["new", "repeat"])
@pytest.mark.parametrize("neighbors", [3, 100])
def test_metrics_match_plain_rankings(data: Path, task: str, neighbors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "NEIGHBORS", neighbors)
    monkeypatch.setattr(baselines, "_MAX_RANKED", 40)  # chunks of three queries
    found = load_baselines(make_job(data, task=task), ["test", "valid"])
    assert found["notes"] == []
    excluded = by_query("train", "valid") if task == "new" else {}
    truth = {query: items - excluded.get(query, set()) for query, items in by_query("test").items()}
    truth = {query: items for query, items in truth.items() if items}
    assert list(found["metrics"]) == ["test", "valid"]
    for name, scores in plain_scores(neighbors).items():
        expected = plain_recall_and_ndcg(scores, truth, excluded)
        metrics = found["metrics"]["test"][name]
        assert len(metrics) == 2 * 5 * len(DEPTHS)
        hit_rate = metrics["hit_rate@4"]
        assert metrics["hit_rate@4_se"] == pytest.approx(math.sqrt(hit_rate * (1 - hit_rate) / (len(truth) - 1)))
        assert {metric: metrics[metric] for metric in expected} == pytest.approx(expected), name
        assert 0 < metrics["ndcg@4"] < 1


def test_dataset_above_a_limit_has_popularity_only_and_the_output_says_why(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "MAX_PRODUCTS", 100)
    found = load_baselines(make_job(data), ["test", "valid"])
    assert {split: list(metrics) for split, metrics in found["metrics"].items()} == {
        "test": ["popularity"],
        "valid": ["popularity"],
    }
    counts = Counter(query for query, _, weight in PAIRS["train"] if weight > 0)
    products = sum(count**2 for count in counts.values())
    assert found["notes"] == [f"item_cosine is not computed: {products:,} pairs of items of a customer, of 100 at most"]


@pytest.mark.slow
def test_recent_popularity_counts_latest_interactions_of_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "RECENT_SHARE", 0.4)
    rows = {"train": [(0, 1), (1, 2), (1, 3), (1, 4), (2, 6), (2, 5)], "test": [(2, 9), (2, 9), (0, 9), (1, 9)]}
    for split, events in rows.items():
        lines = [f"{query},{item},{at}" for query, (item, at) in enumerate(events)]
        (tmp_path / f"{split}.csv").write_text("\n".join(["customer,item,at", *lines]))
    files = {split: [tmp_path / f"{split}.csv"] for split in rows}
    manifest = prepare(PrepareOptions.of(**files, timestamp="at", out=tmp_path / "data"))
    found = load_baselines(make_job(tmp_path / "data", k=[1, 2], best_metric="ndcg@1", task="repeat"), ["test"])
    recalls = {
        name: [metrics[f"recall@{k}"] for k in (1, 2)]
        for name, metrics in found["metrics"]["test"].items()
        if name != "item_cosine"
    }
    assert recalls == {"popularity": [0.25, 0.75], "recent_popularity": [0.5, 0.75]}
    assert found["notes"] == []
    manifest.model_copy(update={"source": {"hold_out": "random:0.1"}}).write(Folder(tmp_path / "data"))
    (note,) = load_baselines(make_job(tmp_path / "data"), ["test"])["notes"]
    assert note.startswith("test is held out at random, although interactions have times")


def test_large_split_is_ranked_for_every_nth_query(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every_query = load_baselines(make_job(data, task="repeat"), ["test"])["metrics"]["test"]["popularity"]
    (data / BASELINES_FILE).unlink()
    monkeypatch.setattr(baselines, "MAX_PAIRS", len(PAIRS["test"]) // 2)
    found = load_baselines(make_job(data, task="repeat"), ["test"])
    assert found["notes"] == ["baselines rank for one query in 2"]
    held_out = by_query("test")
    chosen = {query: held_out[query] for query in sorted(held_out)[::2]}
    expected = plain_recall_and_ndcg(plain_scores(3)["popularity"], chosen, {})
    metrics = found["metrics"]["test"]["popularity"]
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert metrics != every_query


def test_results_are_kept_beside_the_data_until_it_or_the_question_changes(data: Path) -> None:
    job = make_job(data)
    first = load_baselines(job, ["test"])
    kept = json.loads((data / BASELINES_FILE).read_text())
    (key,) = kept["results"]
    kept["results"][key]["notes"] = ["kept"]
    (data / BASELINES_FILE).write_text(json.dumps(kept))
    assert load_baselines(job, ["test"])["notes"] == ["kept"]
    for other in (make_job(data, task="repeat"), make_job(data, k=[4]), make_job(data, exclude_splits=["train"])):
        assert load_baselines(other, ["test"])["notes"] == []
    assert load_baselines(job, ["valid"])["notes"] == []
    assert len(json.loads((data / BASELINES_FILE).read_text())["results"]) == 5
    # Another version of the dataset has another manifest.
    manifest = DatasetManifest.model_validate_json((data / "manifest.json").read_text())
    manifest.model_copy(update={"source": {"command": "another"}}).write(Folder(data))
    assert load_baselines(job, ["test"]) == first
    assert list(json.loads((data / BASELINES_FILE).read_text())["results"]) == [key]


def test_file_that_is_not_of_baselines_is_replaced(data: Path) -> None:
    (data / BASELINES_FILE).write_text('{"version": 1}')
    found = load_baselines(make_job(data), ["test"])
    assert list(found["metrics"]["test"]) == ["popularity", "item_cosine"]
    assert len(json.loads((data / BASELINES_FILE).read_text())["results"]) == 1
