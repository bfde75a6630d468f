"""A file of the dataset that vanishes during a training: the error of the thread that reads ends the command."""

from pathlib import Path

import pytest
from cluster_data import write_job, write_planted
from paced_training import paced

pytestmark = pytest.mark.slow


def test_file_that_vanishes_during_training_ends_the_run(tmp_path: Path) -> None:
    write_job(tmp_path / "job.yaml", write_planted(tmp_path / "data"))
    path = tmp_path / "data/train/part-00001.parquet"
    epochs = ("--set", "train.epochs=1000", "--set", "train.eval_every_epochs=1000")
    with paced("train", "job.yaml", *epochs, run_dir=tmp_path / "run") as training:
        training.wait_for("step")
        path.unlink()
        result = training.finish()
    assert result.returncode == 2
    line = result.stderr.splitlines()[-1].removeprefix("crossfade: error: ")
    assert line.startswith(f"{path}: no such file, but the manifest lists it")
    assert "Traceback" not in result.stderr
