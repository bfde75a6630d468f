"""Two SageMaker training containers on loopback addresses: stopped together, then resumed by two others.

They share nothing but S3: the job comes from the coordinator.
"""

import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from object_store import ObjectStore, running_object_store
from paced_training import Training, pace
from running_command import RunningCommand, started, succeeded
from sagemaker_folders import JOB, SECTIONS, TOKEN, assert_same_model, parameters_of, prepare

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

START_SECONDS = 150.0
END_SECONDS = 240.0
EPOCHS = 8
STEP_SECONDS = 0.3


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_planted(tmp_path / "data")


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[ObjectStore]:
    (tmp_path / "store").mkdir()
    with running_object_store(tmp_path / "store") as server:
        yield server


@contextmanager
def containers(
    workspace: Path, name: str, parameters: Mapping[str, str], variables: Mapping[str, str]
) -> Iterator[tuple[Training, RunningCommand]]:
    """Start two containers whose host names are loopback addresses."""
    hosts = ("127.0.0.1", "127.0.0.2")
    bases = [prepare(workspace / f"{name}-{number}", parameters, hosts, own) for number, own in enumerate(hosts, 1)]
    for base in bases:
        (base / "checkpoints").rmdir()
    release = workspace / "release"
    with ExitStack() as stack, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
        probe.close()
        own = {**variables, "CROSSFADE_TOKEN": TOKEN, "CROSSFADE_PORT": port}
        environment = pace(workspace, release, own, step_seconds=STEP_SECONDS)
        # The second host starts first: it waits for the other.
        second, first = (
            stack.enter_context(started("train", "--sagemaker", base, cwd=workspace, variables=environment))
            for base in reversed(bases)
        )
        yield Training(first, bases[0] / "run" / "127.0.0.1", release), second


def test_two_stopped_hosts_are_resumed_by_two_others(tmp_path: Path, data: Path, s3: ObjectStore) -> None:
    sections = {**SECTIONS, "train": {**SECTIONS["train"], "epochs": EPOCHS, "eval_every_epochs": 1}}
    write_job(tmp_path / "job.yaml", data, **sections)
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", "uninterrupted", cwd=tmp_path))
    data_uri, checkpoint_uri = s3.upload(data, "interactions"), s3.uri("checkpoints")
    changed = {"train.epochs": EPOCHS, "train.eval_every_epochs": 1, "cluster.workers": 1}  # as in process, bit for bit
    parameters = parameters_of({**JOB, **changed, "data.path": data_uri, "checkpoint.path": checkpoint_uri})

    with containers(tmp_path, "first", parameters, s3.variables) as (training, other):
        training.wait(lambda: any("valid" in record for record in training.events("epoch")), "an epoch", START_SECONDS)
        training.wait_for("checkpoint_saved")
        for command in (other, training.command):
            command.process.send_signal(signal.SIGTERM)
        assert training.command.finish(END_SECONDS).returncode == 143
        assert other.finish(END_SECONDS).returncode == 143

    with containers(tmp_path, "new", parameters, s3.variables) as (training, other):
        (tmp_path / "release").touch()
        result = succeeded(training.command.finish(END_SECONDS))
        succeeded(other.finish(END_SECONDS))
    assert "resuming from step" in result.stderr
    assert_same_model(tmp_path / "new-1" / "model", tmp_path / "uninterrupted")
    assert list((tmp_path / "new-2" / "model").iterdir()) == []
    assert {path.name for path in (tmp_path / "new-2" / "run" / "127.0.0.2").iterdir()} == {
        *("job.yaml", "run.json", "logs", "metrics"),
    }
    logs = tmp_path / "new-2" / "output" / "data" / "127.0.0.2" / "logs"
    assert sorted(path.name for path in logs.iterdir()) == ["server-1.log"]
    assert not list(tmp_path.rglob("failure"))
