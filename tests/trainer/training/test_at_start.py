"""``evaluate.at_start``: what a warm start continues is judged before the first step."""

from pathlib import Path

import pytest
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from run_results import report_of
from running_command import records, succeeded


@pytest.mark.slow
def test_metrics_at_start_are_the_ones_of_the_checkpoint(tmp_path: Path) -> None:
    write_job(tmp_path / "job.yaml", write_planted(tmp_path / "data"))
    warm = ("--set", "evaluate.at_start=true", "--set", "checkpoint.warm_start_from=old/checkpoints")
    for run, options in (("old", ()), ("new", warm)):
        succeeded(crossfade_here("train", "job.yaml", "--run-dir", run, *options, cwd=tmp_path))
    old, new = (report_of(tmp_path / run) for run in ("old", "new"))
    epochs = [[record for record in records(tmp_path / run) if record["event"] == "epoch"] for run in ("old", "new")]
    assert old["valid_at_start"] is None
    assert new["valid_at_start"] == epochs[0][-1]["valid"] != new["metrics"]["valid"]
    assert len(epochs[0]) == len(epochs[1])
