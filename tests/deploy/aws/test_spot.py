"""Spot interruption notices: reading them, and trainings that receive one."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from fake_imds import Metadata, running_metadata
from object_store import free_ports
from paced_training import Training, pace, paced
from run_results import assert_same_bits, report_of
from running_command import RunningCommand, messages, started, succeeded

from crossfade.deploy.aws.spot import SpotMonitor
from crossfade.kvstore.checkpoint.lifecycle import latest_checkpoint

ON_SERVERS = ("--servers", 2, "--workers", 1)
"""One worker gives the bits of a run in process, whatever the number of servers."""
STEP_SECONDS = 0.2
TOKEN = {"CROSSFADE_TOKEN": "the-token-of-these-tests"}
NOTICE = "EC2 terminates this spot instance at 2017-09-18T08:22:00Z"


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[Metadata]:
    with running_metadata() as metadata:
        for name, value in metadata.variables.items():
            monkeypatch.setenv(name, value)
        yield metadata


# ---- notices


def test_each_notice_and_recommendation_is_logged_once(metadata: Metadata) -> None:
    lines: list[str] = []
    monitor = SpotMonitor(lines.append)
    monitor.poll()
    assert (monitor.notice(), monitor.recommendations(), lines) == (None, 0, [])
    metadata.expire_tokens()
    metadata.recommend_rebalance("2020-10-27T08:22:00Z")
    monitor.poll()
    monitor.poll()
    assert (monitor.notice(), monitor.recommendations()) == (None, 1)
    metadata.recommend_rebalance("2020-10-27T09:00:00Z")
    metadata.interrupt("hibernate")
    monitor.poll()
    monitor.poll()
    assert monitor.recommendations() == 2
    assert monitor.notice() == "EC2 hibernates this spot instance at 2017-09-18T08:22:00Z"
    assert [line.partition(" at ")[0] for line in lines] == [
        "EC2 recommends rebalancing this spot instance (2020-10-27T08:22:00Z): writing a checkpoint",
        "EC2 hibernates this spot instance",
        "EC2 recommends rebalancing this spot instance (2020-10-27T09:00:00Z): writing a checkpoint",
    ]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ('"terminate"', 'expected action, time, but found "terminate"'),
        ('{"action": 1, "time": 2}', "expected action, time"),
        ("no JSON\x1b", "Expecting value"),
        (None, "the metadata service returned no token, but status 503"),
    ],
)
def test_malformed_or_missing_answer_is_logged_once_and_ignored(
    metadata: Metadata, answer: str | None, problem: str
) -> None:
    lines: list[str] = []
    monitor = SpotMonitor(lines.append)
    if answer is None:
        metadata.throttled = 2
    else:
        metadata.values["spot/instance-action"] = answer
    monitor.poll()
    monitor.poll()
    [line] = lines
    assert line.startswith(f"cannot read spot notices, retrying every 5 s: {metadata.endpoint[7:]}: {problem}")
    metadata.interrupt()
    monitor.poll()
    assert lines[1:] == [NOTICE, "spot notices can be read again"]
    assert monitor.notice() == NOTICE


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:1", "10.0.0.1", "http://host:port"])
def test_absent_service_or_invalid_endpoint_is_logged(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", endpoint)
    lines: list[str] = []
    SpotMonitor(lines.append).poll()
    assert [line.partition(",")[0] for line in lines] == ["cannot read spot notices"]


# ---- trainings


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write data and a job that saves checkpoints only on request and at the end."""
    folder = tmp_path_factory.mktemp("spot")
    data = write_planted(folder / "data")
    write_job(
        folder / "job.yaml",
        data,
        optimizer={"kind": "adagrad"},
        train={"epochs": 8, "eval_every_epochs": 4, "patience": None},
        checkpoint={"interval_seconds": None},
    )
    return folder


@pytest.fixture(scope="module")
def uninterrupted(workspace: Path) -> Path:
    """Train without interruptions, in process."""
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", "uninterrupted", cwd=workspace))
    return workspace / "uninterrupted"


def train(run_dir: Path, metadata: Metadata, *options: object) -> AbstractContextManager[Training]:
    """Start a paced training on a host with these metadata."""
    options = ("train", run_dir.parent / "job.yaml", *options, "--spot")
    return paced(*options, run_dir=run_dir, variables=metadata.variables | TOKEN, step_seconds=STEP_SECONDS)


