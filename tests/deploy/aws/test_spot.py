"""Spot notices: what is heard of them, and trainings that get one in the middle."""

import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from cluster_data import write_job, write_planted
from fake_imds import Metadata, running_metadata
from object_store import free_ports
from paced_training import Training, pace, paced
from run_results import assert_same_bits, report_of
from running_command import RunningCommand, crossfade, messages, started, succeeded

from deploy.aws.metadata import InstanceMetadata
from deploy.aws.spot import SpotMonitor, monitor_spot
from kvstore.checkpoint.lifecycle import latest_checkpoint
from kvstore.errors import InputError, StorageUnavailableError

ON_SERVERS = ("--servers", 2, "--workers", 2)
TOKEN = {"CROSSFADE_TOKEN": "the-token-of-these-tests"}
NOTICE = "EC2 terminates this spot instance at 2017-09-18T08:22:00Z"


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    with running_metadata() as metadata:
        yield metadata


# ---- what is heard


def test_metadata_are_read_with_a_token_that_is_fetched_anew_when_it_has_run_out(metadata: Metadata) -> None:
    metadata.says["local-ipv4"] = "10.0.0.5"
    client = InstanceMetadata(metadata.endpoint)
    assert client.get("local-ipv4") == "10.0.0.5"
    assert client.get("spot/instance-action") is None
    assert len(metadata.tokens) == 1
    metadata.forget_tokens()
    assert client.get("local-ipv4") == "10.0.0.5"
    assert len(metadata.tokens) == 1


