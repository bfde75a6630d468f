"""Runs on EC2 end to end: the command, moto's AWS, and processes that run the instances' real user data."""

import os
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from aws_server import AwsServer, running_aws
from cluster_data import write_job, write_planted
from ec2_leftovers import leftovers
from ec2_machines import Machines, running_machines
from object_store import BUCKET, ObjectStore, running_object_store
from paced_training import pace
from placement_groups import PlacementGroups
from pyarrow import fs
from run_results import assert_same_bits
from running_command import RunningCommand, crossfade, started, succeeded
from waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

SECONDS = 240.0
MAX_HOURS = 720
TYPE = ("--instance-type", "r6i.large")
ON_TWO = ("--hosts", 2, "--servers", 2, "--workers", 1)
"""One worker gives the bits of a run in process, whatever the number of servers."""
SECTIONS = {
    "optimizer": {"kind": "adagrad"},
    "train": {"epochs": 8, "eval_every_epochs": 4, "patience": None},
    "checkpoint": {"interval_seconds": None},
}


@pytest.fixture(scope="module")
def aws() -> Iterator[AwsServer]:
    with running_aws() as aws:
        PlacementGroups(aws)
        aws.answer("GetProducts", {"FormatVersion": "aws_v1", "PriceList": []})
        yield aws


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """Start a real S3 server, since moto does not support all requests of a training."""
    with running_object_store(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="module")
def variables(aws: AwsServer, s3: ObjectStore) -> dict[str, str]:
    """Return the environment of a client."""
    keys = {name: value for name, value in s3.variables.items() if "KEY" in name}
    return aws.variables | keys | {"AWS_ENDPOINT_URL_S3": s3.endpoint}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, s3: ObjectStore) -> Path:
    """Write a job with a dataset on S3."""
    folder = tmp_path_factory.mktemp("ec2")
    data = write_planted(folder / "data")
    s3.upload(data, "data")
    write_job(folder / "job.yaml", f"s3://{BUCKET}/data", **SECTIONS)
    write_job(folder / "local.yaml", data, **SECTIONS)
    return folder


@pytest.fixture
def machines(aws: AwsServer, s3: ObjectStore, workspace: Path, tmp_path: Path) -> Iterator[Machines]:
    variables = {"AWS_ENDPOINT_URL_S3": s3.endpoint}
    environment = pace(workspace, workspace / "release", variables, step_seconds=0.2)
    with running_machines(aws, tmp_path / "machines", environment) as machines:
        yield machines


def submit(workspace: Path, variables: dict[str, str], *options: object) -> AbstractContextManager[RunningCommand]:
    """Start the command. The hours of its instances count from their boot, which is that of this machine."""
    output = ("--output", f"s3://{BUCKET}/runs", "--image", "registry.example/crossfade:cpu", "--poll-seconds", 0.5)
    output += ("--max-hours", MAX_HOURS)
    return started("submit", "ec2", "job.yaml", *output, *TYPE, *options, cwd=workspace, variables=variables)


def objects(s3: ObjectStore, prefix: str) -> dict[str, bytes]:
    """Return the objects below ``prefix``, by the rest of their keys."""
    client, base = s3.client(), f"{BUCKET}/{prefix}"
    files = client.get_file_info(fs.FileSelector(base, recursive=True, allow_not_found=True))
    return {
        info.path.removeprefix(base): client.open_input_stream(info.path).read()
        for info in files
        if info.type == fs.FileType.File
    }


def name_of_running_run(aws: AwsServer) -> str:
    """Return the name of the only run with running instances."""
    response = aws.client("ec2").describe_instances(Filters=[{"Name": "instance-state-name", "Values": ["running"]}])
    tags: list[dict[str, Any]] = [tag for r in response["Reservations"] for i in r["Instances"] for tag in i["Tags"]]
    [run] = {tag["Value"] for tag in tags if tag["Key"] == "crossfade:run"}
    return run


def has_trained(s3: ObjectStore, run: str, generation: int) -> bool:
    """Return whether the log has a step of this generation."""
    text = b"".join(objects(s3, f"runs/{run}/log/0/").values()).decode()
    log = text if generation == 1 else text.partition(f"(generation {generation})")[2]
    return "batch_loss=" in log


