"""A training with data on S3 ends when storage is away, and resumes to the bits of one on local files, if throttled.

``tests/deploy/cluster/test_s3_faults.py`` has checkpoints on S3, and restarts of a job.
"""

import json
from pathlib import Path

import pytest
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from flaky_proxy import flaky_proxy
from object_store import ObjectStore
from paced_training import paced
from run_results import assert_same_bits
from running_command import succeeded

pytestmark = pytest.mark.slow

SPECIAL_CHARACTERS = 'in put/da ta/Füße "it\'s" 音楽 100%'
"""A path with spaces, Unicode and quotes."""


def test_storage_outage_ends_the_run_which_resumes_to_the_bits_of_local_files(
    tmp_path: Path, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_planted(tmp_path / "data")
    sections = {"train": {"epochs": 20, "eval_every_epochs": 20}, "checkpoint": {"interval_steps": 10}}
    write_job(tmp_path / "job.yaml", data, **sections)
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", "local", cwd=tmp_path))
    uri = object_store.upload(data, SPECIAL_CHARACTERS)
    command = ("train", "job.yaml", "--set", f"data.path={json.dumps(uri)}")
    with flaky_proxy(object_store.endpoint) as proxy:
        variables = {**object_store.variables, "AWS_ENDPOINT_URL": proxy.endpoint}
        few_attempts = {**variables, "CROSSFADE_S3_ATTEMPTS": "3"}
        with paced(*command, run_dir=tmp_path / "run", variables=few_attempts) as training:
            training.wait_for("checkpoint_saved")
            proxy.inject_every("reset", 1)
            result = training.finish()
        assert result.returncode == 1
        line = result.stderr.splitlines()[-1]
        assert line.startswith(f"crossfade: error: {uri}/")
        assert f"{proxy.endpoint} cannot be reached (NETWORK_CONNECTION)" in line
        assert "Traceback" not in result.stderr
        proxy.inject_every("throttle", 7)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        succeeded(crossfade_here(*command, "--run-dir", "run", "--resume", cwd=tmp_path))
    assert_same_bits(tmp_path / "run", tmp_path / "local")
