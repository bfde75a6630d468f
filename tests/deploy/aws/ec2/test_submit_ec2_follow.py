"""``crossfade submit ec2`` following a run to its end, and the permissions that it needs."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aws_server import AwsServer, Call, write_log
from documented_policies import policy
from ec2_leftovers import leftovers
from submitting_ec2 import BUCKET, detached, submit, submitted_run

from crossfade.cli.main import main
from crossfade.deploy.aws.clients import Aws
from crossfade.deploy.aws.ec2.options import Ec2HostOptions
from crossfade.deploy.aws.ec2.run_host import HostRunner
from crossfade.deploy.aws.ec2.run_storage import RunEnd, RunStorage
from crossfade.deploy.aws.ec2.stack import LOG_GROUP

pytestmark = pytest.mark.slow

S3_ACTIONS = {"PUT": "PutObject", "GET": "GetObject"}


class Story:
    """Events on the hosts of a run while it is followed: one chapter each time the client lists the instances."""

    def __init__(self, aws: AwsServer, *chapters: Callable[["Story"], object]) -> None:
        self.aws, self._chapters = aws, list(chapters)
        aws.before("DescribeInstances", self._next_chapter)

    def _next_chapter(self, _call: Call) -> None:
        if self._chapters:
            self._chapters.pop(0)(self)

    def put(self, name: str, text: str) -> None:
        """Write an object of the run."""
        key = f"runs/{submitted_run(self.aws)}/{name}"
        self.aws.client("s3").put_object(Bucket=BUCKET, Key=key, Body=text.encode())

    def begin(self) -> None:
        """Have the head start the run."""
        self.put("coordinator.json", '{"join": "10.0.0.1:7070", "serial": "x"}')

    def terminate(self) -> None:
        """Terminate the instances. Auto Scaling replaces them."""
        reservations = self.aws.client("ec2").describe_instances()["Reservations"]
        ids = [each["InstanceId"] for some in reservations for each in some["Instances"] if each["State"]["Code"] == 16]
        self.aws.client("ec2").terminate_instances(InstanceIds=ids)

    def lack(self) -> None:
        """Have EC2 refuse to start hosts."""
        group = f"crossfade-{submitted_run(self.aws)}-workers"
        self.aws.client("autoscaling").set_desired_capacity(AutoScalingGroupName=group, DesiredCapacity=0)
        message = "VcpuLimitExceeded - You have requested more vCPU capacity than your limit of 0 allows."
        activity = f"<StatusCode>Failed</StatusCode><StatusMessage>{message}</StatusMessage>"
        for _ in ("head", "workers"):
            self.aws.answer_xml("DescribeScalingActivities", f"<Activities><member>{activity}</member></Activities>")

    def delete(self) -> None:
        """Have another client delete the cluster."""
        self.aws.client("cloudformation").delete_stack(StackName=f"crossfade-{submitted_run(self.aws)}")

    def end(self) -> None:
        """End the run successfully."""
        self.put("end.json", '{"exit_code": 0}')


def test_lost_hosts_and_lack_of_capacity_are_reported_until_the_run_ends(
    aws: AwsServer, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Story(aws, Story.begin, Story.terminate, Story.lack, Story.end)
    assert submit(job, "--hosts", 2, "--spot", "--poll-seconds", 0.1) == 0
    stderr = capsys.readouterr().err
    assert stderr.count("was lost (Client.UserInitiatedShutdown); Auto Scaling starts another in its place") >= 2
    assert "crossfade: 2 of 2 hosts are running\n" in stderr
    assert "no host starts: VcpuLimitExceeded - You have requested more vCPU capacity" in stderr
    assert "the run has ended with exit code 0\n" in stderr
    assert leftovers(aws) == []


@pytest.mark.parametrize(
    ("chapter", "exit_code", "line"),
    [
        (Story.terminate, 1, "has ended: Client.UserInitiatedShutdown; its console"),
        (Story.delete, 1, " was deleted"),
        (lambda story: story.put("end.json", '{"exit_code": 12}'), 2, "exit_code: Input should be 0, 1, 2 or 143"),
        (lambda story: story.put("end.json", " " * (1 << 21)), 2, "expected at most 1,048,576 bytes, but found"),
        (lambda story: story.put("end.json", "[" * 100_000), 2, "expected the JSON of a RunEnd"),
    ],
)
def test_failed_start_or_invalid_file_of_a_host_ends_the_run_with_its_reason(
    aws: AwsServer, job: Path, capsys: pytest.CaptureFixture[str], chapter: Any, exit_code: int, line: str
) -> None:
    Story(aws, chapter)
    assert submit(job, "--poll-seconds", 0.1) == exit_code
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("crossfade: error: ")]
    assert len(errors) == 1
    assert line in errors[0]
    assert leftovers(aws) == []


def test_cluster_that_cannot_be_deleted_after_a_failure_is_reported_with_the_failure(
    aws: AwsServer, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Story(aws, Story.terminate)
    aws.fail("DeleteStack", "AccessDenied", "no", times=0)
    assert submit(job, "--poll-seconds", 0.1) == 1
    *_, left, error = capsys.readouterr().err.splitlines()
    assert "(AccessDenied, region us-east-1)" in left
    assert f"--cleanup {submitted_run(aws)}" in left
    assert "has ended: Client.UserInitiatedShutdown" in error


def test_detached_run_is_followed_with_a_log_that_cannot_control_the_terminal(
    aws: AwsServer, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert detached(job) == 0
    run = submitted_run(aws)
    Story(aws, lambda story: story.put("end.json", json.dumps({"exit_code": 1, "message": "lost\r\x1b[2J \u202e"})))
    write_log(aws, LOG_GROUP, f"{run}/head-0123", "step 1\x1b]0;title\x07", "step\xe9 \x9b2J")
    write_log(aws, LOG_GROUP, f"{run}/worker-0456", "of a worker")
    assert main(["submit", "ec2", "--follow", run, "--poll-seconds", "0.1"]) == 1
    printed = capsys.readouterr()
    assert printed.out == "step 1\\x1b]0;title\\x07\nstep\xe9 \\x9b2J\n"
    assert "the run has ended with exit code 1: lost\\r\\x1b[2J \\u202e\n" in printed.err
    assert leftovers(aws) == []


# ---- hosts


@pytest.mark.parametrize(
    ("role", "files", "left", "end"),
    [
        # They start when the run is over.
        ("head", {"end.json": '{"exit_code": 1}'}, timedelta(hours=1), 1),
        ("worker", {"end.json": '{"exit_code": 1}', "coordinator.json": "{}"}, timedelta(hours=1), 1),
        # The head stops a run whose time is over, which would end with exit code 2 otherwise.
        ("head", {"job.yaml": "cluster: {hosts: 1}"}, timedelta(minutes=4), 143),
        # Its end is already written when it has failed.
        ("head", {"job.yaml": "cluster: {hosts: 1}"}, timedelta(hours=1), 2),
    ],
)
def test_host_ends_with_its_run(
    aws: AwsServer, tmp_path: Path, role: str, files: dict[str, str], left: timedelta, end: int
) -> None:
    storage = RunStorage(Aws(), f"s3://{BUCKET}/runs/x")
    for name, text in files.items():
        storage.write(name, text)
    ends, place = (datetime.now(UTC) + left).isoformat(), {"role": role, "address": "127.0.0.1"}
    options = Ec2HostOptions.of(
        storage=storage.uri, token_secret="x", ends=ends, run_dir=tmp_path / "run", poll_seconds=0.1, **place
    )
    assert HostRunner(storage, "a token", options).run() == 0
    storage.write("end.json", '{"exit_code": 0}', once=True)  # as another host would
    assert storage.read("end.json", RunEnd) == RunEnd(exit_code=end)


# ---- permissions


def called(aws: AwsServer) -> set[tuple[str, str]]:
    """Return service and action of all calls, by their names in IAM."""
    actions = set()
    for service, action in aws.actions():
        verb, _, path = action.partition(" ")
        of_s3 = "ListBucket" if path == f"/{BUCKET}" else S3_ACTIONS.get(verb, verb)
        actions.add((service, of_s3 if service == "s3" else action))
    return actions - {("sts", "GetCallerIdentity")}  # which needs no permission


def test_documented_policies_allow_exactly_the_calls_of_the_commands(aws: AwsServer, job: Path) -> None:
    def begin(story: Story) -> None:
        write_log(aws, LOG_GROUP, f"{submitted_run(aws)}/head-0123", "x")
        story.begin()

    def fail(story: Story) -> None:
        aws.client("s3").delete_object(Bucket=BUCKET, Key=f"runs/{submitted_run(aws)}/coordinator.json")
        story.terminate()

    write_log(aws, LOG_GROUP, "another/head-0123", "x")
    Story(aws, begin, Story.lack, fail)
    assert submit(job, "--spot", "--hosts", 2, "--poll-seconds", 0.1) == 1
    assert main(["submit", "ec2", "--list"]) == 0
    # Without the calls of CloudFormation, which have a policy of their own: moto executes the stack itself.
    needed = {("cloudformation", "DescribeStackEvents"), ("s3", "ListBucket")}  # if a stack fails; to learn of absence
    assert called(aws) == policy("ec2") - needed
