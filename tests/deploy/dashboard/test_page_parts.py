"""Graphs and tables of the page, built from synthetic runs without a browser."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import BEGAN, JOB, epoch, load, sample, state, step, totals, training_from, write_run

from crossfade.deploy.dashboard import app, charts, page, run_reader
from crossfade.deploy.dashboard.charts import COLORS, RunView
from crossfade.deploy.dashboard.explored_models import ExploredModels
from crossfade.deploy.dashboard.figures import reason_for_no_data
from crossfade.deploy.dashboard.page import GRAPHS
from crossfade.deploy.dashboard.run_reader import RunReader, Runs
from crossfade.deploy.dashboard.summary import summarize


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_reader, "REFRESH_SECONDS", 0.0)


def show(folder: Path, *, name: str = "", at: float = 100.0) -> RunView:
    run = RunReader(folder, name or folder.name)
    run.refresh()
    return RunView(run, summarize(run, BEGAN + at), COLORS[0])


@pytest.fixture
def resumed(tmp_path: Path) -> RunView:
    """Return a run that trained to step 8, resumed from step 4, and is at step 10."""
    events = [training_from(0, at=0), *(step(number, at=number, loss=9.0) for number in range(1, 9))]
    events += [epoch(1, at=8, step=8, quality=0.9), training_from(4, at=50)]
    events += [step(number, at=50 + number, loss=1.0) for number in range(5, 11)]
    events += [epoch(1, at=59, step=8, quality=0.2), totals(10, at=60, pushed=1000, dense=50_000)]
    worker = load(steps=6, phase_seconds={"pull": 0.6, "gradients": 1.2, "evaluate": 3.0})
    samples = [sample(at=at, server_0=load(updated=at * 10), worker_0=worker) for at in (51, 56, 61)]
    processes = {"server_0": ("running", load(updated=610)), "worker_0": ("running", worker)}
    folder = write_run(
        tmp_path / "run", metrics=events, processes=samples, state=state("running", at=61, generation=2, **processes)
    )
    return show(folder)


def test_repeated_steps_are_shown_once_with_their_last_values(resumed: RunView) -> None:
    steps, epochs = charts.loss([resumed], "step")["data"]
    assert steps["x"] == list(range(1, 11))
    assert steps["y"] == [9.0] * 4 + [1.0] * 6
    assert (epochs["x"], epochs["y"]) == ([8.0], [0.4])
    assert charts.eval_metric([resumed], "step")["data"][0]["y"] == [0.2]
    by_time = charts.loss([resumed], "time")["data"][0]["x"]
    assert by_time == pytest.approx([*(np.arange(1, 5) / 60), *(np.arange(55, 61) / 60)])


def test_phases_are_averaged_over_the_steps_of_the_process(resumed: RunView) -> None:
    bars = {bar["name"]: bar["x"] for bar in charts.phases([resumed])["data"]}
    assert bars == {
        "pull": pytest.approx([100.0]),
        "gradients": pytest.approx([200.0]),
        "evaluate": pytest.approx([500.0]),
    }


def test_traffic_chart_compares_bytes_with_dense_gradients(resumed: RunView) -> None:
    (bars,) = charts.traffic([resumed])["data"]
    assert dict(zip(bars["y"], bars["x"], strict=True)) == {"pulled": 1000, "pushed": 1000, "pushed if dense": 50_000}


def test_updates_chart_shows_rates_of_servers_only(resumed: RunView) -> None:
    (line,) = charts.updates([resumed])["data"]
    assert (line["name"], line["y"]) == ("server-0", pytest.approx([10.0, 10.0]))
    assert {line["name"] for line in charts.memory([resumed])["data"]} == {"server-0", "worker-0"}


@pytest.mark.slow
def test_long_run_is_thinned_to_few_points_with_the_same_mean(tmp_path: Path) -> None:
    numbers = range(1, 10_001)
    events = [training_from(0, at=0), *(step(number, at=number, loss=number % 7, steps=10_000) for number in numbers)]
    shown = show(write_run(tmp_path / "run", metrics=events))
    line = charts.loss([shown], "step")["data"][0]
    assert len(line["x"]) == len(line["y"]) == 400
    assert np.mean(line["y"]) == pytest.approx(np.mean([number % 7 for number in numbers]), rel=1e-3)
    assert len(charts.throughput([shown], "step")["data"][0]["x"]) < 400


def test_non_finite_loss_leaves_a_gap(tmp_path: Path) -> None:
    shown = show(write_run(tmp_path / "run", metrics=[step(1, at=1), step(2, at=2, loss=float("nan")), step(3, at=3)]))
    assert charts.loss([shown], "step")["data"][0]["y"] == [0.5, None, 0.5]


def test_run_without_data_is_shown(tmp_path: Path) -> None:
    empty = show(write_run(tmp_path / "empty", state=state("starting", at=100)))
    for axis in ("step", "time"):
        app._figures([empty], axis)  # type: ignore[arg-type]
    for shown in ([], [empty], [empty, empty]):
        for part in app._PARTS:
            getattr(page, part)(shown)
        figures = app._figures(shown, "step")
        assert [reason_for_no_data(figure) for figure in figures].count(None) == 0
        for graph in GRAPHS:
            page.describe_chart(graph, shown, {"data": [], "layout": {}})


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


def test_evaluation_chart_has_runs_and_each_baseline_once_with_errors(tmp_path: Path) -> None:
    baselines = {"metrics": {"test": {"item_cosine": {"ndcg@10": 0.15, "ndcg@10_se": 0.02}}}, "notes": ["a limit"]}
    metrics = ({"test": {"ndcg@10": 0.2, "ndcg@10_se": 0.01}}, {"test": {"ndcg@10": 0.1}}, {"valid": {"ndcg@10": 0.9}})
    runs = [
        show(write_run(tmp_path / name, state=state("done", at=1), report={"metrics": found, "baselines": baselines}))
        for name, found in zip(("one", "other", "third"), metrics, strict=True)
    ]
    (bars,) = charts.evaluation(runs)["data"]
    assert [name for name, _ in bars["customdata"]] == ["one", "other", "by item cosine"]
    assert (bars["x"], bars["error_x"]["array"]) == ([0.2, 0.1, 0.15], [0.01, 0.0, 0.02])
    assert text_of(page.results(runs)[-1]) == "a limit"


def test_trials_of_a_study_are_together_below_its_best_value(tmp_path: Path) -> None:
    names = ("plays", "search/trial-0001", "one/two", "search/trial-0000", "quick/trial-0007")
    for number, name in enumerate(names):
        write_run(tmp_path / name, metrics=[epoch(1, at=8, step=8, quality=number / 10)], state=state("done", at=9))
    runs = {run.name: run for run in Runs([tmp_path]).readers()}
    boxes = page.run_boxes([show(runs[name].path, name=name).summary for name in names], ["search/trial-0000"])
    ids = [box.id["run"] if hasattr(box, "id") else [each.id["run"] for each in box.children[1:]] for box in boxes]
    assert ids == ["plays", ["search/trial-0001", "search/trial-0000"], "one/two", ["quick/trial-0007"]]
    assert text_of(boxes[1].children[0]) == "search: 2 trials · ndcg@10 0.3000"
    assert [boxes[1].open, boxes[3].open] == [True, False]


def test_differences_between_jobs_are_listed_by_key(tmp_path: Path) -> None:
    job = "name: plays\ntrain: {{epochs: {}, seed: 1}}\noptimizer: {}\n"
    one = show(write_run(tmp_path / "one", job=job.format(4, "{kind: adam}")))
    other = show(write_run(tmp_path / "other", job=job.format(5, "{kind: adam, learning_rate: 0.1}")))
    rows = _rows(page._differences([one, other]))
    assert rows == [["train.epochs", "4", "5"], ["optimizer.learning_rate", "", "0.1"]]
    assert page._differences([one, one]).children == "The jobs are identical."


def _rows(region: Any) -> list[list[str]]:
    """Return the cells of a table's body."""
    _, _, body = region.children.children
    return [[cell.children for cell in row.children] for row in body.children]


