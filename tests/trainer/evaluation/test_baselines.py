"""Rankings without training against plain ones; limits, the kept results, and the commands that show them."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from cluster_data import CUSTOMERS, planted_splits, write_data, write_job
from cluster_data import write_vocabulary as write_planted_vocabulary
from command_here import crossfade_here, rejected_here
from plain_rankings import DEPTHS, ITEMS, PAIRS, QUERIES, by_query, make_job, plain_recall_and_ndcg, write_pairs
from running_command import succeeded

from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import BASELINES_FILE, DatasetManifest
from crossfade.trainer.evaluation import baselines
from crossfade.trainer.evaluation.baselines import load_baselines
from crossfade.trainer.prepare.options import PrepareOptions
from crossfade.trainer.prepare.pipeline import prepare
from crossfade.trainer.prepare.staging import check_free
from crossfade.trainer.runs.shown_metrics import show_metric


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


@pytest.mark.parametrize("content", ["", "[]", '{"version": 1}'])
def test_file_that_is_not_of_baselines_is_replaced(data: Path, content: str) -> None:
    (data / BASELINES_FILE).write_text(content)
    found = load_baselines(make_job(data), ["test"])
    assert list(found["metrics"]["test"]) == ["popularity", "item_cosine"]
    assert len(json.loads((data / BASELINES_FILE).read_text())["results"]) == 1


def test_dataset_with_baselines_can_be_prepared_again(data: Path) -> None:
    load_baselines(make_job(data), ["test"])
    check_free(Folder(data), overwrite=True)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train on planted data in which each customer plays one of the held-out tracks of test before."""
    folder = tmp_path_factory.mktemp("replays")
    splits = planted_splits()
    customers, tracks = splits["train"]
    replayed = slice(0, None, 2)
    splits["train"] = (
        np.concatenate([customers, splits["test"][0][replayed]]),
        np.concatenate([tracks, splits["test"][1][replayed]]),
    )
    counts = np.bincount(splits["train"][1]).tolist()
    entities = {
        "customer": write_planted_vocabulary(folder / "data", "customer", range(CUSTOMERS)),
        "track": write_planted_vocabulary(folder / "data", "track", range(len(counts)), counts=counts),
    }
    write_data(folder / "data", entities, {name: (pairs, [[len(pairs[0])]]) for name, pairs in splits.items()})
    write_job(folder / "job.yaml", folder / "data", train={"epochs": 6})
    printed = succeeded(crossfade_here("train", "job.yaml", "--run-dir", "run", cwd=folder)).stdout
    (folder / "printed").write_text(printed)
    return folder


def test_report_and_terminal_have_the_task_and_the_baselines(workspace: Path) -> None:
    report = json.loads((workspace / "run" / "report.json").read_text())
    assert report["task"] == "new"
    test = report["metrics"]["test"]
    assert (test["pairs"], test["pairs_dropped"]) == (CUSTOMERS, CUSTOMERS)
    found = report["baselines"]
    assert found["notes"] == []
    assert set(found["metrics"]) == {"valid", "test"}
    cosine, popularity = (found["metrics"]["test"][name]["ndcg@10"] for name in ("item_cosine", "popularity"))
    assert cosine > 2 * popularity > 0
    printed = (workspace / "printed").read_text().splitlines()
    for name, label in (("popularity", "by popularity"), ("item_cosine", "by item cosine")):
        for metric in ("recall", "ndcg"):
            shown = [show_metric(found["metrics"]["test"][name], f"{metric}@{k}") for k in (5, 10)]
            assert " ± " in shown[0]
            assert " ".join([label, *shown]) in [" ".join(line.split()) for line in printed]
    assert (
        "task new: 300 held-out pairs count; 300 are in an excluded split too and are dropped (task repeat counts them)"
    ) in printed


def test_task_repeat_counts_what_new_drops(workspace: Path) -> None:
    text = succeeded(crossfade_here("evaluate", "run", "--task", "repeat", cwd=workspace)).stdout
    assert "task repeat: all 600 held-out pairs count, and no item is excluded" in text
    found = json.loads(succeeded(crossfade_here("evaluate", "run", "--task", "repeat", "--json", cwd=workspace)).stdout)
    assert found["task"] == "repeat"
    assert (found["test"]["pairs"], found["test"]["pairs_dropped"]) == (2 * CUSTOMERS, 0)
    new = json.loads(succeeded(crossfade_here("evaluate", "run", "--json", cwd=workspace)).stdout)
    assert new["test"]["ndcg@10"] != found["test"]["ndcg@10"]
    assert new["baselines"]["metrics"]["test"] != found["baselines"]["metrics"]["test"]


@pytest.mark.slow
def test_run_below_a_baseline_is_named(workspace: Path) -> None:
    brief = ("train", "job.yaml", "--run-dir", "brief", "--set", "optimizer.learning_rate=1e-9")
    text = {
        "brief": succeeded(crossfade_here(*brief, cwd=workspace)).stdout,
        "run": (workspace / "printed").read_text(),
    }
    below = {}
    for run, printed in text.items():
        baselines = json.loads((workspace / run / "report.json").read_text())["baselines"]
        below[run] = baselines["shortfall"] or ""
        last = [line for line in printed.splitlines() if not line.startswith("next: ")][-1]
        assert last.startswith("ndcg@10 on test is ") is bool(below[run])
        assert below[run] in last
    assert "item cosine (" in below["brief"]
    assert "; what ALS and EASE reach: 'crossfade evaluate RUN --baselines'" in below["brief"]
    assert "below" not in below["run"]


def test_exclusion_conflicts_with_the_task_repeat(workspace: Path) -> None:
    arguments = ("evaluate", "run", "--task", "repeat", "--exclude", "train")
    rejected_here("the task repeat excludes nothing", *arguments, cwd=workspace)
