"""Runs on EC2 end to end: the command, moto's AWS, and processes that run the instances' real user data."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess
from unittest import mock

import pytest
from aws_server import AwsServer
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from ec2_leftovers import leftovers
from ec2_machines import Machine, Machines, running_machines
from object_store import BUCKET, ObjectStore
from paced_training import pace
from pyarrow import fs
from run_results import assert_same_bits
from running_command import records, started, succeeded
from submitting_ec2 import submitted_run
from waiting import wait_until

from crossfade.deploy.aws.ec2 import runs, stack

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

SECONDS = 240.0
TYPE = ("--instance-type", "r6i.large")
ON_TWO = ("--hosts", 2, "--servers", 2, "--workers", 1)
"""One worker gives the bits of a run in process, whatever the number of servers."""
SECTIONS = {
    "optimizer": {"kind": "adagrad"},
    "train": {"epochs": 8, "eval_every_epochs": 4, "patience": None},
    "checkpoint": {"interval_seconds": None},
}


@pytest.fixture
def aws(server: AwsServer) -> AwsServer:
    server.reset()
    return server


@pytest.fixture
def variables(aws: AwsServer, object_store: ObjectStore) -> dict[str, str]:
    """Return the environment of a client, with a real S3 server: moto does not support all requests of a training."""
    keys = {name: value for name, value in object_store.variables.items() if "KEY" in name}
    return aws.variables | keys | {"AWS_ENDPOINT_URL_S3": object_store.endpoint}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, object_store: ObjectStore) -> Path:
    """Write a job with a dataset on S3."""
    folder = tmp_path_factory.mktemp("ec2")
    data = write_planted(folder / "data")
    path = object_store.upload(data, "ec2/data")
    write_job(folder / "job.yaml", path, **SECTIONS)
    write_job(folder / "local.yaml", data, **SECTIONS)
    return folder


@pytest.fixture
def machines(aws: AwsServer, object_store: ObjectStore, workspace: Path, tmp_path: Path) -> Iterator[Machines]:
    variables = {"AWS_ENDPOINT_URL_S3": object_store.endpoint}
    environment = pace(workspace, workspace / "release", variables, step_seconds=0.2)
    with running_machines(aws, tmp_path / "machines", environment) as machines:
        yield machines


def submission(*options: object) -> tuple[object, ...]:
    output = ("--output", f"s3://{BUCKET}/ec2/runs", "--image", "registry.example/crossfade:cpu", "--poll-seconds", 0.5)
    return ("submit", "ec2", "job.yaml", *output, *TYPE, *options)


def submit_here(workspace: Path, variables: dict[str, str], *options: object) -> CompletedProcess[str]:
    """Run the command in this process, with short pauses while it creates and deletes resources."""
    with (
        mock.patch.dict(os.environ, variables),
        mock.patch.object(stack, "POLL_SECONDS", 0.1),
        mock.patch.object(runs, "LOG_SECONDS", 1.0),
    ):
        return crossfade_here(*submission(*options), cwd=workspace)


def objects(object_store: ObjectStore, prefix: str) -> dict[str, bytes]:
    """Return the objects below ``prefix``, by the rest of their keys."""
    client, base = object_store.client(), f"{BUCKET}/{prefix}"
    files = client.get_file_info(fs.FileSelector(base, recursive=True, allow_not_found=True))
    return {
        info.path.removeprefix(base): client.open_input_stream(info.path).read()
        for info in files
        if info.type == fs.FileType.File
    }


def has_trained(machine: Machine) -> bool:
    """Return whether the run of this first host has taken a step; fail once the host is off."""
    assert not machine.is_off, machine.console
    return any(record["event"] == "step" for record in records(machine.folder / "run"))


def test_run_whose_hosts_are_reclaimed_equals_an_uninterrupted_run(
    workspace: Path, aws: AwsServer, object_store: ObjectStore, variables: dict[str, str], machines: Machines
) -> None:
    with started(*submission(*ON_TWO, "--spot"), cwd=workspace, variables=variables) as command:
        hosts = machines.of("head"), machines.of("worker")

        def has_begun() -> bool:
            assert command.process.poll() is None, (command.finish(), [host.console for host in hosts])
            return has_trained(hosts[0])

        wait_until(has_begun, "training on both", seconds=SECONDS)
        for host, last in zip(hosts[::-1], ("the job continues without this host", "with exit code 75"), strict=True):
            host.metadata.interrupt()
            wait_until(lambda host=host, last=last: last in host.console, last, SECONDS)
            if host.role == "worker":
                host.stop_container()  # as EC2 does when it shuts the instance down
            wait_until(lambda host=host: machines.of(host.role) is not host, f"another {host.role}", SECONDS)
        assert aws.calls_of("TerminateInstanceInAutoScalingGroup") == [], (
            "they stay in their groups, which replace them"
        )
        (workspace / "release").touch()
        result = command.finish(SECONDS)
    console = "\n".join(machine.console for machine in machines.all)
    assert result.returncode == 0, f"{result.stderr}\n{console}"
    assert leftovers(aws) == []
    assert all(machine.is_off or machine.mark.processes() == [] for machine in machines.all)
    succeeded(crossfade_here("train", "local.yaml", "--run-dir", "local", cwd=workspace))
    for name, body in objects(object_store, f"ec2/runs/{submitted_run(aws)}/result/").items():
        path = workspace / "fetched" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    assert "resuming from step" in console
    assert_same_bits(workspace / "fetched", workspace / "local")


def test_ctrl_c_writes_a_checkpoint_and_deletes_all_resources(
    workspace: Path, aws: AwsServer, object_store: ObjectStore, variables: dict[str, str], machines: Machines
) -> None:
    def interrupt_when_training() -> None:
        machine = machines.of("head")
        wait_until(lambda: has_trained(machine), "training", seconds=SECONDS)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt_when_training, daemon=True)
    thread.start()
    result = submit_here(workspace, variables)
    thread.join()
    assert result.returncode == 130, f"{result.stderr}\n{machines.of('head').console}"
    assert "stopped by SIGTERM after step" in result.stdout, "the last lines of its log"
    [group] = aws.client("logs").describe_log_groups(logGroupNamePrefix=stack.LOG_GROUP)["logGroups"]
    assert group["retentionInDays"] == 90
    assert leftovers(aws) == []
    names = objects(object_store, f"ec2/runs/{submitted_run(aws)}/checkpoints/")
    assert any(name.endswith("manifest.json") for name in names), names
