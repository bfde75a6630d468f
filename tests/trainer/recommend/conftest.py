"""A model of planted plays, trained once for all commands that recommend by it."""

import shutil
from pathlib import Path

import pytest
from cluster_data import TRACKS, write_job, write_planted
from command_here import crossfade_here
from running_command import succeeded


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train without a valid split, so that the newer of two checkpoints has the embeddings. One track has no plays."""
    folder = tmp_path_factory.mktemp("planted")
    data = write_planted(folder / "data", named=True, held_out=False, tracks=TRACKS + 1)
    checkpoint = {"interval_steps": 100, "keep_latest": 2}
    write_job(folder / "job.yaml", data, train={"epochs": 8}, checkpoint=checkpoint)
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", "run", cwd=folder))
    assert len(list((folder / "run" / "checkpoints").glob("step-*"))) == 2
    return folder


@pytest.fixture(scope="module")
def workspace(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the dataset and the run for the tests of a file."""
    return shutil.copytree(planted, tmp_path_factory.mktemp("copy") / "workspace")


@pytest.fixture
def run(workspace: Path, tmp_path: Path) -> Path:
    """Copy the run, so that a test may change it."""
    return shutil.copytree(workspace / "run", tmp_path / "run")
