"""Models of MLflow, in a folder and registered on a real server: what they answer, and what they reject."""

import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import yaml
from builders import ITEM, QUERY
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from error_table import documented
from mlflow_server import MlflowServer
from object_store import free_ports
from running_command import crossfade as process
from running_command import succeeded
from written_runs import CUSTOMER_IDS, WrittenRun, write_run

import crossfade
from crossfade.base.errors import InputError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of MLflow about its own types
    import mlflow.pyfunc
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("mlflow") / "server")
    server.start()
    yield server
    server.stop()


def customers(*ids: object) -> pd.DataFrame:
    return pd.DataFrame({QUERY: list(ids)})


def recommended(run: Path, ids: list[str], k: int = 10) -> pd.DataFrame:
    """Return what the Python API recommends."""
    found: pd.DataFrame = crossfade.load(run, frame="pandas").recommend(ids, k=k)
    return found


def test_folder_answers_what_recommend_does(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run, out = write_run(tmp_path / "made").path, tmp_path / "model"
    # As a process, from which the command line hides packages that other commands do not need.
    succeeded(process(*exported(run), "--out", out, cwd=tmp_path))
    run.rename(tmp_path / "gone")
    (tmp_path / "made/data").rename(tmp_path / "made/elsewhere")
    model = mlflow.pyfunc.load_model(str(out))
    (tmp_path / "gone").rename(run)
    (tmp_path / "made/elsewhere").rename(tmp_path / "made/data")
    every = model.predict(customers(*CUSTOMER_IDS))
    pd.testing.assert_frame_equal(every, recommended(run, CUSTOMER_IDS))
    some = model.predict(customers(CUSTOMER_IDS[6], CUSTOMER_IDS[1], CUSTOMER_IDS[6]), params={"k": 3})
    pd.testing.assert_frame_equal(some, recommended(run, [CUSTOMER_IDS[6], CUSTOMER_IDS[1]], 3))
    known = model.predict(customers("nobody", CUSTOMER_IDS[2]))
    assert set(known[QUERY]) == {CUSTOMER_IDS[2]}
    assert "1 of 2 of customer have no trained vector, such as nobody; left out" in caplog.text
    assert model.predict(customers().astype(str)).columns.tolist() == every.columns.tolist()
    signature = model.metadata.signature
    assert [(column.name, column.type.name) for column in signature.inputs] == [(QUERY, "string")]
    assert [column.name for column in signature.outputs] == [QUERY, "rank", ITEM, "score", f"{ITEM}_name"]
    requirements = (out / "requirements.txt").read_text().split()
    assert {f"crossfade=={crossfade.__version__}", "pandas"} < set(requirements)
    # A second export replaces the first, and no other files.
    succeeded(crossfade_here("export", run, "--to", "mlflow", "--out", out, "--overwrite"))


def test_invalid_input_is_rejected(tmp_path: Path) -> None:
    run, out = write_run(tmp_path / "made").path, tmp_path / "model"
    succeeded(crossfade_here("export", run, "--to", "mlflow", "--out", out))
    model = mlflow.pyfunc.load_model(str(out))
    with pytest.raises(MlflowException, match=f"missing inputs \\['{QUERY}'\\]"):
        model.predict(pd.DataFrame({"user": ["2"]}))
    for cause, frame, params in (
        ("an empty ID for a model of MLflow", customers(CUSTOMER_IDS[0], None), {}),
        ("unknown IDs for a model of MLflow", customers("nobody"), {}),
        ("an invalid k for a model of MLflow", customers(CUSTOMER_IDS[0]), {"k": 0}),
    ):
        with pytest.raises(InputError) as found:
            model.predict(frame, params=params)
        documented(cause, str(found.value))
    rejected("--entity of a model of MLflow", *exported(run), "--out", tmp_path / "out", "--entity", ITEM)


def exported(run: Path) -> tuple[object, ...]:
    return "export", run, "--to", "mlflow"


def rejected(cause: str, *arguments: object, exit_code: int = 2) -> None:
    result = crossfade_here(*arguments)
    line = result.stderr.splitlines()[-1].removeprefix("crossfade: error: ")
    assert result.returncode == exit_code
    documented(cause, line, exit_code)


def test_model_is_registered_in_the_run_of_its_training(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = {"mlflow": server.uri, "experiment": "music"}
    job = write_job(tmp_path / "job.yaml", write_planted(tmp_path / "data"), tracking=tracking)
    succeeded(crossfade_here("train", job, "--run-dir", "run", cwd=tmp_path))
    trained = server.run("music")
    for version in (1, 2):
        result = succeeded(crossfade_here("export", tmp_path / "run", "--to", "mlflow", "--push", "models:/music"))
        assert f"models:/music/{version}" in result.stdout
    client = MlflowClient(tracking_uri=server.uri)
    found = client.get_model_version("music", "2")
    assert found.run_id == trained.info.run_id
    assert client.get_run(found.run_id).info.end_time == trained.info.end_time
    assert client.get_model_version("music", "1").source != found.source, "versions do not share files"
    path = mlflow.artifacts.download_artifacts(artifact_uri=found.source, tracking_uri=server.uri)
    described = yaml.safe_load((Path(path) / "MLmodel").read_text())
    assert described["run_id"] == trained.info.run_id
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    model = mlflow.pyfunc.load_model("models:/music/2")
    ids = crossfade.load(tmp_path / "run").ids(QUERY)[:3]
    pd.testing.assert_frame_equal(model.predict(customers(*ids)), recommended(tmp_path / "run", ids))


def test_model_of_a_run_that_was_not_tracked_gets_a_run(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: WrittenRun = write_run(tmp_path / "made")
    rejected("--push to MLflow without a server", *exported(run.path), "--push", "models:/other")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri.replace("://", "://dj:hunter2@"))
    rejected("--push to MLflow with credentials in the address", *exported(run.path), "--push", "models:/other")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    rejected("--push to MLflow of another name", *exported(run.path), "--push", "models:/other/1")
    result = succeeded(crossfade_here("export", run.path, "--to", "mlflow", "--push", "models:/other"))
    assert re.search(r"models:/other/1\n", result.stdout)
    made = server.run("crossfade")
    assert (made.info.run_name, made.info.status) == ("planted", "FINISHED")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_ports(1)[0]}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    rejected("--push to MLflow that does not answer", *exported(run.path), "--push", "models:/other", exit_code=1)
