"""Graphs and tables of the page, built from synthetic runs without a browser."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_text import rows_of, text_of
from run_folders import BEGAN, JOB, state, step, training_from, write_run

from crossfade.deploy.dashboard import app, charts, page
from crossfade.deploy.dashboard.charts import COLORS, RunView
from crossfade.deploy.dashboard.explored_models import ExploredModels
from crossfade.deploy.dashboard.run_reader import RunReader, Runs
from crossfade.deploy.dashboard.summary import summarize


def show(folder: Path, *, at: float = 100.0) -> RunView:
    run = RunReader(folder, folder.name)
    run.refresh()
    return RunView(run, summarize(run, BEGAN + at), COLORS[0])


@pytest.mark.slow
def test_long_run_is_thinned_to_few_points_with_the_same_mean(tmp_path: Path) -> None:
    numbers = range(1, 10_001)
    events = [training_from(0, at=0), *(step(number, at=number, loss=number % 7, steps=10_000) for number in numbers)]
    shown = show(write_run(tmp_path / "run", metrics=events))
    line = charts.loss([shown])["data"][0]
    assert len(line["x"]) == len(line["y"]) == 400
    assert np.mean(line["y"]) == pytest.approx(np.mean([number % 7 for number in numbers]), rel=1e-3)
    assert len(charts.throughput([shown])["data"][0]["x"]) < 400


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