def test_address_selects_only_existing_runs(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "plays", state=state("done", at=1))
    client = app.make_app(Runs([tmp_path / "runs"]), ExploredModels(), "runs").server.test_client()
    outputs = [
        ("runs", "children"),
        ("listed", "data"),
        ("selected", "data"),
        ("no-runs", "hidden"),
        ("missing-runs", "children"),
        ("location", "search"),
    ]
    search = f"?run={tmp_path}/secret&run=../secret&run=plays"
    states = [("location", "search", search), ("listed", "data", None)]
    request = {
        "output": f"..{'...'.join(f'{part}.{what}' for part, what in outputs)}..",
        "outputs": [{"id": part, "property": what} for part, what in outputs],
        "inputs": [
            {"id": "tick", "property": "n_intervals"},
            {"id": "selected", "property": "data"},
            {"id": "service", "property": "data", "value": "music"},
        ],
        "changedPropIds": [],
        "state": [{"id": part, "property": what, "value": value} for part, what, value in states],
    }
    response = client.post("/_dash-update-component", json=request)
    assert response.status_code == 200
    assert response.json["response"]["selected"]["data"] == ["plays"]
    assert response.json["response"]["location"]["search"] == "?run=plays&service=music"
    missing = f"There is no run '{tmp_path}/secret', '../secret'. The list of runs has all there are."
    assert response.json["response"]["missing-runs"]["children"] == missing


def test_policy_forbids_other_hosts_and_scripts_other_than_those_of_dash(tmp_path: Path) -> None:
    policy = app.content_policy(app.make_app(Runs([tmp_path]), ExploredModels(), "runs"))
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert re.search(r"script-src 'self' ('sha256-[\w+/=]+' ?)+;", policy)


