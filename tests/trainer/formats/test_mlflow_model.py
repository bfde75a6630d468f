"""Models of MLflow, in a folder and registered on a real server: what they answer, and what is rejected."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from builders import ITEM, QUERY
from command_here import crossfade_here, rejected_here
from mlflow_server import MlflowServer, running_mlflow
from object_store import free_ports
from running_command import succeeded
from written_runs import CUSTOMER_IDS, WrittenRun, write_run

import crossfade

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with running_mlflow(tmp_path_factory.mktemp("mlflow") / "server") as server:
        yield server


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WrittenRun]:
    with warnings.catch_warnings(action="ignore"):  # of MLflow about its own types
        import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # which an export sets
    yield write_run(tmp_path / "made")
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


def hidden_run(run: WrittenRun) -> None:
    """Move the run and its dataset away: a model needs neither."""
    run.path.rename(run.path.with_name("gone"))
    run.data.rename(run.data.with_name("elsewhere"))


def predicted(uri: str, **params: Any) -> pd.DataFrame:
    import mlflow.pyfunc

    with warnings.catch_warnings(action="ignore"):
        found: pd.DataFrame = mlflow.pyfunc.load_model(uri).predict(
            pd.DataFrame({QUERY: CUSTOMER_IDS}), params=params or None
        )
    return found


def test_registered_model_answers_what_recommend_does(
    server: MlflowServer, run: WrittenRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = crossfade.load(run.path, frame="pandas")
    expected = [model.recommend(CUSTOMER_IDS), model.recommend(CUSTOMER_IDS, k=3)]
    for version in (1, 2):
        push = ("--to", "mlflow", "--push", server.uri, "--name", "music")
        result = succeeded(crossfade_here("export", run.path, *push, cwd=tmp_path))
        assert [line.split("  ")[-1] for line in result.stdout.splitlines()] == [f"models:/music/{version}"] * 2
    hidden_run(run)
    pd.testing.assert_frame_equal(predicted("models:/music/2"), expected[0])
    pd.testing.assert_frame_equal(predicted("models:/music/1", k=3), expected[1])


def test_folder_is_a_model_of_mlflow(run: WrittenRun, tmp_path: Path) -> None:
    expected = crossfade.load(run.path, frame="pandas").recommend(CUSTOMER_IDS)
    succeeded(crossfade_here("export", run.path, "--to", "mlflow", "--out", tmp_path / "out"))
    requirements = (tmp_path / "out" / "requirements.txt").read_text().split()
    assert {f"crossfade=={crossfade.__version__}", "pandas"} < set(requirements)
    hidden_run(run)
    pd.testing.assert_frame_equal(predicted(str(tmp_path / "out")), expected)


def test_invalid_pushes_are_rejected(run: WrittenRun) -> None:
    command = ("export", run.path, "--to", "mlflow")
    rejected_here("expected a tracking URI without credentials", *command, "--push")
    message = rejected_here("--push: expected a tracking URI", *command, "--push", "http://dj:hunter2@127.0.0.1:9")
    assert "hunter2" not in message
    rejected_here("mlflow needs all tables", *command, "--push", "--entity", ITEM)


def test_server_that_is_away_is_reported(run: WrittenRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    absent = f"http://127.0.0.1:{free_ports(1)[0]}"
    result = crossfade_here("export", run.path, "--to", "mlflow", "--push", absent)
    assert result.returncode == 1
    assert f"--push {absent}: cannot be reached: Connection refused" in result.stderr
