"""The figures and tables of the page, from made-up runs: no browser."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import BEGAN, epoch, load, sample, state, step, totals, training_from, write_run

from deploy.dashboard import app, charts, page, run_reader
from deploy.dashboard.charts import COLORS, RunView
from deploy.dashboard.layout import GRAPHS
from deploy.dashboard.run_reader import RunReader
from deploy.dashboard.runs import Runs
from deploy.dashboard.summary import summarize


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_reader, "REFRESH_SECONDS", 0.0)


def show(folder: Path, *, color: str = COLORS[0], at: float = 100.0) -> RunView:
    run = RunReader(folder, folder.name)
    run.refresh()
    return RunView(run, summarize(run, BEGAN + at), color)


@pytest.fixture
def taken_up(tmp_path: Path) -> RunView:
    """A run that trained to step 8, went on from step 4, and stands at 10."""
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


def test_by_step_each_step_is_shown_once_as_it_came_out_the_last_time(taken_up: RunView) -> None:
    steps, epochs = charts.loss([taken_up], "step")["data"]
    assert steps["x"] == list(range(1, 11))
    assert steps["y"] == [9.0] * 4 + [1.0] * 6
    assert (epochs["x"], epochs["y"]) == ([8.0], [0.4])
    assert charts.eval_metric([taken_up], "step")["data"][0]["y"] == [0.2]
    by_time = charts.loss([taken_up], "time")["data"][0]["x"]
    assert by_time == pytest.approx([*(np.arange(1, 5) / 60), *(np.arange(55, 61) / 60)])


def test_phases_are_those_of_the_steps_that_the_process_took(taken_up: RunView) -> None:
    bars = {bar["name"]: bar["x"] for bar in charts.phases([taken_up])["data"]}
    assert bars == {
        "pull": pytest.approx([100.0]),
        "gradients": pytest.approx([200.0]),
        "evaluate": pytest.approx([500.0]),
    }


def test_bytes_stand_beside_what_dense_gradients_would_have_been(taken_up: RunView) -> None:
    (bars,) = charts.traffic([taken_up])["data"]
    assert dict(zip(bars["y"], bars["x"], strict=True)) == {"pulled": 1000, "pushed": 1000, "pushed if dense": 50_000}


def test_rows_updated_are_those_of_a_second_and_of_servers_alone(taken_up: RunView) -> None:
    (line,) = charts.updates([taken_up])["data"]
    assert (line["name"], line["y"]) == ("server-0", pytest.approx([10.0, 10.0]))
    assert {line["name"] for line in charts.memory([taken_up])["data"]} == {"server-0", "worker-0"}


def test_long_runs_are_drawn_with_few_points_that_keep_the_mean(tmp_path: Path) -> None:
    numbers = range(1, 10_001)
    events = [training_from(0, at=0), *(step(number, at=number, loss=number % 7, steps=10_000) for number in numbers)]
    shown = show(write_run(tmp_path / "run", metrics=events))
    line = charts.loss([shown], "step")["data"][0]
    assert len(line["x"]) == len(line["y"]) == 400
    assert np.mean(line["y"]) == pytest.approx(np.mean([number % 7 for number in numbers]), rel=1e-3)
    assert len(charts.throughput([shown], "step")["data"][0]["x"]) < 400


def test_a_loss_that_is_no_number_leaves_a_gap(tmp_path: Path) -> None:
    shown = show(write_run(tmp_path / "run", metrics=[step(1, at=1), step(2, at=2, loss=float("nan")), step(3, at=3)]))
    assert charts.loss([shown], "step")["data"][0]["y"] == [0.5, None, 0.5]


def test_a_run_of_which_nothing_is_known_yet_is_shown_too(tmp_path: Path) -> None:
    empty = show(write_run(tmp_path / "empty", state=state("starting", at=100)))
    for axis in ("step", "time"):
        app._figures([empty], axis)  # type: ignore[arg-type]
    for shown in ([], [empty], [empty, empty]):
        app._parts(shown)
        app._figures(shown, "step")
        for graph in GRAPHS:
            page.describe_chart(graph, shown)


def test_what_differs_between_jobs_is_found_key_by_key(tmp_path: Path) -> None:
    job = "name: plays\ntrain: {{epochs: {}, seed: 1}}\noptimizer: {}\n"
    one = show(write_run(tmp_path / "one", job=job.format(4, "{kind: adam}")))
    other = show(write_run(tmp_path / "other", job=job.format(5, "{kind: adam, learning_rate: 0.1}")))
    rows = _rows(page._differences([one, other]))
    assert rows == [["train.epochs", "4", "5"], ["optimizer.learning_rate", "", "0.1"]]
    assert page._differences([one, one]).children == "The jobs are identical."


def _rows(region: Any) -> list[list[str]]:
    """The cells of a table's body."""
    _, _, body = region.children.children
    return [[cell.children for cell in row.children] for row in body.children]


def test_the_page_asks_for_a_run_by_its_name_among_those_there_are(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "plays", state=state("done", at=1))
    client = app.make_app(Runs([tmp_path / "runs"]), "runs").server.test_client()
    outputs = [
        ("runs", "children"),
        ("listed", "data"),
        ("selected", "data"),
        ("no-runs", "hidden"),
        ("location", "search"),
    ]
    search = f"?run={tmp_path}/secret&run=../secret&run=plays"
    states = [("location", "search", search), ("listed", "data", None)]
    asked = {
        "output": f"..{'...'.join(f'{part}.{what}' for part, what in outputs)}..",
        "outputs": [{"id": part, "property": what} for part, what in outputs],
        "inputs": [{"id": "tick", "property": "n_intervals"}, {"id": "selected", "property": "data"}],
        "changedPropIds": [],
        "state": [{"id": part, "property": what, "value": value} for part, what, value in states],
    }
    answer = client.post("/_dash-update-component", json=asked)
    assert answer.status_code == 200
    assert answer.json["response"]["selected"]["data"] == ["plays"]
    assert answer.json["response"]["location"]["search"] == "?run=plays"
    assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
