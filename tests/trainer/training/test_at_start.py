"""``evaluate.at_start``: what a warm start continues is judged before the first step."""

from pathlib import Path

import pytest
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from run_results import report_of
from running_command import records, succeeded

pytestmark = pytest.mark.slow
AT_START = ("--set", "evaluate.at_start=true")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train ``old``."""
    workspace = tmp_path_factory.mktemp("workspace")
    write_job(workspace / "job.yaml", write_planted(workspace / "data"))
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", "old", cwd=workspace))
    return workspace


def warm(workspace: Path) -> tuple[str, ...]:
    return (*AT_START, "--set", f"checkpoint.warm_start_from={workspace / 'old' / 'checkpoints'}")


def test_metrics_at_start_are_those_of_the_checkpoint(workspace: Path) -> None:
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", "new", *warm(workspace), cwd=workspace))
    old, new = (report_of(workspace / run) for run in ("old", "new"))
    last = [record for record in records(workspace / "old") if record["event"] == "epoch"][-1]["valid"]
    assert old["valid_at_start"] is None
    assert new["valid_at_start"] == last
    assert new["valid_at_start"] != new["metrics"]["valid"]
    names = [record["event"] for record in records(workspace / "new")]
    assert names.count("epoch") == [record["event"] for record in records(workspace / "old")].count("epoch")
