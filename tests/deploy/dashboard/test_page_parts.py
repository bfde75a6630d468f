"""Graphs and tables of the page, built from synthetic runs without a browser."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_text import rows_of, text_of
from run_folders import BEGAN, JOB, epoch, state, step, training_from, write_run

from crossfade.base import formatting
from crossfade.deploy.dashboard import app, charts, page
from crossfade.deploy.dashboard.charts import COLORS, RunView
from crossfade.deploy.dashboard.explored_models import ExploredModels
from crossfade.deploy.dashboard.run_reader import RunReader, Runs
from crossfade.deploy.dashboard.summary import summarize


def show(folder: Path, *, at: float = 100.0) -> RunView:
    run = RunReader(folder, folder.name)
    run.refresh()
    return RunView(run, summarize(run, BEGAN + at), COLORS[0])


def test_repeated_steps_are_drawn_once_with_their_last_values(tmp_path: Path) -> None:
    events = [training_from(0, at=0), *(step(number, at=number, loss=9.0) for number in range(1, 9))]
    events += [epoch(1, at=8, step=8, quality=0.9), training_from(4, at=50)]
    events += [step(number, at=50 + number, loss=1.0) for number in range(5, 11)]
    events += [epoch(1, at=59, step=8, quality=0.2)]
    shown = show(write_run(tmp_path / ("a-long-name-of-a-run-" * 3), metrics=events, state=state("running", at=61)))
    steps, epochs = charts.loss([shown])["data"]
    assert steps["x"] == list(range(1, 11))
    assert steps["y"] == [9.0] * 4 + [1.0] * 6
    assert (epochs["x"], epochs["y"], epochs["name"]) == ([8], [0.4], "a-long-name…me-of-a-run-")
    assert charts.eval_metric([shown])["data"][0]["y"] == [0.2]


@pytest.mark.slow
def test_long_run_is_thinned_to_few_points_with_the_same_mean(tmp_path: Path) -> None:
    numbers = range(1, 10_001)
    events = [training_from(0, at=0), *(step(number, at=number, loss=number % 7, steps=10_000) for number in numbers)]
    shown = show(write_run(tmp_path / "run", metrics=events))
    line = charts.loss([shown])["data"][0]
    assert len(line["x"]) == len(line["y"]) == 400
    assert np.mean(line["y"]) == pytest.approx(np.mean([number % 7 for number in numbers]), rel=1e-3)
    assert len(charts.throughput([shown])["data"][0]["x"]) < 400


def test_non_finite_loss_leaves_a_gap_and_one_point_is_marked(tmp_path: Path) -> None:
    shown = show(write_run(tmp_path / "run", metrics=[step(1, at=1), step(2, at=2, loss=float("nan")), step(3, at=3)]))
    assert charts.loss([shown])["data"][0]["y"] == [0.5, None, 0.5]
    short = show(write_run(tmp_path / "short", metrics=[step(1, at=1)]))
    assert charts.loss([short])["data"][0]["mode"] == "lines+markers"  # a line of one point is invisible


def test_run_without_data_is_shown(tmp_path: Path) -> None:
    empty = show(write_run(tmp_path / "empty", state=state("starting", at=100)))
    for shown in ([], [empty], [empty, empty]):
        for part in page.PARTS:
            getattr(page, part)(shown)
        for graph in page.GRAPHS:
            layout = getattr(charts, graph)(shown)["layout"]
            assert (layout["annotations"][0]["text"], layout["xaxis"]["visible"]) == ("no data yet", False)


@pytest.mark.parametrize(
    ("kind", "report", "verdict"),
    [
        ("running", {}, "not evaluated on valid yet."),
        ("done", {"metrics": {"test": {"ndcg@10": 0.2}}}, "ndcg@10 on test is 0.2000; no baseline was measured."),
        (
            "done",
            {
                "metrics": {"test": {"ndcg@10": 0.2, "ndcg@10_se": 0.01, "queries": 1200}},
                "baselines": {
                    "metrics": {
                        "test": {"popularity": {"ndcg@10": 0.1}, "item_cosine": {"ndcg@10": 0.15, "ndcg@10_se": 0.02}}
                    }
                },
            },
            "ndcg@10 on test is 0.2000 ± 0.0100 (1,200 queries, task repeat), above item cosine (0.1500 ± 0.0200), the "
            "best of 2 baselines.",
        ),
        (
            "done",
            {
                "metrics": {"test": {"ndcg@10": 0.2}},
                "baselines": {"shortfall": "it is below als: try more", "metrics": {"test": {"als": {"ndcg@10": 0.3}}}},
            },
            "it is below als: try more.",
        ),
    ],
)
def test_evaluation_is_a_sentence(tmp_path: Path, kind: str, report: dict[str, Any], verdict: str) -> None:
    job = JOB.replace("ndcg@10}", "ndcg@10, task: repeat}")
    shown = show(
        write_run(tmp_path / "one", job=job if "1,200" in verdict else JOB, state=state(kind, at=99), report=report)
    )
    assert [text_of(part) for part in page.results([shown])] == [f"one: {verdict}"]


@pytest.mark.parametrize(
    ("search", "runs", "service"),
    [
        ("", ["new"], "music"),
        ("?run=../secret&run=%2Fetc", ["new"], None),
        ("?run=old&run=none&run=new&run=old&service=books", ["old", "new"], "books"),
        ("?run=old&service=none", ["old"], None),
        ("?service=books&service=music", ["new"], "books"),
        ("?run=%ff&service=%ff", ["new"], None),
    ],
)
def test_address_selects_only_what_exists(search: str, runs: list[str], service: str | None) -> None:
    selection = app._select(search, ["new", "old"], ["music", "books"])
    assert (selection.runs, selection.service) == (runs, service)


def test_policy_forbids_other_hosts_and_scripts_other_than_those_of_dash(tmp_path: Path) -> None:
    policy = app.content_policy(app.make_app(Runs([tmp_path]), ExploredModels(), "runs"))
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert re.search(r"script-src 'self' ('sha256-[\w+/=]+' ?)+;", policy)


def test_checkpoints_restarts_and_the_last_failure_are_listed_with_what_was_lost(tmp_path: Path) -> None:
    failed = {"role": "server-0", "host": "b2", "cause": "ended with exit code 1", "error": "<b>ValueError</b>: no"}
    lost = {"generation": 1, "ends_run": True, "step": 40, "lost_steps": 0, "log": "logs/server-0.log"}
    restart = {"event": "restart", "generation": 2}
    processes = [
        {
            "time": BEGAN + 1,
            **restart,
            "cause": "server-0 was killed",
            "step": 0,
            "lost_steps": 333,
            "lost_seconds": 5.6,
        },
        {"time": BEGAN + 2, **restart, "cause": "worker-1 was killed", "step": 499, "lost_steps": 1},
        {"time": BEGAN + 3, **restart, "cause": "no sign of progress", "step": 500},
        {"time": BEGAN + 4, "event": "failure", **failed, **lost},
    ]
    unsaved = {"time": BEGAN, "event": "checkpoint_failed", "step": 8, "message": "disk full"}
    shown = show(write_run(tmp_path / "run", metrics=[unsaved], state=state("failed", at=90), processes=processes))
    assert [row[1:] for row in rows_of(page.events([shown])[0])] == [
        [
            "failure",
            "40",
            "server-0 on b2 ended with exit code 1; <b>ValueError</b>: no; lost no step; it ended the run; "
            "log: logs/server-0.log",
        ],
        ["restart", "500", "no sign of progress"],
        ["restart", "500", "worker-1 was killed; lost 1 step since the last checkpoint"],
        ["restart", "333", "server-0 was killed; lost 333 steps since the beginning, 5.6 s"],
        ["not saved", "8", "disk full"],
    ]


def test_run_that_stopped_early_says_so_and_shows_its_best_metric(tmp_path: Path) -> None:
    events = [step(10, at=10), epoch(1, at=10, step=10, quality=0.31), epoch(2, at=20, step=20, quality=0.29)]
    report = {"metrics": {"valid": {"ndcg@10": 0.31, "queries": 3}}, "stopped_early": True}
    shown = show(write_run(tmp_path / "run", metrics=events, state=state("done", at=30), report=report))
    assert "stopped early: no gain in ndcg@10 beyond its standard error" in text_of(page.head([shown]))
    tiles = {text_of(tile.children[0]): text_of(tile.children[1]) for tile in page.tiles([shown]).children}
    assert tiles["ndcg@10"] == "0.3100 best, in epoch 1; last 0.2900"
    resumed = show(write_run(tmp_path / "again", metrics=events, state=state("running", at=99), report=report))
    assert "stopped early" not in text_of(page.head([resumed]))


def test_figures_have_readable_units() -> None:
    none = "\N{EN DASH}"
    assert [formatting.size(each) for each in (None, 12, 15_076_311, 2e9)] == [none, "12 B", "15.1 MB", "2 GB"]
    assert [formatting.count(each) for each in (5.655, 9762, 1_234_567, 4e9)] == ["5.7", "9,762", "1.23 M", "4 G"]
    assert [formatting.duration(each) for each in (0.42, 59.6, 250, 12_000)] == [
        "0.4 s",
        "60 s",
        "4 min 10 s",
        "3 h 20 min",
    ]
    assert [formatting.share(each) for each in (0.0, 0.031, 0.42)] == ["0 %", "3.1 %", "42 %"]
