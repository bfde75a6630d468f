"""Unreadable datasets on S3: 'crossfade train' exits with one line that gives the reason."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_data import train_rows, write_job, write_planted
from command_here import crossfade_here
from flaky_proxy import flaky_proxy
from object_store import BUCKET, ObjectStore, running_object_store
from paced_training import paced
from running_command import succeeded

pytestmark = pytest.mark.slow

FILE = "train/part-00001.parquet"
SPECIAL_CHARACTERS = 'da ta/Füße "it\'s" 音楽 100%'
"""A path with spaces, Unicode and quotes."""


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Write a dataset and a job."""
    write_job(tmp_path / "job.yaml", write_planted(tmp_path / "data"))
    return tmp_path


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with running_object_store(tmp_path_factory.mktemp("object-store")) as server:
        server.upload(write_planted(tmp_path_factory.mktemp("planted") / "data"), f"in put/{SPECIAL_CHARACTERS}")
        yield server


def on_s3(uri: str) -> tuple[str, str]:
    return "--set", f"data.path={json.dumps(uri)}"


def test_s3_uri_with_spaces_unicode_and_quotes_is_read(
    workspace: Path, s3: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.variables.items():
        monkeypatch.setenv(name, value)
    runs = {"s3": on_s3(s3.uri(f"in put/{SPECIAL_CHARACTERS}")), "local": ()}
    for run, options in runs.items():
        succeeded(crossfade_here("train", "job.yaml", "--run-dir", run, *options, cwd=workspace))
    for name in ("customer", "track"):
        one, other = (next((workspace / run / "embeddings" / name).iterdir()).read_bytes() for run in runs)
        assert one == other
    succeeded(crossfade_here("evaluate", "s3", cwd=workspace))


def test_s3_object_deleted_during_training_ends_the_run(workspace: Path, s3: ObjectStore) -> None:
    uri = s3.upload(workspace / "data", "vanishing")
    epochs = ("--set", "train.epochs=1000", "--set", "train.eval_every_epochs=1000")
    with paced(
        "train", "job.yaml", *on_s3(uri), *epochs, run_dir=workspace / "run", variables=s3.variables
    ) as training:
        training.wait_for("step")
        s3.client().delete_file(f"{BUCKET}/vanishing/{FILE}")
        result = training.finish()
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == (
        f"crossfade: error: {uri}/{FILE}: no such file, but the manifest lists it; prepare the data again"
    )


def test_storage_outage_during_training_fails_the_run_and_keeps_checkpoints(
    workspace: Path, s3: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = s3.upload(workspace / "data", "away")
    command = ("train", "job.yaml", *on_s3(uri), "--set", "checkpoint.interval_steps=10", "--set", "train.epochs=20")
    command = (*command, "--set", "train.eval_every_epochs=20")
    with flaky_proxy(s3.endpoint) as proxy:
        variables = {**s3.variables, "AWS_ENDPOINT_URL": proxy.endpoint, "CROSSFADE_S3_ATTEMPTS": "3"}
        with paced(*command, run_dir=workspace / "run", variables=variables) as training:
            training.wait_for("checkpoint_saved")
            proxy.inject_every("reset", 1)
            result = training.finish()
        assert result.returncode == 1
        line = result.stderr.splitlines()[-1]
        assert line.startswith(f"crossfade: error: {uri}/train/")
        assert f"{proxy.endpoint} cannot be reached (NETWORK_CONNECTION)" in line
        assert "cannot be reached (NETWORK_CONNECTION)" in line.removeprefix("crossfade: error: ")
        assert "Traceback" not in result.stderr
        proxy.inject_every("throttle", 7)
        del variables["CROSSFADE_S3_ATTEMPTS"]
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        succeeded(crossfade_here(*command, "--run-dir", "run", "--resume", cwd=workspace))
    assert json.loads((workspace / "run" / "report.json").read_text())["examples"] == 20 * train_rows()
