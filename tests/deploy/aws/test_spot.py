"""Spot interruption notices: reading them, and a training that receives one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from fake_imds import Metadata, running_metadata
from paced_training import paced
from run_results import assert_same_bits, report_of
from running_command import messages, succeeded

from crossfade.deploy.aws.spot import SpotMonitor
from crossfade.kvstore.checkpoint.lifecycle import latest_checkpoint

NOTICE = "EC2 terminates this spot instance at 2017-09-18T08:22:00Z"


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[Metadata]:
    with running_metadata() as metadata:
        for name, value in metadata.variables.items():
            monkeypatch.setenv(name, value)
        yield metadata


def test_notice_is_logged_once(metadata: Metadata) -> None:
    lines: list[str] = []
    monitor = SpotMonitor(lines.append)
    monitor.poll()
    assert (monitor.notice(), lines) == (None, [])
    metadata.expire_tokens()
    metadata.interrupt("hibernate")
    monitor.poll()
    monitor.poll()
    assert monitor.notice() == "EC2 hibernates this spot instance at 2017-09-18T08:22:00Z"
    assert lines == [monitor.notice()]


@pytest.mark.slow
def test_notice_ends_the_run_after_a_checkpoint_that_resumes_elsewhere(tmp_path: Path, metadata: Metadata) -> None:
    sections = {"train": {"epochs": 8, "eval_every_epochs": 4, "patience": None}, "optimizer": {"kind": "adagrad"}}
    write_job(
        tmp_path / "job.yaml", write_planted(tmp_path / "data"), **sections, checkpoint={"interval_seconds": None}
    )
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", "uninterrupted", cwd=tmp_path))
    # The checkpoints outlive the host; its run folder does not.
    path = ("--set", f"checkpoint.path={tmp_path / 'kept'}")
    options = ("train", tmp_path / "job.yaml", *path, "--spot")
    with paced(*options, run_dir=tmp_path / "taken", variables=metadata.variables, step_seconds=0.2) as training:
        training.wait_for("step")
        metadata.interrupt()
        result = training.command.finish()
    assert result.returncode == 75, result.stderr
    newest, skipped = latest_checkpoint(str(tmp_path / "kept"))
    assert newest is not None
    step = newest.manifest.step
    assert skipped == []
    assert 0 < step < report_of(tmp_path / "uninterrupted")["steps"]
    assert messages(result.stderr)[-2:] == [
        f"crossfade: {NOTICE}",
        f"crossfade: stopped after step {step:,}, of which there is a checkpoint: {NOTICE}; resume with --resume",
    ]
    result = succeeded(crossfade_here("train", "job.yaml", "--run-dir", "elsewhere", *path, "--resume", cwd=tmp_path))
    assert f"crossfade: resuming from step {step}" in messages(result.stderr)
    assert_same_bits(tmp_path / "elsewhere", tmp_path / "uninterrupted")
