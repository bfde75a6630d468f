"""Full and read-only disks: they cost checkpoints, not the run."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from command_here import crossfade_here
from fault_runs import (
    DISK_BYTES,
    ON_ONE_SERVER,
    assert_counted,
    assert_last_is_complete,
    assert_training_continues,
    assert_undisturbed,
    checkpoint_option,
    train,
)
from needs import root
from run_results import report_of
from running_command import succeeded
from small_disk import MountError, fill, make_room, mounted_disk

pytestmark = [pytest.mark.slow, pytest.mark.cluster]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a small disk."""
    try:
        with mounted_disk(tmp_path / "disk", DISK_BYTES) as disk:
            yield disk
    except MountError as reason:
        pytest.skip(root(reason))


def test_full_disk_costs_only_checkpoints(workspace: Path, undisturbed: Path, disk: Path) -> None:
    with train(workspace / "full", *ON_ONE_SERVER, *checkpoint_option(disk / "checkpoints")) as training:
        training.wait_for("checkpoint_saved")
        # Whenever an old checkpoint is deleted, there is room again.
        training.wait_for("checkpoint_failed", meanwhile=lambda: fill(disk))
        assert_training_continues(training)
        (disk / "filler").unlink()
        training.wait_for("checkpoint_saved")
        result = succeeded(training.finish())
    assert "was not written: " in result.stderr
    assert "No space left on device" in result.stderr
    assert "Traceback" not in result.stderr
    assert_undisturbed(training.run_dir, undisturbed)
    assert_counted(training)
    assert report_of(training.run_dir)["restarts"] == 0
    assert_last_is_complete(disk / "checkpoints")


def test_full_disk_of_the_run_folder_is_named_and_the_run_resumes(
    workspace: Path, undisturbed: Path, disk: Path
) -> None:
    options = checkpoint_option(workspace / "beside")
    with train(disk / "run", *options, job=workspace / "job.yaml") as training:
        training.wait_for("checkpoint_saved")
        fill(disk)
        result = training.finish()
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"crossfade: error: {disk}/run/embeddings: cannot be written: ")
    assert "No space left on device" in last
    assert not (disk / "run" / ".embeddings.partial").exists()
    make_room(disk)
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", disk / "run", *options, "--resume", cwd=workspace))
    assert_undisturbed(disk / "run", undisturbed)
