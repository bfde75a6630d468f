"""``crossfade doctor`` reports MXNet and the GPU's driver, as text or JSON, and rejects what is no run or job."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from cuda_stub import H100, build_cuda_stub, cuda_stub_environment
from error_table import documented
from needs import root
from running_command import single_line, succeeded

from crossfade.deploy.doctor.examine import check_mxnet

pytestmark = pytest.mark.slow

HIDDEN = """
set -e
libraries=$(dirname "$(realpath "$(ldconfig -p | awk '/libgomp.so.1 .*x86-64/ {print $NF; exit}')")")
mkdir "$0/real" "$0/links"
mount --bind "$libraries" "$0/real"
ln -s "$0"/real/* "$0/links/"
rm "$0"/links/libgomp.so.1*
mount --bind "$0/links" "$libraries"
exec "$@"
"""
"""Hide libgomp for the command that follows."""


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    write_job(tmp_path / "job.yaml", write_planted(tmp_path / "data"))
    return tmp_path


def test_host_and_job_are_examined_and_nothing_is_written(workspace: Path) -> None:
    before = set(workspace.rglob("*"))
    *lines, total = succeeded(crossfade_here("doctor", "job.yaml", "--servers", 1, cwd=workspace)).stdout.splitlines()
    assert [line.split()[1] for line in lines] == ["mxnet", "gpu", "gpu"]
    assert lines[-1] == "ok       gpu           the job would compute on cpu with engine cpu"
    assert total == "0 to fix, 0 warnings"
    found = json.loads(succeeded(crossfade_here("doctor", "job.yaml", "--json", cwd=workspace)).stdout)
    assert [finding["check"] for finding in found] == ["mxnet", "gpu", "gpu"]
    assert set(workspace.rglob("*")) == before


def test_what_is_no_run_or_job_is_rejected(workspace: Path) -> None:
    def rejected(*arguments: object) -> str:
        result = crossfade_here("doctor", *arguments, cwd=workspace)
        return single_line(result.returncode, result.stdout, result.stderr)

    documented("a folder to examine that is no run folder", rejected("data"))
    documented("options of the doctor without a run", rejected("--servers", 1))
    assert "no such job file; did you mean 'job.yaml'?" in rejected("jobs.yaml")


def test_missing_system_library_is_to_be_fixed(workspace: Path) -> None:
    if os.geteuid() != 0 or subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        pytest.skip(root("mounts"))
    (workspace / "work").mkdir()
    command = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        HIDDEN,
        workspace / "work",
        sys.executable,
        "-m",
        "crossfade",
        "doctor",
    ]
    arguments = [workspace / "job.yaml", "--servers", "1", "--json"]
    result = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, cwd="/")
    assert (result.returncode, result.stderr) == (1, "")
    [found] = [finding for finding in json.loads(result.stdout) if finding["state"] == "fix"]
    assert "libgomp.so.1: cannot open shared object file" in found["message"]
    assert found["message"].endswith("; apt-get install libgomp1, or the packages of this system that have them")


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
    for needed, state in ((True, "fix"), (False, "warning")):
        found = check_mxnet(needed=needed, seconds=seconds)
        assert (found.state, found.message.partition(";")[0]) == (state, problem)


def test_gpu_without_engine_and_the_device_of_the_job_are_reported(workspace: Path) -> None:
    environment = cuda_stub_environment(build_cuda_stub(workspace), H100)
    found = []
    for settings in ([], ["--set", "train.device=gpu:1"]):
        command = [sys.executable, "-m", "crossfade", "doctor", "job.yaml", "--json", *settings]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=workspace)
        gpu = [finding for finding in json.loads(result.stdout) if finding["check"] == "gpu"]
        found.append([(finding["state"], finding["message"]) for finding in gpu])
    [(state, message), of_job], [_, (device_state, device)] = found
    assert (state, message.partition(": ")[0]) == (
        "warning",
        "gpu:0 (NVIDIA H100 80GB HBM3, compute capability 9.0) cannot be used",
    )
    assert "pip install 'crossfade[torch]'" in message
    assert of_job == ("ok", "the job would compute on cpu with engine cpu")
    assert (device_state, device.partition(":")[0]) == ("fix", "train.device is gpu")
