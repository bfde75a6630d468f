"""``crossfade evaluate``: what it prints and returns, on two runs whose customers have listened a little and a lot."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import write_vocabulary
from cluster_data import CUSTOMERS, TRACKS, planted_splits, write_data, write_job, write_planted
from command_here import crossfade_here, rejected_here
from run_results import report_of
from running_command import succeeded

from crossfade.base.io.folder import Folder
from crossfade.trainer.data.lineage import LineageReader
from crossfade.trainer.data.manifest import read_manifest
from crossfade.trainer.evaluation.baselines import _Baselines
from crossfade.trainer.runs.run_folder import RunFolder
from crossfade.trainer.runs.shown_metrics import show_metric

pytestmark = pytest.mark.slow


def write_dataset(folder: Path, first_id: int = 5000) -> Path:
    """Write planted plays: customer c has c mod 17 of them in train, and replays there one of its two in test."""
    splits = planted_splits()
    customer_N, track_N = splits["train"]
    number_N = np.empty(len(customer_N), np.int64)
    for customer in np.unique(customer_N):
        number_N[customer_N == customer] = np.arange((customer_N == customer).sum())
    kept_N, replayed = number_N < customer_N % 17, slice(0, None, 2)
    pairs = zip((customer_N[kept_N], track_N[kept_N]), (rows_N[replayed] for rows_N in splits["test"]), strict=True)
    splits["train"] = tuple(np.concatenate(rows) for rows in pairs)  # type: ignore[assignment]
    counts = [
        np.bincount(rows_N, minlength=most) for rows_N, most in zip(splits["train"], (CUSTOMERS, TRACKS), strict=True)
    ]
    entities = {
        "customer": write_vocabulary(folder, "customer", [f"c{row}" for row in range(CUSTOMERS)], counts=counts[0]),
        "track": write_vocabulary(folder, "track", range(first_id, first_id + TRACKS), counts=counts[1]),
    }
    write_data(folder, entities, {name: (rows, [[len(rows[0])]]) for name, rows in splits.items()})
    return folder


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run well, and one that learns nothing."""
    folder = tmp_path_factory.mktemp("evaluate")
    evaluate = {"max_queries": 20, "final": "all"}
    job = write_job(folder / "job.yaml", write_dataset(folder / "data"), train={"epochs": 6}, evaluate=evaluate)
    for run, *options in (("good",), ("brief", "--set", "optimizer.learning_rate=1e-9")):
        printed = succeeded(crossfade_here("train", job, "--run-dir", run, *options, cwd=folder)).stdout
        (folder / f"{run}.txt").write_text(printed)
    return folder


def evaluated(workspace: Path, run: object, *options: object) -> dict[str, Any]:
    result = succeeded(crossfade_here("evaluate", run, *options, "--json", cwd=workspace))
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def printed(workspace: Path, *options: object) -> list[list[str]]:
    """Return the lines of each part of what the command prints."""
    text = succeeded(crossfade_here("evaluate", *options, cwd=workspace)).stdout
    return [part.splitlines() for part in text.split("\n\n")]


def test_better_run_is_found_better(workspace: Path) -> None:
    found, other = evaluated(workspace, "good", "--compare", "brief"), evaluated(workspace, "brief")
    comparison = found["comparison"]
    assert (comparison["other"], comparison["queries"]) == ("brief", found["test"]["queries"])
    assert list(comparison["metrics"]) == ["recall@5", "recall@10", "ndcg@5", "ndcg@10"]
    (title, head, *lines) = printed(workspace, "good", "--compare", "brief")[-1]
    assert title == f"good less brief, over the same {comparison['queries']} queries"
    assert head.split() == ["run", "other", "difference", "95%", "interval", "p", "(Holm)", "better", "worse", "equal"]
    for line, (name, metric) in zip(lines, comparison["metrics"].items(), strict=True):
        assert metric["run"] == pytest.approx(found["test"][name])
        assert metric["other"] == pytest.approx(other["test"][name])
        assert metric["difference"] == pytest.approx(metric["run"] - metric["other"])
        assert 0 < metric["low"] < metric["difference"] < metric["high"]
        assert metric["p"] <= metric["p_holm"] < 0.01
        assert metric["better"] > 2 * metric["worse"]
        assert metric["better"] + metric["worse"] + metric["equal"] == comparison["queries"]
        signed = [f"{metric[key]:+.4f}" for key in ("difference", "low", "high")]
        cells = [name, f"{metric['run']:.4f}", f"{metric['other']:.4f}", *signed, f"{metric['p_holm']:.4f}"]
        assert line.replace(" to ", " ").split() == [
            *cells,
            *(str(metric[key]) for key in ("better", "worse", "equal")),
        ]


