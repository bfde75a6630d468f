"""A run that lost its checkpoints, or diverged, ends with a message and keeps what is left; then it continues.

``tests/trainer/runs/test_resumption.py`` has the rules by which a checkpoint is found.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from running_command import crossfade, messages, records, single_line, succeeded
from saved_shards import poison, wait_for_save

from crossfade.base.errors import DivergedError
from crossfade.kvstore.local import LocalStore
from crossfade.kvstore.optimizer_spec import OptimizerSpec
from crossfade.kvstore.store import TableSpec

pytestmark = pytest.mark.slow

STEPS, SAVED = 9, [3, 6]
CHECKPOINT = {"interval_steps": 3, "interval_seconds": None, "keep_latest": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_planted(tmp_path_factory.mktemp("lost") / "data")


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a job and a run that stopped after checkpoints of the steps ``SAVED``."""
    folder = tmp_path_factory.mktemp("trained")
    write_job(folder / "job.yaml", data, train={"max_steps": SAVED[-1]}, checkpoint=CHECKPOINT)
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", "run", cwd=folder))
    return folder


@pytest.fixture
def workspace(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "workspace")


def resume(workspace: Path, *options: object) -> tuple[int, str, list[int]]:
    """Resume the run; return its exit code, its errors, and the steps that are saved then."""
    steps = ("--set", f"train.max_steps={STEPS}")
    result = crossfade_here("train", "job.yaml", "--run-dir", "run", "--resume", *steps, *options, cwd=workspace)
    names = sorted(path.name for path in (workspace / "run" / "checkpoints").glob("step-*"))
    return result.returncode, result.stderr, [int(name.removeprefix("step-")) for name in names]


def message(stderr: str) -> str:
    """Return the only line of ``stderr``, an error."""
    return single_line(2, "", stderr)


def manifest(workspace: Path, step: int) -> Path:
    return workspace / "run" / "checkpoints" / f"step-{step:09d}" / "manifest.json"


def unlink(path: Path) -> None:
    path.unlink()


def corrupt(path: Path) -> None:
    path.write_text(path.read_text().replace('"seed"', '"sead"'))


@pytest.mark.parametrize("damage", [unlink, corrupt])
def test_run_without_a_usable_checkpoint_stops_and_keeps_them(workspace: Path, damage: Callable[[Path], None]) -> None:
    for step in SAVED:
        damage(manifest(workspace, step))
    code, stderr, steps = resume(workspace)
    assert (code, steps) == (2, SAVED)
    assert "or start over without --resume, which moves the run folder aside" in message(stderr)


def test_run_whose_checkpoint_folder_is_gone_stops(workspace: Path) -> None:
    disk = workspace / "disk"
    shutil.move(workspace / "run" / "checkpoints", disk / "checkpoints")
    elsewhere = ("--set", f"checkpoint.path={disk / 'checkpoints'}")
    (disk / "checkpoints").rename(workspace / "unmounted")
    disk.rmdir()
    code, stderr, _ = resume(workspace, *elsewhere)
    assert code == 2
    assert "holds no checkpoint, but the run has saved some" in message(stderr)
    assert not disk.exists()
    disk.mkdir()
    (workspace / "unmounted").rename(disk / "checkpoints")
    code, stderr, _ = resume(workspace, *elsewhere)
    assert (code, "resuming from step 6" in stderr) == (0, True)


def test_nan_in_a_checkpoint_is_blamed_on_it_and_the_one_before_is_used(workspace: Path) -> None:
    poison(manifest(workspace, 6).parent, "track/weights.00000-of-00001.npy", 17)
    code, stderr, _ = resume(workspace)
    assert code == 0
    name = "step-000000006/track/weights.00000-of-00001.npy"
    assert f"{name}: row 17 of table 'track' has values that are not finite" in stderr
    assert "resuming from step 3" in stderr
    poison(manifest(workspace, 9).parent, "track/weights.00000-of-00001.npy", 17)
    poison(manifest(workspace, 6).parent, "track/weights.00000-of-00001.npy", 17)
    code, stderr, steps = resume(workspace)
    assert (code, steps) == (2, [6, 9])
    assert "cannot resume: none of the checkpoints in" in stderr


def test_diverged_run_keeps_its_last_checkpoint_and_resumes_with_a_lower_rate(workspace: Path) -> None:
    code, stderr, steps = resume(
        workspace, "--set", "optimizer.learning_rate=1e25", "--set", "checkpoint.keep_latest=1"
    )
    assert (code, steps) == (1, SAVED)
    assert "crossfade: optimizer.learning_rate was 0.1 and is 1e+25 from here on" in stderr
    assert "model.dense.learning_rate" not in stderr  # there are no layers
    error = messages(stderr)[-1].removeprefix("crossfade: error: ")
    assert error.startswith("step 7: table 'customer', row ")
    assert "lower optimizer.learning_rate, and --resume" in error
    code, stderr, steps = resume(workspace, "--set", "optimizer.learning_rate=0.01")
    assert (code, steps) == (0, [6, 9]), stderr
    assert "resuming from step 6" in stderr
    rates = {event["learning_rate"] for event in records(workspace / "run") if event["event"] == "step"}
    assert {0.1, 0.01} <= rates


@pytest.mark.cluster
@pytest.mark.slow
def test_divergence_on_a_server_ends_the_run_and_names_table_row_and_step(workspace: Path) -> None:
    servers = ("--servers", 1, "--workers", 1)
    steps = ("--set", f"train.max_steps={STEPS}", "--set", "optimizer.learning_rate=1e25")
    result = crossfade("train", "job.yaml", "--run-dir", "run", "--resume", *steps, *servers, cwd=workspace)
    assert result.returncode == 1
    # Both tables diverge; the error that is reported first ends the job.
    assert re.search(r"server-0: step 7: table '(customer|track)', row \d+: .*training has diverged", result.stderr)
    assert "restarting" not in result.stderr
    assert json.loads((workspace / "run" / "state.json").read_text())["state"] == "failed"


def test_tables_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    table = TableSpec("track", rows=50, dim=4, init_std=0.1)
    store = LocalStore()
    store.create([table], OptimizerSpec("adam"), seed=1)
    store.weights("track")[41, 2] = np.nan
    store.save(str(tmp_path / "step-000000001"))
    with pytest.raises(DivergedError, match=r"table 'track', row 41: has values that are not finite \(weights\)"):
        wait_for_save(store)
    assert not list(tmp_path.rglob("part-*"))
    store.close()
