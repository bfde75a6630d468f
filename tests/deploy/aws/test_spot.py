"""Spot interruption notices: reading them, and trainings that receive one."""

import socket
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

from crossfade.base.errors import InputError, StorageUnavailableError
from crossfade.deploy.aws.metadata import InstanceMetadata
from crossfade.deploy.aws.spot import SpotMonitor, monitor_spot
from crossfade.kvstore.checkpoint.lifecycle import latest_checkpoint

ON_SERVERS = ("--servers", 2, "--workers", 1)
"""One worker gives the bits of a run in process, whatever the number of servers."""
STEP_SECONDS = 0.2
TOKEN = {"CROSSFADE_TOKEN": "the-token-of-these-tests"}
NOTICE = "EC2 terminates this spot instance at 2017-09-18T08:22:00Z"


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    with running_metadata() as metadata:
        yield metadata


# ---- notices


def test_expired_metadata_token_is_renewed(metadata: Metadata) -> None:
    metadata.values["local-ipv4"] = "10.0.0.5"
    client = InstanceMetadata(metadata.endpoint)
    assert client.get("local-ipv4") == "10.0.0.5"
    assert client.get("spot/instance-action") is None
    assert len(metadata.tokens) == 1
    metadata.expire_tokens()
    assert client.get("local-ipv4") == "10.0.0.5"
    assert len(metadata.tokens) == 1


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("AWS_EC2_METADATA_DISABLED", "true", "AWS_EC2_METADATA_DISABLED is true"),
        *[
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT", value, r"expected a URL such as http://169\.254\.169\.254, but found")
            for value in ("10.0.0.1", "https://10.0.0.1", "http://", "http://host:port", "http://h/path", "http://[::1")
        ],
    ],
)
def test_disabled_service_or_invalid_endpoint_is_rejected(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, problem: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=problem), monitor_spot(print):
        pass


def test_absent_or_silent_metadata_service_times_out() -> None:
    [port] = free_ports(1)
    with pytest.raises(StorageUnavailableError, match=r"cannot be reached: .*refused"):
        InstanceMetadata(f"http://127.0.0.1:{port}").get("local-ipv4")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(StorageUnavailableError, match="timed out"):
            InstanceMetadata(endpoint, timeout_seconds=0.1).get("local-ipv4")


def test_host_that_boots_asks_again_while_its_metadata_service_does_not_answer(metadata: Metadata) -> None:
    metadata.values["local-ipv4"] = "10.0.0.5"
    metadata.throttled = 3
    client = InstanceMetadata(metadata.endpoint)
    with pytest.raises(StorageUnavailableError, match="no token, but status 503"):
        client.get_when_ready("local-ipv4", seconds=0)
    assert client.get_when_ready("local-ipv4", pause_seconds=0.01) == "10.0.0.5"
    assert metadata.throttled == 0


@pytest.mark.parametrize(
    "answer", ["", "[]", '"terminate"', '{"action": "terminate"}', '{"action": 1, "time": 2}', None]
)
def test_malformed_or_missing_answer_is_logged_once_and_ignored(metadata: Metadata, answer: str | None) -> None:
    lines: list[str] = []
    monitor = SpotMonitor(InstanceMetadata(metadata.endpoint), lines.append)
    if answer is None:
        metadata.throttled = 2
    else:
        metadata.values["spot/instance-action"] = answer
    monitor.poll()
    monitor.poll()
    assert [line.partition(",")[0] for line in lines] == ["cannot read spot notices"]
    metadata.interrupt()
    monitor.poll()
    assert lines[1:] == [NOTICE, "spot notices can be read again"]
    monitor.poll()
    assert (monitor.notice(), len(lines)) == (NOTICE, 3)


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
