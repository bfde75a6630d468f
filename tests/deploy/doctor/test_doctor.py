"""``crossfade doctor`` reports MXNet, the GPU's driver, and rights on S3, and rejects what is no run or job."""

import json
import os
import subprocess
import sys
from pathlib import Path

import boto3
import pytest
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from cuda_stub import H100, build_cuda_stub, cuda_stub_environment
from object_store import BUCKET, READER, ObjectStore
from running_command import succeeded

from crossfade.base.io.folder import Folder
from crossfade.deploy.doctor import examine
from crossfade.deploy.doctor.examine import check_mxnet, check_storage

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doctor")
    write_job(folder / "job.yaml", write_planted(folder / "data"))
    return folder


def test_host_and_job_are_examined_and_nothing_is_written(workspace: Path) -> None:
    before = set(workspace.rglob("*"))
    *lines, total = succeeded(crossfade_here("doctor", "job.yaml", "--servers", 1, cwd=workspace)).stdout.splitlines()
    assert [line.split()[1] for line in lines] == ["mxnet", "gpu", "gpu"]
    assert lines[-1] == "ok       gpu           the job would compute on cpu with engine cpu"
    assert total == "0 to fix, 0 warnings"
    found = json.loads(succeeded(crossfade_here("doctor", "job.yaml", "--json", cwd=workspace)).stdout)
    assert [finding["check"] for finding in found] == ["mxnet", "gpu", "gpu"]
    assert set(workspace.rglob("*")) == before


@pytest.mark.parametrize(
    ("code", "seconds", "problem"),
    [
        ("import time\nwhile True:\n    time.sleep(60)\n", 1, "importing it did not end within 1 s"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n", 60, "importing it ended with signal 4"),
    ],
)
def test_mxnet_that_hangs_or_ends_the_process_is_to_be_fixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, seconds: int, problem: str
) -> None:
    (tmp_path / "mxnet.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setattr(examine, "_IMPORT_SECONDS", seconds)
    for needed, state in ((True, "fix"), (False, "warning")):
        found = check_mxnet(needed=needed)
        assert (found.state, found.message.partition(";")[0]) == (state, problem)


def test_gpu_without_engine_and_the_device_of_the_job_are_reported(workspace: Path, tmp_path: Path) -> None:
    environment = cuda_stub_environment(build_cuda_stub(tmp_path), H100)
    command = [sys.executable, "-m", "crossfade", "doctor", "job.yaml", "--json", "--set", "train.device=gpu:1"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=workspace)
    gpu, of_job = (finding for finding in json.loads(result.stdout) if finding["check"] == "gpu")
    assert gpu["state"] == "warning"
    assert gpu["message"].startswith("gpu:0 (NVIDIA H100 80GB HBM3, compute capability 9.0) cannot be used: ")
    assert "pip install 'crossfade[torch]'" in gpu["message"]
    assert (result.returncode, of_job["state"], of_job["message"].partition(":")[0]) == (
        1,
        "fix",
        "train.device is gpu",
    )


def test_rights_on_s3_are_tried_and_no_object_stays(
    s3: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, checkpoints = s3.upload(write_planted(tmp_path / "data"), "planted"), s3.uri("examined")
    job = write_job(tmp_path / "job.yaml", data, checkpoint={"path": checkpoints})

    def examined() -> tuple[int, list[str]]:
        result = crossfade_here("doctor", job, "--json", cwd=tmp_path)
        assert result.stderr == ""
        found = [finding for finding in json.loads(result.stdout) if finding["check"] == "storage"]
        return result.returncode, [f"{finding['state']} {finding['message']}" for finding in found]

    listed = f"ok {data}: list succeeds"
    assert examined() == (0, [listed, f"ok {checkpoints}: list, write, read, and delete succeed"])
    assert Folder(checkpoints).names() == []
    statement = {"Effect": "Deny", "Principal": "*", "Action": "s3:DeleteObject"}
    statement["Resource"] = f"arn:aws:s3:::{BUCKET}/examined-kept/*"
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    boto3.client("s3").put_bucket_policy(Bucket=BUCKET, Policy=policy)
    [found] = check_storage("data", s3.uri("examined-kept"))
    [probe] = Folder(s3.uri("examined-kept")).names()
    assert (found.state, found.message.endswith(f"; delete {s3.uri('examined-kept')}/{probe}")) == ("warning", True)
    [found] = check_storage("data", "s3://no-such-bucket/plays")
    assert (found.state, "there is no bucket 'no-such-bucket'" in found.message) == ("fix", True)
    for name, value in READER.items():
        monkeypatch.setenv(name, value)
    code, (first, second) = examined()
    assert (code, first) == (1, listed)
    assert second.startswith(f"fix {checkpoints}: write fails: access denied (403")
    monkeypatch.setenv("CROSSFADE_S3_TIMEOUT_SECONDS", "1")
    with s3.paused():
        code, found_paused = examined()
    assert (code, ["cannot be reached" in each for each in found_paused]) == (1, [True, True])
