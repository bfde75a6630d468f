"""GPUs as ``crossfade doctor`` reports them, on a stand-in for NVIDIA's driver."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cluster_data import write_job
from cuda_stub import H100, build_cuda_stub, cuda_stub_environment


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_cuda_stub(tmp_path_factory.mktemp("driver"))


def gpu_findings(environment: dict[str, str], *arguments: object) -> list[tuple[str, str]]:
    """Return state and message of what the command finds about GPUs."""
    command = [sys.executable, "-m", "crossfade", "doctor", "--json", *map(str, arguments)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert result.stderr == ""
    return [
        (finding["state"], finding["message"]) for finding in json.loads(result.stdout) if finding["check"] == "gpu"
    ]


def test_machine_without_gpu_computes_on_the_cpu() -> None:
    assert gpu_findings(dict(os.environ)) == [("ok", "none is found, so training computes on the CPU")]


def test_gpu_without_engine_is_reported_with_what_to_install(driver: Path) -> None:
    [(state, message)] = gpu_findings(cuda_stub_environment(driver, H100))
    assert state == "warning"
    assert message.startswith("gpu:0 (NVIDIA H100 80GB HBM3, compute capability 9.0) cannot be used: ")
    assert "pip install 'crossfade[torch]'" in message


def test_device_of_the_job_is_checked(driver: Path, tmp_path: Path) -> None:
    job = write_job(tmp_path / "job.yaml", tmp_path / "data")
    environment = cuda_stub_environment(driver, H100)
    assert gpu_findings(environment, job)[-1] == ("ok", "the job would compute on cpu with engine cpu")
    state, message = gpu_findings(environment, job, "--set", "train.device=gpu:1")[-1]
    assert (state, message.partition(":")[0]) == ("fix", "train.device is gpu")
    assert "the GPUs of this machine are gpu:0 (NVIDIA H100 80GB HBM3, compute capability 9.0)" in message
