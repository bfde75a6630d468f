"""A run that resumes equals one that never stopped, whatever ended it and wherever it resumes."""

import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from cluster_data import TRACKS, write_job, write_planted
from command_here import crossfade_here
from paced_training import paced
from run_results import ENTITIES, assert_same_bits, report_of, vectors
from running_command import crossfade, messages, records, succeeded
from waiting import wait_until

from crossfade.base.arrays import FloatArray
from crossfade.kvstore.checkpoint.lifecycle import latest_checkpoint

pytestmark = pytest.mark.slow

TRAIN = {"epochs": 12, "patience": 1}
OPTIMIZER = {"kind": "adagrad", "learning_rate": 0.3, "schedule": "linear", "warmup_steps": 20, "min_lr_factor": 0.1}
CHECKPOINT = {"interval_steps": 10, "interval_seconds": None}
ON_SERVERS = ("--servers", 2, "--workers", 2)
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write data and a job."""
    folder = tmp_path_factory.mktemp("resume")
    data = write_planted(folder / "data")
    write_job(folder / "job.yaml", data, optimizer=OPTIMIZER, train=TRAIN, checkpoint=CHECKPOINT)
    return folder


@pytest.fixture(scope="module")
def undisturbed(workspace: Path) -> Path:
    """Train undisturbed, in process."""
    run = train(workspace, "undisturbed")
    report = report_of(run)
    assert (report["steps"], report["stopped_early"]) == (60, True)
    return run


@dataclass(frozen=True)
class Stopped:
    """A run that was stopped, and how the command ended; tests resume copies of its folder."""

    folder: Path
    exit_code: int
    stdout: str
    stderr: str

    def copy(self, name: str) -> Path:
        """Copy the run's folder."""
        return shutil.copytree(self.folder, self.folder.with_name(name))


@pytest.fixture(scope="module")
def killed(workspace: Path) -> Stopped:
    """Kill a run in process."""
    return stop_after_checkpoint(workspace, "killed", signal.SIGKILL)


@pytest.fixture(scope="module")
def interrupted(workspace: Path) -> Stopped:
    """Interrupt a run in process."""
    return stop_after_checkpoint(workspace, "interrupted", signal.SIGINT)


@pytest.fixture(scope="module")
def terminated_on_servers(workspace: Path) -> Stopped:
    """Terminate a run with two workers on two servers."""
    return stop_after_checkpoint(workspace, "terminated-2-2", signal.SIGTERM, *ON_SERVERS)


def train(workspace: Path, run: str, *options: object) -> Path:
    """Train to the end and return the run's folder: without servers, in this process."""
    run_command = crossfade if "--servers" in options else crossfade_here
    succeeded(run_command("train", "job.yaml", "--run-dir", run, *options, cwd=workspace))
    return workspace / run


def saved_steps(run: Path) -> list[int]:
    """Return the steps of the checkpoints that the run has logged."""
    return [record["step"] for record in records(run) if record["event"] == "checkpoint_saved"]


def stop_after_checkpoint(workspace: Path, run: str, number: signal.Signals, *options: object) -> Stopped:
    """Train, and send the signal ``number`` after two checkpoints."""
    with paced("train", "job.yaml", *options, run_dir=workspace / run) as training:
        for _ in range(2):
            training.wait_for("checkpoint_saved")
        training.command.process.send_signal(number)
        result = training.command.finish()
        wait_until(lambda: training.command.mark.processes() == [], "the end of all processes")
    assert not (workspace / run / "report.json").exists()
    return Stopped(workspace / run, result.returncode, result.stdout, result.stderr)


def assert_stopped_by(stopped: Stopped, number: str) -> None:
    """Assert that the run ended with one line, which names the signal and the step of its last checkpoint."""
    [message] = messages(stopped.stderr)
    step = saved_steps(stopped.folder)[-1]
    assert message.startswith(f"crossfade: stopped by {number} after step {step}, of which there is a checkpoint")
    assert "--resume" in message
    assert "Traceback" not in stopped.stderr
    assert stopped.stdout == ""