def test_segments_and_re_ranking_are_beside_the_metrics(workspace: Path) -> None:
    found = evaluated(workspace, "good", "--segments", "--k", 10)
    segments = found["segments"]
    assert list(segments) == ["new", "casual", "regular", "heavy", "all"]
    of_all = segments["all"]
    assert sum(values["queries"] for name, values in segments.items() if name != "all") == of_all["queries"]
    assert of_all["recall@10"] == pytest.approx(found["test"]["recall@10"])
    table = printed(workspace, "good", "--segments", "--k", 10)[-1]
    assert table[0].split() == ["segment", *segments]
    rows = {line.split()[0]: line.split()[1:] for line in table}
    shown = [show_metric(values, "ndcg@10") for values in segments.values() if values["queries"]]
    assert " ".join(rows["ndcg@10"]) == " ".join(["-", *shown])
    assert rows["gini@10"] == ["-"] * 4 + [f"{of_all['gini@10']:.4f}"]

    command = ("good", "--diversity", 0.8, "--popularity-damping", 0.2, "--k", 10)
    reranked = evaluated(workspace, *command)
    before, after = reranked["reranking"]["model"], reranked["reranking"]["reranked"]
    assert before == of_all | found["test"]
    assert {name: after[name] for name in reranked["test"]} == reranked["test"]
    assert after["diversity@10"] > before["diversity@10"] + 0.05
    change = f"{100 * (after['gini@10'] / before['gini@10'] - 1):+.1f}"
    last = printed(workspace, *command)[-1][-1].split()
    assert last == ["gini@10", f"{before['gini@10']:.4f}", f"{after['gini@10']:.4f}", change, "%"]


def test_task_and_baselines_are_in_report_and_text(workspace: Path) -> None:
    report, new = report_of(workspace / "good"), evaluated(workspace, "good")
    assert report["task"] == new["task"] == "new"
    assert report["metrics"]["test"] == new["test"]
    assert set(report["baselines"]["metrics"]) == {"valid", "test"}
    assert report["baselines"]["notes"] == []
    lines = [" ".join(line.split()) for line in (workspace / "good.txt").read_text().splitlines()]
    for name, label in (("popularity", "by popularity"), ("item_cosine", "by item cosine")):
        shown = [show_metric(new["baselines"]["metrics"]["test"][name], f"ndcg@{k}") for k in (5, 10)]
        assert " ".join([label, *shown]) in lines
    repeat = evaluated(workspace, "good", "--task", "repeat")
    assert repeat["test"]["pairs_dropped"] == 0
    assert repeat["test"]["pairs"] == new["test"]["pairs"] + new["test"]["pairs_dropped"] > new["test"]["pairs"]
    assert repeat["baselines"]["metrics"]["test"] != new["baselines"]["metrics"]["test"]


def test_samples_and_baselines_are_of_the_same_queries(workspace: Path) -> None:
    report, again = report_of(workspace / "good"), evaluated(workspace, "good", "--max-queries", 10)
    lineage = LineageReader(Folder(workspace / "data"), read_manifest(Folder(workspace / "data")))
    baselines = _Baselines(lineage, RunFolder(workspace / "good").job().evaluate)
    for split, queries, metrics, found in (
        ("valid", 20, report["metrics"]["valid"], report["baselines"]),
        ("test", 10, again["test"], again["baselines"]),
    ):
        assert metrics["queries"] <= queries < metrics["queries_in_split"]
        assert found["metrics"][split] == baselines.evaluate(split, queries)["metrics"], (split, queries)


def move_run(run: Path, to: Path, data: Path) -> Path:
    """Copy a run, as if it had been trained on ``data``."""
    shutil.copytree(run, to)
    job = (to / "job.yaml").read_text()
    (to / "job.yaml").write_text(job.replace(str(run.parent / "data"), str(data)))
    return to


def test_run_of_another_dataset_is_rejected_and_of_a_copy_is_not(workspace: Path, tmp_path: Path) -> None:
    moved = move_run(workspace / "good", tmp_path / "moved", write_planted(tmp_path / "data", tracks=TRACKS + 1))
    cause = f"--compare {moved}: was trained on {tmp_path / 'data'}"
    message = rejected_here(cause, "evaluate", workspace / "good", "--compare", moved, cwd=tmp_path)
    assert "another dataset or version of it than" in message
    shutil.copytree(workspace / "data", tmp_path / "copy")
    of_copy = move_run(workspace / "brief", tmp_path / "of_copy", tmp_path / "copy")
    of_lost = move_run(workspace / "brief", tmp_path / "of_lost", tmp_path / "lost")
    original = evaluated(workspace, "good", "--compare", "brief")["comparison"]["metrics"]
    assert evaluated(workspace, "good", "--compare", of_copy)["comparison"]["metrics"] == original
    given = evaluated(workspace, "good", "--compare", of_lost, "--data", tmp_path / "copy")
    assert given["comparison"]["metrics"] == original
    # The same rows with other IDs: the dataset of both runs was prepared again.
    other = write_dataset(tmp_path / "other", first_id=6000)
    runs = [move_run(workspace / run, tmp_path / f"{run}_again", other) for run in ("good", "brief")]
    message = rejected_here("which was prepared again since", "evaluate", runs[0], "--compare", runs[1], cwd=tmp_path)
    assert "has other rows of 'track'" in message


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        (("--max-queries", 0), "0: expected a number of queries from 1, auto, or all"),
        (("--task", "repeat", "--exclude", "train"), "the task repeat excludes nothing"),
    ],
)
def test_invalid_options_are_rejected(workspace: Path, options: tuple[object, ...], cause: str) -> None:
    rejected_here(cause, "evaluate", "good", *options, cwd=workspace)