def test_run_whose_hosts_are_reclaimed_one_by_one_equals_an_uninterrupted_run(
    workspace: Path, aws: AwsServer, s3: ObjectStore, variables: dict[str, str], machines: Machines
) -> None:
    with submit(workspace, variables, *ON_TWO, "--spot") as command:
        first, second = machines.of(0), machines.of(1)
        run = name_of_running_run(aws)

        def has_begun() -> bool:
            assert command.process.poll() is None, (command.finish(), first.console, second.console)
            return has_trained(s3, run, 1)

        wait_until(has_begun, "training on both", seconds=SECONDS)
        second.metadata.interrupt()
        wait_until(lambda: second.is_off, "the second host's end", seconds=SECONDS)
        assert "docker run" in second.calls[-2]
        third = machines.of(1, SECONDS) if machines.of(1) is not second else None
        wait_until(lambda: machines.of(1) is not second, "another second host", seconds=SECONDS)
        wait_until(lambda: has_trained(s3, run, 2), "training with it", seconds=SECONDS)
        assert third is None or third is machines.of(1)
        first.metadata.interrupt()
        wait_until(lambda: machines.of(0) is not first, "another first host", seconds=SECONDS)
        (workspace / "release").touch()
        result = command.finish(SECONDS)
    console = "\n".join(machine.console for machine in machines.all)
    assert result.returncode == 0, f"{result.stderr}\n{console}"
    assert leftovers(aws) == []
    assert all(machine.is_off or machine.mark.processes() == [] for machine in machines.all)
    succeeded(crossfade("train", "local.yaml", "--run-dir", "local", cwd=workspace))
    for name, body in objects(s3, f"runs/{run}/result/").items():
        path = workspace / "fetched" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    assert_same_bits(workspace / "fetched", workspace / "local")


def test_ctrl_c_writes_a_checkpoint_and_deletes_all_resources(
    workspace: Path, aws: AwsServer, s3: ObjectStore, variables: dict[str, str], machines: Machines
) -> None:
    with submit(workspace, variables) as command:
        machine = machines.of(0)
        run = name_of_running_run(aws)
        wait_until(lambda: has_trained(s3, run, 1), "training", seconds=SECONDS)
        command.process.send_signal(signal.SIGINT)
        result = command.finish(SECONDS)
    assert result.returncode == 130, (result.stderr, machine.console)
    assert "stopped by SIGTERM after step" in result.stdout
    assert leftovers(aws) == []
    names = objects(s3, f"runs/{run}/checkpoints/")
    assert any(name.endswith("manifest.json") for name in names), names


def test_failed_job_ends_with_its_exit_code_and_message(
    workspace: Path, aws: AwsServer, s3: ObjectStore, variables: dict[str, str], machines: Machines
) -> None:
    with submit(workspace, variables, "--set", f"data.path=s3://{BUCKET}/nothing-here") as command:
        result = command.finish(SECONDS)
    assert result.returncode == 2, result.stderr
    assert "no such file" in result.stdout or "manifest.json" in result.stdout, result.stdout
    assert "the run has ended with exit code 2" in result.stderr
    assert leftovers(aws) == []
    [machine] = machines.all
    wait_until(lambda: machine.is_off or not machine.mark.processes(), "the machine's end")


def test_host_that_cannot_pull_its_image_fails_the_run_with_the_reason(
    workspace: Path, aws: AwsServer, variables: dict[str, str], machines: Machines, tmp_path: Path
) -> None:
    (tmp_path / "machines" / "no-image").touch()
    with submit(workspace, variables) as command:
        result = command.finish(SECONDS)
    assert result.returncode == 1, result.stderr
    assert "host 0 failed: cannot pull the image registry.example/crossfade:cpu: manifest unknown" in result.stderr
    assert leftovers(aws) == []
    [machine] = machines.all
    assert machine.calls[0].startswith(f"shutdown -h +{60 * MAX_HOURS}")
    assert sum(call.startswith("docker pull") for call in machine.calls) == 5
    assert os.environ.get("AWS_SECRET_ACCESS_KEY", "secret") not in machine.console
