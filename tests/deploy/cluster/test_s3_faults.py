"""Outages of S3: they cost checkpoints or time, not the run."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from command_here import crossfade_here
from fault_runs import (
    FAST_S3_ERRORS,
    ON_ONE_SERVER,
    STEPS,
    assert_last_is_complete,
    assert_training_continues,
    assert_undisturbed,
    checkpoint_option,
    train,
)
from object_store import ObjectStore, running_object_store
from run_results import report_of
from running_command import crossfade, records, succeeded

from crossfade.kvstore.checkpoint.lifecycle import latest_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.cluster]


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with running_object_store(tmp_path_factory.mktemp("object-store")) as server:
        yield server


@pytest.fixture
def checkpoints(s3: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a folder on S3 that this process can also reach."""
    for name, value in s3.variables.items():
        monkeypatch.setenv(name, value)
    return s3.uri(tmp_path.name)


def test_outages_cost_a_job_checkpoints_and_the_wait_for_its_restart(
    workspace: Path, undisturbed: Path, s3: ObjectStore, checkpoints: str
) -> None:
    options = (*ON_ONE_SERVER, *checkpoint_option(checkpoints))
    with train(workspace / "s3-job", *options, variables=FAST_S3_ERRORS) as training:
        training.wait_for("checkpoint_saved")
        s3.stop()
        try:
            training.wait_for("checkpoint_failed")
            assert_training_continues(training)
        finally:
            s3.start()
        training.wait_for("checkpoint_saved")
        s3.stop()
        roles = training.command.roles()
        roles["server-0"].kill()
        training.wait(lambda: not any(role.is_running() for role in roles.values()), "the end of all roles")
        s3.start()
        training.wait(training.command.roles, "the next generation")
        result = succeeded(training.finish())
    assert "NETWORK_CONNECTION" in result.stderr
    [restart] = report_of(training.run_dir)["restart_causes"]
    assert restart["cause"].startswith("server-0 was killed by SIGKILL")
    assert "restarting (generation 2) from step " in result.stderr
    assert_undisturbed(training.run_dir, undisturbed)
    assert_last_is_complete(checkpoints)


def test_run_in_process_survives_a_pause_an_outage_at_its_resume_and_one_until_its_end(
    workspace: Path, undisturbed: Path, s3: ObjectStore, checkpoints: str
) -> None:
    run_dir = workspace / "s3-run"
    options = checkpoint_option(checkpoints)
    with train(run_dir, *options, variables={"CROSSFADE_S3_TIMEOUT_SECONDS": "1"}) as training:
        training.wait_for("checkpoint_saved")
        with s3.paused():
            saved = len(training.events("checkpoint_saved"))
            for _ in range(3):
                assert_training_continues(training)
            assert len(training.events("checkpoint_saved")) <= saved + 1
        training.wait_for("checkpoint_saved")
        assert training.events("checkpoint_failed") == []
        training.command.process.kill()
    saved = training.events("checkpoint_saved")[-1]["step"]
    resume = ("train", "job.yaml", "--run-dir", run_dir, *options, "--resume")
    s3.stop()
    try:
        before = {path: path.read_bytes() for path in run_dir.iterdir() if path.is_file()}
        result = crossfade(*resume, cwd=workspace, variables=FAST_S3_ERRORS)
        assert result.returncode == 2
        [line] = result.stderr.splitlines()
        assert line.startswith(f"crossfade: error: checkpoint.path: {checkpoints} ")
        assert "NETWORK_CONNECTION" in line
        assert {path: path.read_bytes() for path in run_dir.iterdir() if path.is_file()} == before
    finally:
        s3.start()
    latest_checkpoint(checkpoints)  # once the server reads again, since the run below gives up soon
    known = len(records(run_dir))
    with train(run_dir, *options, "--resume", variables=FAST_S3_ERRORS) as training:
        training.wait_for("checkpoint_saved")
        s3.stop()
        try:
            training.wait_for("checkpoint_failed")
            result = succeeded(training.finish())
        finally:
            s3.start()
    [start] = [record for record in records(run_dir)[known:] if record.get("name") == "training"]
    assert start["step"] >= saved
    assert f"crossfade: the checkpoint of step {STEPS} was not written: {checkpoints}/step-" in result.stderr
    assert_undisturbed(run_dir, undisturbed)
    assert report_of(run_dir)["checkpoints"]["failed"] == len(training.events("checkpoint_failed"))
    # Earlier checkpoints are there, and the run can be resumed from them.
    succeeded(crossfade_here(*resume, cwd=workspace))
    assert_undisturbed(run_dir, undisturbed)
    assert_last_is_complete(checkpoints)


def test_wrong_s3_secret_is_rejected_before_an_earlier_run_is_touched(
    workspace: Path, checkpoints: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ("train", "job.yaml", "--run-dir", "secret", "--set", "train.max_steps=20")
    succeeded(crossfade_here(*run, cwd=workspace))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not the secret")
    for how in ("--overwrite", "--resume"):
        result = crossfade_here(*run, *checkpoint_option(checkpoints), how, cwd=workspace)
        assert result.returncode == 2
        [line] = result.stderr.splitlines()
        assert line.startswith(f"crossfade: error: checkpoint.path: {checkpoints} ")
        assert "access denied (403 SignatureDoesNotMatch)" in line
        assert "not the secret" not in line
        assert (workspace / "secret" / "report.json").exists()