# test_supervision.py kills and resumes a run on servers.
@pytest.mark.parametrize(("ended", "number", "exit_code"), [("killed", None, -9), ("interrupted", "SIGINT", 130)])
def test_interrupted_run_resumes_to_the_same_bits(
    workspace: Path,
    undisturbed: Path,
    ended: str,
    number: str | None,
    exit_code: int,
    request: pytest.FixtureRequest,
) -> None:
    stopped: Stopped = request.getfixturevalue(ended)
    assert stopped.exit_code == exit_code, stopped.stderr
    run = stopped.copy(f"resumed-{ended}").name
    ended_at = saved_steps(workspace / run)[-1]
    assert ended_at < report_of(undisturbed)["steps"], "the signal came after the end of the run"
    if number is not None:
        assert_stopped_by(stopped, number)
    logged = len(records(workspace / run))
    train(workspace, run, "--resume")
    [start] = [record for record in records(workspace / run)[logged:] if record.get("name") == "training"]
    assert start["step"] == ended_at > 0
    assert_same_bits(workspace / run, undisturbed)
    report, expected = report_of(workspace / run), report_of(undisturbed)
    assert (report["restarts"], report["restart_causes"]) == (0, [])
    for name in ("examples", "steps", "epochs", "rows_pushed", "bytes_pulled", "best_epoch"):
        assert report[name] == expected[name], name


def test_run_keeps_its_newest_checkpoints_and_ends_with_one(undisturbed: Path) -> None:
    names = sorted(path.name for path in (undisturbed / "checkpoints").glob("step-*"))
    steps = report_of(undisturbed)["steps"]
    # Few on a slow disk: while a checkpoint is being written, the next one is not begun.
    assert names == [f"step-{step:09d}" for step in saved_steps(undisturbed)[-3:]]
    assert names[-1] == f"step-{steps:09d}"
    checkpoint, reasons = latest_checkpoint(str(undisturbed / "checkpoints"))
    assert checkpoint is not None
    assert checkpoint.manifest.step == steps
    assert reasons == []
    counted = report_of(undisturbed)["checkpoints"]
    assert counted["written"] == len(saved_steps(undisturbed)) > 1
    assert counted["failed"] == 0
    assert 0 < counted["longest_pause_seconds"] <= counted["pause_seconds"]