def text_of(part: Any) -> str:
    """Return all text in a part of the page."""
    if isinstance(part, list | tuple):
        return " ".join(map(text_of, part))
    return text_of(part.children) if hasattr(part, "children") else str(part or "")


def test_restart_says_how_much_was_lost(tmp_path: Path) -> None:
    restarts = [
        {"generation": 2, "cause": "server-0 was killed", "step": 333, "lost_steps": 333, "lost_seconds": 5.6},
        {"generation": 3, "cause": "worker-1 was killed", "step": 500, "lost_steps": 1, "lost_seconds": None},
        {"generation": 4, "cause": "no sign of progress", "step": 500},
    ]
    shown = show(write_run(tmp_path / "run", state=state("done", at=90), restarts=restarts))
    rows = [row[3] for row in _rows(page.events([shown])[0])]
    assert sorted(rows) == [
        "no sign of progress",
        "server-0 was killed; lost 333 steps since the beginning, 5.6 s",
        "worker-1 was killed; lost 1 step since the last checkpoint",
    ]


def test_last_failure_is_a_table_above_that_of_checkpoints_and_restarts(tmp_path: Path) -> None:
    failed = {"role": "server-0", "host": "b2", "cause": "ended with exit code 1", "error": "<b>ValueError</b>: no"}
    lost = {"generation": 1, "ends_run": True, "step": 40, "lost_steps": 0, "log": "logs/server-0.log"}
    record = {"time": BEGAN, "event": "failure", **failed, **lost}
    shown = show(write_run(tmp_path / "run", state=state("failed", at=90), processes=[record]))
    failure, _ = page.events([shown])
    details = "ended with exit code 1; <b>ValueError</b>: no; lost no step; it ended the run; log: logs/server-0.log"
    [[at, *cells]] = _rows(failure)
    assert at.startswith("2023-11-1")
    assert cells == ["server-0", "b2", details]
    assert failure.children.children[0].children == "Last failure of run"


def test_run_that_stopped_early_says_so_and_shows_its_best_metric(tmp_path: Path) -> None:
    events = [step(10, at=10), epoch(1, at=10, step=10, quality=0.31), epoch(2, at=20, step=20, quality=0.29)]
    report = {"metrics": {"valid": {"ndcg@10": 0.31, "queries": 3}}, "stopped_early": True}
    shown = show(write_run(tmp_path / "run", metrics=events, state=state("done", at=30), report=report))
    assert "stopped early: no gain in ndcg@10 beyond its standard error" in text_of(page.head([shown]))
    tiles = {text_of(tile.children[0]): text_of(tile.children[1]) for tile in page.tiles([shown]).children}
    assert tiles["ndcg@10"] == "0.3100 best, in epoch 1; last 0.2900"
    resumed = show(write_run(tmp_path / "again", metrics=events, state=state("running", at=99), report=report))
    assert "stopped early" not in text_of(page.head([resumed]))


def test_advice_is_shown_once(tmp_path: Path) -> None:
    report = {"advice": "the best epoch is the last, 4: train longer, with train.epochs=8"}
    shown = show(write_run(tmp_path / "run", metrics=[step(9, at=9)], state=state("done", at=30), report=report))
    assert text_of(page.head([shown])).count(report["advice"]) == 1
    assert page.alerts([shown]) is None


def test_graph_without_data_says_why(resumed: RunView, tmp_path: Path) -> None:
    short = show(write_run(tmp_path / "short", metrics=[step(1, at=1)], state=state("done", at=1)))
    assert reason_for_no_data(charts.loss([short], "step")) is None
    assert charts.loss([short], "step")["data"][0]["mode"] == "lines+markers"  # a line of one point is invisible
    figure = charts.throughput([short], "step")
    reason = "A rate needs two steps in the log, which has one a second."
    assert reason_for_no_data(figure) == reason
    assert figure["layout"]["xaxis"]["visible"] is figure["layout"]["yaxis"]["visible"] is False
    assert page.describe_chart("throughput", [short], figure) == f"Throughput. {reason}"
    assert reason_for_no_data(charts.traffic([short])) is not None
    assert reason_for_no_data(charts.traffic([short, resumed])) is None


def test_long_names_are_shortened_in_graphs_and_stay_distinct(resumed: RunView, tmp_path: Path) -> None:
    folders = [tmp_path / f"{'long-' * 30}{end}" for end in ("a", "b")]
    events = [step(1, at=1), totals(1, at=2, pushed=1000, dense=50_000)]
    shown = [show(write_run(folder, metrics=events)) for folder in folders]
    for figure in (charts.phases(shown), charts.traffic(shown)):
        axis = figure["layout"]["yaxis"]
        assert len(set(axis["tickvals"])) == len(axis["ticktext"]) == len(set(figure["data"][0]["y"]))
        assert all("…" in text and len(text) < 45 for text in axis["ticktext"])
    assert charts.loss(shown, "step")["data"][1]["name"] == "long-long-l…-long-long-a"
    assert charts.loss([resumed], "step")["data"][1]["name"] == "run"