@pytest.mark.parametrize("endpoint", ["10.0.0.1", "https://10.0.0.1", "http://", "http://host:port", "http://h/path"])
def test_an_endpoint_that_is_none_is_refused(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", endpoint)
    with pytest.raises(InputError, match=r"expected a URL such as http://169\.254\.169\.254, but found"):
        InstanceMetadata.of_this_host()


def test_a_service_that_must_not_be_asked_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(InputError, match="AWS_EC2_METADATA_DISABLED is true"), monitor_spot(print):
        pass


def test_a_service_that_is_not_there_or_says_nothing_is_given_up_in_time() -> None:
    [port] = free_ports(1)
    with pytest.raises(StorageUnavailableError, match=r"cannot be reached: .*refused"):
        InstanceMetadata(f"http://127.0.0.1:{port}").get("local-ipv4")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(StorageUnavailableError, match="no answer in time"):
            InstanceMetadata(endpoint, timeout_seconds=0.1).get("local-ipv4")


def test_notices_and_recommendations_are_told_once_each(metadata: Metadata) -> None:
    said: list[str] = []
    watch = SpotMonitor(InstanceMetadata(metadata.endpoint), said.append)
    watch.poll()
    assert (watch.notice(), watch.recommendations(), said) == (None, 0, [])
    metadata.recommend_leaving("2020-10-27T08:22:00Z")
    watch.poll()
    watch.poll()
    assert (watch.notice(), watch.recommendations()) == (None, 1)
    metadata.recommend_leaving("2020-10-27T09:00:00Z")
    metadata.take_away("hibernate")
    watch.poll()
    watch.poll()
    assert watch.recommendations() == 2
    assert watch.notice() == "EC2 hibernates this spot instance at 2017-09-18T08:22:00Z"
    assert [line.split(" at ")[0] for line in said] == [
        "EC2 says",
        "EC2 hibernates this spot instance",
        "EC2 says",
    ]


@pytest.mark.parametrize("answer", ["", "[]", '"terminate"', '{"action": "terminate"}', '{"action": 1, "time": 2}'])
def test_an_answer_that_makes_no_sense_is_told_once_and_does_no_harm(metadata: Metadata, answer: str) -> None:
    said: list[str] = []
    watch = SpotMonitor(InstanceMetadata(metadata.endpoint), said.append)
    metadata.says["spot/instance-action"] = answer
    watch.poll()
    watch.poll()
    assert len(said) == 1
    assert said[0].startswith("no spot notice can be seen now")
    metadata.take_away()
    watch.poll()
    assert said[1:] == [NOTICE, "spot notices can be seen again"]
    assert watch.notice() == NOTICE


# ---- trainings


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a job, whose checkpoints are written when somebody asks for them, and at the end."""
    folder = tmp_path_factory.mktemp("spot")
    data = write_planted(folder / "data")
    write_job(
        folder / "job.yaml",
        data,
        optimizer={"kind": "adagrad"},
        train={"epochs": 40, "eval_every_epochs": 20, "patience": None},
        checkpoint={"interval_seconds": None},
    )
    return folder


@pytest.fixture(scope="module")
def undisturbed(place: Path) -> Path:
    """A run that nothing disturbs, in process."""
    succeeded(crossfade("train", "job.yaml", "--run-dir", "undisturbed", cwd=place))
    return place / "undisturbed"


@pytest.fixture(scope="module")
def undisturbed_on_servers(place: Path) -> Path:
    """The same by two workers on two servers."""
    succeeded(crossfade("train", "job.yaml", "--run-dir", "undisturbed-2", *ON_SERVERS, cwd=place))
    return place / "undisturbed-2"


def train(run_dir: Path, metadata: Metadata, *options: object) -> AbstractContextManager[Training]:
    """Begin a training that takes its time, on a host with these metadata."""
    options = ("train", run_dir.parent / "job.yaml", *options, "--spot")
    return paced(*options, run_dir=run_dir, variables=metadata.variables | TOKEN)


def saved_step(checkpoints: Path) -> int:
    """The step of the newest checkpoint, which must be whole."""
    newest, skipped = latest_checkpoint(str(checkpoints))
    assert newest is not None
    assert skipped == []
    return newest.manifest.step


@pytest.mark.slow
def test_a_notice_ends_a_run_after_a_checkpoint_from_which_it_goes_on_elsewhere(
    place: Path, undisturbed: Path, metadata: Metadata
) -> None:
    # The checkpoints outlive the host; its run folder does not.
    to = ("--set", f"checkpoint.path={place / 'kept'}")
    with train(place / "taken", metadata, *to) as training:
        training.wait_for("step")
        metadata.take_away()
        result = training.command.finish()
    assert result.returncode == 75, result.stderr
    step = saved_step(place / "kept")
    assert 0 < step < report_of(undisturbed)["steps"]
    assert messages(result.stderr)[-2:] == [
        f"crossfade: {NOTICE}",
        f"crossfade: stopped after step {step:,}, of which there is a checkpoint: {NOTICE}; resume with --resume",
    ]
    result = succeeded(crossfade("train", "job.yaml", "--run-dir", "elsewhere", *to, "--resume", cwd=place))
    assert f"crossfade: resuming from step {step}" in messages(result.stderr)
    assert_same_bits(place / "elsewhere", undisturbed)


@pytest.mark.slow
def test_a_recommendation_costs_a_checkpoint_and_nothing_else(
    place: Path, undisturbed: Path, metadata: Metadata
) -> None:
    with train(place / "at-risk", metadata) as training:
        training.wait_for("step")
        metadata.recommend_leaving()
        training.wait_for("checkpoint_saved")
        succeeded(training.finish())
    assert len(training.events("checkpoint_saved")) == 2  # the other is that of the end
    assert_same_bits(place / "at-risk", undisturbed)


@pytest.mark.slow
def test_a_host_that_is_none_of_ec2_trains_all_the_same(place: Path, metadata: Metadata) -> None:
    [metadata_port] = free_ports(1)
    metadata.endpoint = f"http://127.0.0.1:{metadata_port}"
    options = ("train", "job.yaml", "--run-dir", "at-home", "--spot", "--set", "train.epochs=1")
    result = succeeded(crossfade(*options, cwd=place, variables=metadata.variables))
    assert sum("no spot notice can be seen now" in line for line in messages(result.stderr)) == 1


class Cluster:
    """A training on two hosts, 127.0.0.1 and others, that takes its time."""

    def __init__(self, place: Path, run: str) -> None:
        self.run_dir = place / run
        [port] = free_ports(1)
        self.join = f"127.0.0.1:{port}"
        self.options = (*ON_SERVERS, "--set", "cluster.hosts=2", "--set", f"cluster.coordinator_address={self.join}")

    def train(self, metadata: Metadata, *options: object) -> AbstractContextManager[Training]:
        return train(self.run_dir, metadata, *self.options, *options)

    def agent(self, address: str, metadata: Metadata) -> AbstractContextManager[RunningCommand]:
        options = ("agent", "--join", self.join, "--run-dir", self.run_dir, "--advertise-address", address, "--spot")
        release = self.run_dir.parent / f"{self.run_dir.name}.release"
        variables = pace(self.run_dir.parent, release, metadata.variables | TOKEN)
        return started(*options, cwd=self.run_dir.parent, variables=variables)


@pytest.mark.slow
@pytest.mark.cluster
def test_a_job_saves_before_one_of_its_hosts_is_taken_and_goes_on_with_another(
    place: Path, undisturbed_on_servers: Path, metadata: Metadata
) -> None:
    cluster = Cluster(place, "one-taken")
    with (
        running_metadata() as of_the_first,
        cluster.agent("127.0.0.2", metadata) as taken,
        cluster.train(of_the_first) as training,
    ):
        training.wait_for("step")
        of_the_first.recommend_leaving()  # which workers on both hosts hear, and the first of them heeds
        training.wait_for("checkpoint_saved")
        metadata.take_away()
        result = taken.finish()
        assert result.returncode == 75, result.stderr
        assert messages(result.stderr)[-1] == f"crossfade: the job continues without this host: {NOTICE}"
        step = saved_step(training.run_dir / "checkpoints")
        assert [record["step"] for record in training.events("stopped")] == [step]
        assert training.command.process.poll() is None
        with running_metadata() as of_the_new_one, cluster.agent("127.0.0.3", of_the_new_one) as new:
            result = succeeded(training.finish())
            succeeded(new.finish())
    report = report_of(training.run_dir)
    assert report["restarts"] == 1
    [restart] = report["restart_causes"]
    assert restart["step"] == step
    assert restart["cause"].endswith(f"(127.0.0.2) got an interruption notice: {NOTICE}")
    assert f"restarting (generation 2) from step {step}" in messages(result.stderr)[-1]
    assert_same_bits(training.run_dir, undisturbed_on_servers)


@pytest.mark.slow
@pytest.mark.cluster
def test_when_the_coordinators_host_is_taken_the_other_agents_are_told_to_join_the_next_one(
    place: Path, undisturbed_on_servers: Path, metadata: Metadata
) -> None:
    cluster = Cluster(place, "first-taken")
    with running_metadata() as other, cluster.agent("127.0.0.2", other) as agent:
        with cluster.train(metadata) as training:
            for _ in range(3):  # one a second: so the coordinator has heard of them too
                training.wait_for("step")
            metadata.take_away()
            result = training.command.finish()
        assert result.returncode == 75, result.stderr
        assert "of which there is a checkpoint" in result.stderr, result.stderr
        step = saved_step(training.run_dir / "checkpoints")
        assert messages(result.stderr)[-1] == (
            f"crossfade: stopped after step {step:,}, of which there is a checkpoint: {NOTICE}; resume with --resume"
        )
        result = agent.finish()
        assert result.returncode == 75, result.stderr
        assert messages(result.stderr)[-1].startswith(f"crossfade: the job was stopped after step {step:,}, which")
    with (
        running_metadata() as of_the_next_one,
        cluster.agent("127.0.0.2", of_the_next_one),
        cluster.train(of_the_next_one, "--resume") as training,
    ):
        succeeded(training.finish())
    assert_same_bits(training.run_dir, undisturbed_on_servers)