def corrupt(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.cluster
def test_terminated_run_of_servers_resumes_from_the_checkpoint_before_a_corrupt_one(
    workspace: Path, undisturbed: Path, terminated_on_servers: Stopped
) -> None:
    assert terminated_on_servers.exit_code == 143, terminated_on_servers.stderr
    assert_stopped_by(terminated_on_servers, "SIGTERM")
    run = terminated_on_servers.copy("corrupt")
    *_, before, newest = sorted((run / "checkpoints").glob("step-*"))
    [path] = newest.glob("part-00000*.json")
    corrupt(path)
    resumed = len(records(run))
    result = succeeded(crossfade("train", "job.yaml", "--run-dir", run, *ON_SERVERS, "--resume", cwd=workspace))
    assert f"{newest.name}/{path.name}" in result.stderr
    started_at = [record["step"] for record in records(run)[resumed:] if record.get("name") == "training"]
    assert started_at[-1] == int(before.name.removeprefix("step-"))
    # test_chaos.py compares restarts of several workers bit for bit.
    assert_close(run, undisturbed)
    report, expected = report_of(run), report_of(undisturbed)
    for name in ("examples", "steps", "epochs"):  # the workers add them up, and each has read the checkpoint
        assert report[name] == expected[name], name


def assert_close(run: Path, expected: Path) -> None:
    """Assert that the embeddings differ by rounding only."""
    for entity in ENTITIES:
        assert np.abs(vectors(run, entity) - vectors(expected, entity)).max() < TOLERANCE


def test_resume_logs_its_step_or_that_a_new_run_starts(workspace: Path) -> None:
    run = ("train", "job.yaml", "--run-dir", "logs", "--resume", "--set")
    first = succeeded(crossfade_here(*run, "train.max_steps=1", cwd=workspace))
    assert first.stderr.startswith("crossfade: logs: there is no run to resume, so a new one starts\n")
    second = succeeded(crossfade_here(*run, "train.max_steps=2", cwd=workspace))
    assert second.stderr.startswith("crossfade: resuming from step 1\n")


@pytest.mark.parametrize("name", ["nowhere", "partial"])
def test_warm_start_from_a_folder_without_checkpoint_is_rejected(workspace: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "partial" / "step-000000007").mkdir(parents=True)
    start = ("--set", f"checkpoint.warm_start_from={tmp_path / name}")
    result = crossfade_here("train", "job.yaml", "--run-dir", tmp_path / "run", *start, cwd=workspace)
    assert result.returncode == 2
    assert f"checkpoint.warm_start_from: {tmp_path / name}: found no complete checkpoint" in result.stderr
    assert ("step-000000007/manifest.json: missing" in result.stderr) == (name == "partial")


def test_resume_of_a_changed_job_is_rejected_with_its_keys(workspace: Path, killed: Stopped) -> None:
    run = killed.copy("another-job")
    other = ("--set", "optimizer.min_lr_factor=0.2", "--set", "train.epochs=3", "--set", "optimizer.learning_rate=0.2")
    result = crossfade_here("train", "job.yaml", "--run-dir", run, "--resume", *other, cwd=workspace)
    assert result.returncode == 2
    assert "cannot resume: optimizer.min_lr_factor was 0.1 and is now 0.2; train" in result.stderr
    assert "epochs" not in result.stderr


def test_longer_run_resumes_from_the_end_of_the_shorter(workspace: Path) -> None:
    # Other schedules depend on the number of steps, so a longer run would have other learning rates.
    constant = ("--set", "optimizer.schedule=constant", "--set", "train.patience=null", "--set", "train.epochs=8")
    undisturbed, run = train(workspace, "constant", *constant), workspace / "longer"
    train(workspace, run.name, *constant, "--set", "train.max_steps=67")
    assert saved_steps(run)[-1] == 67
    train(workspace, run.name, *constant, "--resume")
    # The shorter run was evaluated at its end, so other embeddings may be the best, but the tables are the same.
    for entity in ENTITIES:
        np.testing.assert_array_equal(final_weights(run, entity), final_weights(undisturbed, entity))
    assert report_of(run)["examples"] == report_of(undisturbed)["examples"]


def test_unwritable_checkpoint_path_is_rejected_before_training(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    checkpoints = tmp_path / "file" / "checkpoints"
    result = crossfade_here(
        "train", "job.yaml", "--run-dir", tmp_path / "run", "--set", f"checkpoint.path={checkpoints}", cwd=workspace
    )
    assert result.returncode == 2
    assert f"checkpoint.path: {checkpoints} cannot be written" in result.stderr


def final_weights(run: Path, entity: str) -> FloatArray:
    """Read the rows of the newest checkpoint of a run."""
    checkpoint, _ = latest_checkpoint(str(run / "checkpoints"))
    assert checkpoint is not None
    return checkpoint.read_rows(entity, np.arange(checkpoint.rows(entity)))


# test_forget_training.py has a warm start on servers.
def test_warm_start_extends_a_smaller_vocabulary(workspace: Path, undisturbed: Path, tmp_path: Path) -> None:
    data = write_planted(tmp_path / "larger", tracks=TRACKS + 37)
    frozen = {"optimizer": {"kind": "adagrad", "learning_rate": 1e-30}, "train": {"max_steps": 1, "epochs": 1}}
    write_job(tmp_path / "fresh.yaml", data, **frozen)
    write_job(tmp_path / "warm.yaml", data, **frozen, checkpoint={"warm_start_from": str(undisturbed / "checkpoints")})
    for name in ("fresh", "warm"):
        succeeded(crossfade_here("train", f"{name}.yaml", "--run-dir", name, cwd=tmp_path))
    fresh, warm = (final_weights(tmp_path / name, "track") for name in ("fresh", "warm"))
    old = final_weights(undisturbed, "track")
    assert len(warm) == len(old) + 37
    np.testing.assert_array_equal(warm[: len(old)], old)
    np.testing.assert_array_equal(warm[len(old) :], fresh[len(old) :])
    assert not np.allclose(fresh[: len(old)], old)
