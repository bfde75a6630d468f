"""Runs that compete for a run folder or a checkpoint folder."""

from pathlib import Path

import pytest
from command_here import crossfade_here
from fault_runs import assert_last_is_complete, assert_undisturbed, checkpoint_option, train
from running_command import succeeded

pytestmark = [pytest.mark.slow, pytest.mark.cluster]


def test_run_and_checkpoint_folder_of_a_running_run_are_rejected(
    workspace: Path, undisturbed: Path, tmp_path: Path
) -> None:
    shared = checkpoint_option(tmp_path / "shared")
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", "other", "--set", "train.max_steps=20", cwd=workspace))
    with train(workspace / "busy", *shared) as training:
        training.wait_for("checkpoint_saved")
        for how in ((), ("--resume", *shared), ("--overwrite",)):
            result = crossfade_here("train", "job.yaml", "--run-dir", "busy", *how, cwd=workspace)
            assert result.returncode == 2
            assert result.stderr.startswith("crossfade: error: busy: a run is in progress; ")
        for how in ((), ("--overwrite",)):
            result = crossfade_here("train", "job.yaml", "--run-dir", "other", *shared, *how, cwd=workspace)
            assert result.returncode == 2
            assert f"{tmp_path / 'shared'}: holds checkpoints of another run, of job 'planted'" in result.stderr
            assert (workspace / "other" / "report.json").exists(), "the earlier run was touched"
        training.wait_for("checkpoint_saved")
        succeeded(training.finish())
    assert_undisturbed(training.run_dir, undisturbed)
    assert_last_is_complete(tmp_path / "shared")


def test_run_resumed_elsewhere_ends_at_its_first_location(workspace: Path, undisturbed: Path, tmp_path: Path) -> None:
    shared = checkpoint_option(tmp_path / "shared")
    with train(workspace / "here", *shared) as here:
        here.wait_for("checkpoint_saved")
        with train(workspace / "there", *shared, "--resume") as there:
            there.wait_for("checkpoint_saved")
            result = here.command.finish()
            succeeded(there.finish())
    assert result.returncode == 2
    assert f"{tmp_path / 'shared'}: another run, of job 'planted', was started in it with --resume" in result.stderr
    assert not (workspace / "here" / "report.json").exists()
    assert_undisturbed(workspace / "there", undisturbed)
    assert_last_is_complete(tmp_path / "shared")