def saved_step(checkpoints: Path) -> int:
    """Return the step of the newest checkpoint, which must be complete."""
    newest, skipped = latest_checkpoint(str(checkpoints))
    assert newest is not None
    assert skipped == []
    return newest.manifest.step


@pytest.mark.slow
def test_notice_ends_the_run_after_a_checkpoint_that_resumes_elsewhere(
    workspace: Path, uninterrupted: Path, metadata: Metadata
) -> None:
    # The checkpoints outlive the host; its run folder does not.
    path = ("--set", f"checkpoint.path={workspace / 'kept'}")
    with train(workspace / "taken", metadata, *path) as training:
        training.wait_for("step")
        metadata.recommend_rebalance()  # a reason for a checkpoint, not for stopping
        training.wait_for("checkpoint_saved")
        metadata.interrupt()
        result = training.command.finish()
    assert result.returncode == 75, result.stderr
    step = saved_step(workspace / "kept")
    assert 0 < step < report_of(uninterrupted)["steps"]
    assert messages(result.stderr)[-2:] == [
        f"crossfade: {NOTICE}",
        f"crossfade: stopped after step {step:,}, of which there is a checkpoint: {NOTICE}; resume with --resume",
    ]
    result = succeeded(crossfade_here("train", "job.yaml", "--run-dir", "elsewhere", *path, "--resume", cwd=workspace))
    assert f"crossfade: resuming from step {step}" in messages(result.stderr)
    assert_same_bits(workspace / "elsewhere", uninterrupted)


class Cluster:
    """A paced training on two hosts, 127.0.0.1 and another."""

    def __init__(self, workspace: Path, run: str) -> None:
        self.run_dir = workspace / run
        [port] = free_ports(1)
        self.join = f"127.0.0.1:{port}"
        self.options = (*ON_SERVERS, "--set", "cluster.hosts=2", "--set", f"cluster.coordinator_address={self.join}")

    def train(self, metadata: Metadata, *options: object) -> AbstractContextManager[Training]:
        return train(self.run_dir, metadata, *self.options, *options)

    def agent(self, address: str, metadata: Metadata) -> AbstractContextManager[RunningCommand]:
        options = ("agent", "--join", self.join, "--run-dir", self.run_dir, "--advertise-address", address, "--spot")
        release = self.run_dir.parent / f"{self.run_dir.name}.release"
        variables = pace(self.run_dir.parent, release, metadata.variables | TOKEN, step_seconds=STEP_SECONDS)
        return started(*options, cwd=self.run_dir.parent, variables=variables)


@pytest.mark.slow
@pytest.mark.cluster
def test_job_saves_before_a_host_is_reclaimed_and_resumes_with_another(
    workspace: Path, uninterrupted: Path, metadata: Metadata
) -> None:
    cluster = Cluster(workspace, "one-taken")
    with (
        running_metadata() as first_metadata,
        cluster.agent("127.0.0.2", metadata) as taken,
        cluster.train(first_metadata) as training,
    ):
        training.wait_for("step")
        first_metadata.recommend_rebalance()
        training.wait_for("checkpoint_saved")
        metadata.interrupt()
        result = taken.finish()
        assert result.returncode == 75, result.stderr
        assert messages(result.stderr)[-1] == f"crossfade: the job continues without this host: {NOTICE}"
        step = saved_step(training.run_dir / "checkpoints")
        assert [record["step"] for record in training.events("stopped")] == [step]
        assert training.command.process.poll() is None
        with running_metadata() as new_metadata, cluster.agent("127.0.0.3", new_metadata) as new:
            result = succeeded(training.finish())
            succeeded(new.finish())
    report = report_of(training.run_dir)
    assert report["restarts"] == 1
    [restart] = report["restart_causes"]
    assert restart["step"] == step
    assert restart["cause"].endswith(f"(127.0.0.2) received an interruption notice: {NOTICE}")
    assert f"restarting (generation 2) from step {step}" in messages(result.stderr)[-1]
    assert_same_bits(training.run_dir, uninterrupted)
