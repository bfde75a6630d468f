"""Runs on a real tracking server of MLflow: complete, resumed, and while the server is away or does not answer."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from mlflow_server import MlflowServer, running_mlflow
from object_store import free_ports
from paced_training import paced
from run_results import report_of
from running_command import messages, records, succeeded

from crossfade.trainer.tracking import tracker

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with running_mlflow(tmp_path_factory.mktemp("mlflow") / "server") as server:
        yield server


@pytest.fixture
def job(tmp_path: Path, server: MlflowServer, request: pytest.FixtureRequest) -> Path:
    """Write a job whose experiment has the name of the test."""
    tracking = {"mlflow": server.uri, "experiment": request.node.name}
    return write_job(tmp_path / "job.yaml", write_planted(tmp_path / "data"), tracking=tracking)


def test_finished_run_has_parameters_metrics_and_artifacts(
    job: Path, tmp_path: Path, server: MlflowServer, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "somebody")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cret-w0rd")
    succeeded(crossfade_here("train", job, "--run-dir", "run", cwd=tmp_path))
    run, report = server.run(request.node.name), report_of(tmp_path / "run")
    assert run.info.status == "FINISHED"
    assert run.info.run_name == f"planted-{report['run']}"
    assert run.data.tags["crossfade.run"] == report["run"]
    assert run.data.params["model.dim"] == "8"
    assert run.data.params["evaluate.k"] == "[5, 10]"
    assert run.data.params["train.patience"] == "null"
    epochs = [event for event in records(tmp_path / "run") if event["event"] == "epoch"]
    expected = [(event["step"], event["valid"]["ndcg@10"]) for event in epochs]
    assert server.history(run.info.run_id, "valid/ndcg_at_10") == expected
    assert server.history(run.info.run_id, "train/loss")[0][0] == 1
    assert run.data.metrics["train/learning_rate"] == 0.1
    assert run.data.metrics["report/test/ndcg_at_10"] == report["metrics"]["test"]["ndcg@10"]
    assert run.data.metrics["report/examples_per_second"] == report["examples_per_second"]
    saved = server.artifact(run.info.run_id, "report.json", tmp_path)
    assert json.loads(saved.read_text()) == report
    assert "learning_rate: 0.1" in server.artifact(run.info.run_id, "job.yaml", tmp_path).read_text()
    files = [server.database, *(path for path in (tmp_path / "run").rglob("*") if path.is_file())]
    assert [path for path in files if b"s3cret-w0rd" in path.read_bytes()] == []


def test_resumed_run_continues_the_same_mlflow_run(
    job: Path, tmp_path: Path, server: MlflowServer, request: pytest.FixtureRequest
) -> None:
    succeeded(crossfade_here("train", job, "--run-dir", "run", "--set", "train.epochs=1", cwd=tmp_path))
    first = server.run(request.node.name)
    resumed = crossfade_here("train", job, "--run-dir", "run", "--resume", "--set", "train.epochs=3", cwd=tmp_path)
    succeeded(resumed)
    assert "tracking" not in resumed.stderr
    run = server.run(request.node.name)
    assert run.info.run_id == first.info.run_id
    assert run.info.status == "FINISHED"
    assert [value for _, value in server.history(run.info.run_id, "train/epoch")] == [1.0, 2.0, 3.0]
    assert "epochs: 3" in server.artifact(run.info.run_id, "job.yaml", tmp_path).read_text()


def test_frozen_server_delays_no_step_and_gets_everything_later(
    job: Path, tmp_path: Path, server: MlflowServer, request: pytest.FixtureRequest
) -> None:
    with paced("train", job, run_dir=tmp_path / "run", variables={"MLFLOW_HTTP_REQUEST_TIMEOUT": "1"}) as training:
        server.freeze()
        try:
            training.wait_for("epoch")
        finally:
            server.thaw()
        result = succeeded(training.finish())
    assert [line for line in messages(result.stderr) if "were not sent" in line] == []
    run = server.run(request.node.name)
    epochs = [event for event in records(tmp_path / "run") if event["event"] == "epoch"]
    assert [step for step, _ in server.history(run.info.run_id, "train/epoch")] == [event["step"] for event in epochs]
    assert run.info.status == "FINISHED"


def test_training_without_a_server_counts_what_is_lost(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker, "END_SECONDS", 1.5)
    absent = f"http://127.0.0.1:{free_ports(1)[0]}"
    result = crossfade_here("train", job, "--run-dir", "run", "--set", f"tracking.mlflow={absent}", cwd=tmp_path)
    succeeded(result)
    assert report_of(tmp_path / "run")["epochs"] == 2
    first, last = [line for line in messages(result.stderr) if "tracking.mlflow" in line]
    assert first.endswith(": cannot be reached: Connection refused; training goes on, and it is tried again")
    # The first step and two epochs, at least.
    lost = re.search(rf"tracking\.mlflow: {absent}: (\d+) of (\d+) records were not sent, and not the end of", last)
    assert lost is not None, last
    assert int(lost[1]) == int(lost[2]) >= 3


def test_rejected_run_is_reported_once_and_trains_without(
    job: Path, tmp_path: Path, server: MlflowServer, request: pytest.FixtureRequest
) -> None:
    server.delete_experiment(request.node.name)
    result = succeeded(crossfade_here("train", job, "--run-dir", "run", cwd=tmp_path))
    rejected, lost = [line for line in messages(result.stderr) if "tracking.mlflow" in line]
    assert rejected.endswith("training goes on without it")
    assert "records were not sent, and not the end of the run" in lost
    assert report_of(tmp_path / "run")["epochs"] == 2
