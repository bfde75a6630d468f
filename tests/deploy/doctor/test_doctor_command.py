"""``crossfade doctor`` prints a line for each check, as text or JSON, and rejects what is neither a run nor a job."""

import json
import re
from pathlib import Path

import pytest
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from error_table import documented
from running_command import single_line, succeeded

pytestmark = pytest.mark.slow


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    write_job(tmp_path / "job.yaml", write_planted(tmp_path / "data"))
    return tmp_path


@pytest.mark.slow
def test_run_and_job_are_examined_and_only_faults_change_the_exit_code(workspace: Path) -> None:
    succeeded(crossfade_here("train", "job.yaml", cwd=workspace))
    before = set((workspace / "runs").rglob("*"))
    *lines, total = succeeded(crossfade_here("doctor", "runs/planted", cwd=workspace)).stdout.splitlines()
    assert all(re.fullmatch(r"(ok|warning) +", line[:9]) and line[9] != " " and line[22:24] for line in lines), lines
    assert "ok       run           runs/planted: its run is finished" in lines
    assert re.fullmatch("0 to fix, (1 warning|[0-9]+ warnings)", total)
    assert set((workspace / "runs").rglob("*")) == before
    (workspace / "data" / "manifest.json").unlink()
    result = crossfade_here("doctor", "job.yaml", "--servers", 1, "--json", cwd=workspace)
    assert (result.returncode, result.stderr) == (1, "")
    found = json.loads(result.stdout)
    assert [finding["check"] for finding in found if finding["state"] == "fix"] == ["data"]
    assert len(lines) == len(found), "both have the same checks"


def rejected(*arguments: object, cwd: Path) -> str:
    result = crossfade_here("doctor", *arguments, cwd=cwd)
    return single_line(result.returncode, result.stdout, result.stderr)


def test_what_is_no_run_or_job_is_rejected(workspace: Path) -> None:
    documented("a folder to examine that is no run folder", rejected("data", cwd=workspace))
    documented("options of the doctor without a run", rejected("--servers", 1, cwd=workspace))
    assert "no such job file; did you mean 'job.yaml'?" in rejected("jobs.yaml", cwd=workspace)
    assert "unknown key 'train.epoch'" in rejected("job.yaml", "--set", "train.epoch=3", cwd=workspace)
