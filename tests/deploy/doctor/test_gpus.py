"""GPUs as ``crossfade doctor`` reports them, on a stand-in for NVIDIA's driver."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cluster_data import write_job
from cuda_stub import H100, build_cuda_stub, cuda_stub_environment

from crossfade.deploy.doctor.findings import Finding
from crossfade.deploy.doctor.host_checks import check_gpus

pytestmark = pytest.mark.slow

CHECK = """
import json, sys
from pathlib import Path
from crossfade.deploy.doctor.findings import run_check
from crossfade.deploy.doctor.host_checks import check_gpus
from crossfade.trainer.config.loading import load_job
jobs = [None, *(load_job(Path(sys.argv[1]), settings) for settings in ([], ["train.device=gpu:1"]))]
print(json.dumps([[vars(found) for found in run_check("gpu", lambda: check_gpus(job), 60)] for job in jobs]))
"""


def test_machine_without_gpu_computes_on_the_cpu() -> None:
    assert list(check_gpus(None)) == [Finding("gpu", "ok", "none is found, so training computes on the CPU")]


def test_gpu_without_engine_and_the_device_of_the_job_are_reported(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job.yaml", tmp_path / "data")
    environment = cuda_stub_environment(build_cuda_stub(tmp_path), H100)
    output = subprocess.check_output([sys.executable, "-c", CHECK, job], env=environment, text=True)
    found = [[Finding(**finding) for finding in findings] for findings in json.loads(output)]
    [[of_host], *_] = found
    assert of_host.state == "warning"
    assert of_host.message.startswith("gpu:0 (NVIDIA H100 80GB HBM3, compute capability 9.0) cannot be used: ")
    assert "pip install 'crossfade[torch]'" in of_host.message
    assert found[1][-1] == Finding("gpu", "ok", "the job would compute on cpu with engine cpu")
    assert (found[2][-1].state, found[2][-1].message.partition(":")[0]) == ("fix", "train.device is gpu")
    assert "the GPUs of this machine are gpu:0 (NVIDIA H100 80GB HBM3, compute" in found[2][-1].message
