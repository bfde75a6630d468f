"""A distributed training with data on S3, throttled and then away, gives the bits of one on local files.

``tests/deploy/cluster/test_s3_faults.py`` has checkpoints on S3.
"""

from pathlib import Path

import pytest
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from flaky_proxy import flaky_proxy
from object_store import running_object_store
from paced_training import paced
from run_results import assert_same_bits, report_of
from running_command import succeeded

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

ON_A_SERVER = ("--servers", 1, "--workers", 1)
"""One worker gives the bits of a run in process."""
SECTIONS = {
    "optimizer": {"kind": "adagrad"},
    "train": {"epochs": 12, "eval_every_epochs": 4, "patience": None},
    "checkpoint": {"interval_seconds": 0.5, "keep_latest": 2},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_planted(tmp_path_factory.mktemp("planted") / "data")


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """Train on local files, in process."""
    folder = tmp_path_factory.mktemp("local")
    write_job(folder / "local.yaml", data, **SECTIONS)
    succeeded(crossfade_here("train", "local.yaml", "--run-dir", "local", cwd=folder))
    return folder / "local"


def test_s3_outage_causes_a_restart(tmp_path: Path, data: Path, local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "store").mkdir()
    with running_object_store(tmp_path / "store") as s3, flaky_proxy(s3.endpoint) as proxy:
        one_retry = {"AWS_ENDPOINT_URL": proxy.endpoint, "CROSSFADE_S3_ATTEMPTS": "2"}
        for name, value in {**s3.variables, **one_retry}.items():
            monkeypatch.setenv(name, value)
        uri = s3.upload(data, "interactions")
        write_job(tmp_path / "s3.yaml", uri, **SECTIONS)
        proxy.inject_every("throttle", 11)
        with paced("train", "s3.yaml", *ON_A_SERVER, run_dir=tmp_path / "away") as training:
            training.wait_for("checkpoint_saved")
            before = training.command.roles()["worker-0"]
            proxy.inject_every("reset", 1)
            training.wait(lambda: not before.is_running(), "the end of a worker")
            proxy.inject_every("reset", 0)
            result = succeeded(training.finish())
        assert f"{uri}/" in result.stderr
        assert "cannot be reached (NETWORK_CONNECTION)" in result.stderr
        assert report_of(tmp_path / "away")["restarts"] >= 1
        assert_same_bits(tmp_path / "away", local)
