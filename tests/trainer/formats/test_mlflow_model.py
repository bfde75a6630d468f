"""Models of MLflow, in a folder and registered on a real server: what they answer, and what they reject."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from builders import ITEM, QUERY
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from mlflow_server import MlflowServer
from object_store import free_ports
from running_command import succeeded
from written_runs import CUSTOMER_IDS, WrittenRun, write_run

import crossfade
from crossfade.base.errors import CrossfadeError, InputError, OptionError
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.formats.export import export
from crossfade.trainer.formats.options import ExportOptions

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
    path = Path(mlflow.artifacts.download_artifacts(artifact_uri=found.source, tracking_uri=server.uri))
    assert {f"crossfade=={crossfade.__version__}", "pandas"} < set((path / "requirements.txt").read_text().split())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    model = mlflow.pyfunc.load_model("models:/music/2")
    ids = crossfade.load(tmp_path / "run").ids(QUERY)[:3]
    pd.testing.assert_frame_equal(model.predict(customers(*ids)), recommended(tmp_path / "run", ids))


def push(run: WrittenRun | Path, place: str, **options: object) -> str:
    path = run.path if isinstance(run, WrittenRun) else run
    return export(ExportOptions.of(source=str(path), to="mlflow", push=place, **options), print, NullReporter()).target


def test_model_of_a_run_that_was_not_tracked_answers_what_recommend_does(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = write_run(tmp_path / "made")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    assert push(run, "models:/other") == "models:/other/1"
    made = server.run("crossfade")
    assert (made.info.run_name, made.info.status) == ("planted", "FINISHED")
    expected = [recommended(run.path, CUSTOMER_IDS), recommended(run.path, [CUSTOMER_IDS[6], CUSTOMER_IDS[1]], 3)]
    run.path.rename(tmp_path / "gone")
    run.data.rename(tmp_path / "elsewhere")
    model = mlflow.pyfunc.load_model("models:/other/1")
    every = model.predict(customers(*CUSTOMER_IDS))
    pd.testing.assert_frame_equal(every, expected[0])
    some = model.predict(customers(CUSTOMER_IDS[6], CUSTOMER_IDS[1], CUSTOMER_IDS[6]), params={"k": 3})
    pd.testing.assert_frame_equal(some, expected[1])
    known = model.predict(customers("nobody", CUSTOMER_IDS[2]))
    assert set(known[QUERY]) == {CUSTOMER_IDS[2]}
    assert "1 of 2 of customer have no trained vector, such as nobody; left out" in caplog.text
    assert model.predict(customers().astype(str)).columns.tolist() == every.columns.tolist()
    signature = model.metadata.signature
    assert [(column.name, column.type.name) for column in signature.inputs] == [(QUERY, "string")]
    with pytest.raises(MlflowException, match=f"missing inputs \\['{QUERY}'\\]"):
        model.predict(pd.DataFrame({"user": ["2"]}))
    for problem, frame, params in (
        ("row 1 is empty", customers(CUSTOMER_IDS[0], None), {}),
        ("none of the 1 IDs has a trained vector", customers("nobody"), {}),
        ("k 0", customers(CUSTOMER_IDS[0]), {"k": 0}),
    ):
        with pytest.raises(InputError, match=problem):
            model.predict(frame, params=params)


def test_invalid_pushes_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "made")
    with pytest.raises(OptionError, match="no tracking server of MLflow is known"):
        push(run, "models:/other")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://dj:hunter2@127.0.0.1:9")
    with pytest.raises(OptionError, match="has credentials or a query"):
        push(run, "models:/other")
    with pytest.raises(OptionError, match="expected models:/NAME, without a version"):
        push(run, "models:/other/1")
    with pytest.raises(OptionError, match="a model of MLflow needs all tables"):
        push(run, "models:/other", entity=(ITEM,))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_ports(1)[0]}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(CrossfadeError, match="cannot be reached: Connection refused") as lost:
        push(run, "models:/other")
    assert lost.value.exit_code == 1
