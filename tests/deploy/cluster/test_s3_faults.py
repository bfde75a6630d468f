"""Outages of S3: they cost checkpoints or time, not the run."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_runs import (
    FAST_S3_ERRORS,
    ON_ONE_SERVER,
    assert_last_is_complete,
    assert_training_continues,
    assert_undisturbed,
    checkpoint_option,
    train,
)
from object_store import ObjectStore, running_object_store
from run_results import report_of
from running_command import succeeded

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
