"""``crossfade submit ec2`` following a run to its end, and the permissions that it needs."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aws_server import AwsServer, Call
from documented_policies import policy
from ec2_leftovers import leftovers
from fake_imds import running_metadata
from submitting_ec2 import BUCKET, detached, submit, submitted_run

from crossfade.base.exit_codes import INTERRUPTED_EXIT_CODE
from crossfade.cli.main import main
from crossfade.deploy.aws.clients import Aws
from crossfade.deploy.aws.ec2.options import Ec2HostOptions
from crossfade.deploy.aws.ec2.run_host import Host, HostRunner
from crossfade.deploy.aws.ec2.run_storage import HostStatus, RunEnd, RunStorage
from crossfade.deploy.aws.metadata import InstanceMetadata

pytestmark = pytest.mark.slow

S3_ACTIONS = {"PUT": "PutObject", "GET": "GetObject"}


class Story:
    """Events on the hosts of a run while it is followed: one chapter each time the client lists the instances."""

    def __init__(self, aws: AwsServer, *chapters: Callable[["Story"], object]) -> None:
        self._aws, self._chapters = aws, list(chapters)
        aws.before("DescribeInstances", self._next_chapter)

    def _next_chapter(self, _call: Call) -> None:
        if self._chapters:
            self._chapters.pop(0)(self)

    def put(self, name: str, **value: Any) -> None:
        """Write an object of the run."""
        self.put_text(name, json.dumps(value))

    def put_text(self, name: str, text: str) -> None:
        """Write an object of the run that may be no JSON."""
        key = f"runs/{submitted_run(self._aws)}/{name}"
        self._aws.client("s3").put_object(Bucket=BUCKET, Key=key, Body=text.encode())

    def ids(self) -> list[str]:
        """Return the ids of the running instances."""
        reservations = self._aws.client("ec2").describe_instances()["Reservations"]
        instances = [instance for reservation in reservations for instance in reservation["Instances"]]
        return [instance["InstanceId"] for instance in instances if instance["State"]["Name"] == "running"]

    def join(self) -> None:
        """Have all hosts join."""
        for name in self.ids():
            self.put(f"hosts/{name}.json", state="running", message="")

    def interrupt(self) -> None:
        """Reclaim the instances, after they have written their states. Auto Scaling replaces them."""
        for name in self.ids():
            self.put(f"hosts/{name}.json", state="interrupted", message="exit code 75")
        self.terminate()

    def terminate(self) -> None:
        """Terminate the instances before they write their states."""
        self._aws.client("ec2").terminate_instances(InstanceIds=self.ids())

    def lack(self, code: str) -> None:
        """Have EC2 refuse to start hosts."""
        message = f"Could not launch Spot Instances. {code} - We have none. Launching EC2 instance failed."
        activity = f"<StatusCode>Failed</StatusCode><StatusMessage>{message}</StatusMessage>"
        for _ in ("head", "workers"):
            self._aws.answer_xml("DescribeScalingActivities", f"<Activities><member>{activity}</member></Activities>")

    def fail(self) -> None:
        """Report a failure by the head."""
        self.put(f"hosts/{self.ids()[0]}.json", state="failed", message="the image x cannot be pulled")

    def delete(self) -> None:
        """Have another client delete the cluster."""
        self._aws.client("cloudformation").delete_stack(StackName=f"crossfade-{submitted_run(self._aws)}")

    def end(self) -> None:
        """End the run successfully."""
        self.put("end.json", exit_code=0, message="embeddings and report: /runs/run")


def nothing(_story: Story) -> None:
    """Leave all hosts unchanged."""


def test_lost_hosts_and_lack_of_capacity_are_reported_until_the_run_ends(
    aws: AwsServer, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def lack(story: Story) -> None:
        story.lack("InsufficientInstanceCapacity")

    Story(aws, lack, Story.join, Story.interrupt, Story.join, Story.end)
    assert submit(job, "--hosts", 2, "--spot", "--poll-seconds", 0.1) == 0
    stderr = capsys.readouterr().err
    lines = [line for line in stderr.splitlines() if "joined" in line or "Auto Scaling" in line]
    assert [line.partition(" (")[0].split(" i-")[0] for line in lines] == [
        "crossfade: 0 of 2 hosts have joined",
        "crossfade: starting a host: AWS has no capacity for this instance type in us-east-1",
        "crossfade: 2 of 2 hosts have joined",
        *["crossfade: host"] * 2,
        "crossfade: 0 of 2 hosts have joined",
        "crossfade: 2 of 2 hosts have joined",
    ]
    assert stderr.count("; Auto Scaling starts another in its place") == 2
    assert "the run has ended with exit code 0: embeddings and report" in stderr
    assert leftovers(aws) == []


@pytest.mark.parametrize(
    ("chapter", "exit_code", "line"),
    [
        (Story.fail, 1, " failed: the image x cannot be pulled"),
        (Story.terminate, 1, "has ended: Client.UserInitiatedShutdown; its console"),
        (Story.delete, 1, " was deleted"),
        (lambda story: story.lack("VcpuLimitExceeded"), 2, "starting a host: a quota of the account"),
        (lambda story: story.put("end.json", exit_code=12, message=""), 2, "exit_code: Input should be 0, 1, 2 or 143"),
        (lambda story: story.put(f"hosts/{story.ids()[0]}.json", state="done"), 2, "message: Field required"),
        (lambda story: story.put_text("end.json", " " * (1 << 21)), 2, "expected at most 1,048,576 bytes, but found"),
        (lambda story: story.put_text("end.json", "[" * 100_000), 2, "expected the JSON of a RunEnd"),
    ],
)
def test_failed_host_or_invalid_file_of_a_host_ends_the_run_with_its_reason(
    aws: AwsServer, job: Path, capsys: pytest.CaptureFixture[str], chapter: Any, exit_code: int, line: str
) -> None:
    Story(aws, chapter)
    assert submit(job, "--poll-seconds", 0.1) == exit_code
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("crossfade: error: ")]
    assert len(errors) == 1
    assert line in errors[0]
    assert leftovers(aws) == []


def test_failed_run_is_reported_even_if_its_cluster_cannot_be_deleted(
    aws: AwsServer, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Story(aws, Story.fail)
    aws.fail("DeleteStack", "AccessDenied", "no", times=0)
    assert submit(job, "--poll-seconds", 0.1) == 1
    *_, left, error = capsys.readouterr().err.splitlines()
    assert "deleting the stack: these credentials lack the permission DeleteStack" in left
    assert " failed: the image x cannot be pulled" in error


@pytest.mark.parametrize(
    ("code", "exit_code", "line"),
    [
        ("VcpuLimitExceeded", 2, "starting a host: a quota of the account"),
        ("InsufficientInstanceCapacity", 0, "Auto Scaling tries again"),
    ],
)
def test_detached_run_whose_hosts_cannot_start_is_deleted_unless_a_retry_may_help(
    aws: AwsServer, job: Path, capsys: pytest.CaptureFixture[str], code: str, exit_code: int, line: str
) -> None:
    def lack(story: Story) -> None:
        group = f"crossfade-{submitted_run(aws)}-head"
        aws.client("autoscaling").set_desired_capacity(AutoScalingGroupName=group, DesiredCapacity=0)
        story.lack(code)

    Story(aws, lack)
    assert detached(job) == exit_code
    assert line in capsys.readouterr().err
    assert (leftovers(aws) == []) == (exit_code > 0)


def test_failed_run_of_another_client_is_kept_and_can_be_cleaned_up(
    aws: AwsServer, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert detached(job) == 0
    Story(aws, Story.fail)
    run = submitted_run(aws)
    assert main(["submit", "ec2", "--follow", run, "--poll-seconds", "0.1"]) == 1
    *_, advice, error = capsys.readouterr().err.splitlines()
    assert f"--cleanup {run}" in advice
    assert " failed: the image x cannot be pulled" in error
    assert f"stack crossfade-{run}" in leftovers(aws)


def test_text_of_hosts_cannot_control_the_terminal(
    aws: AwsServer, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def hostile(story: Story) -> None:
        story.put_text("log/head/000001.txt", "step 1\x1b]0;title\x07\nstep\xe9 \x9b2J\n")
        story.put_text("log/head/latest.txt", "is no piece of the log")
        story.put("end.json", exit_code=1, message="lost\r\x1b[2Jdone \u202e")

    Story(aws, hostile)
    assert submit(job, "--poll-seconds", 0.1) == 1
    printed = capsys.readouterr()
    assert printed.out == "step 1\\x1b]0;title\\x07\nstep\xe9 \\x9b2J\n"
    assert "the run has ended with exit code 1: lost\\r\\x1b[2Jdone \\u202e\n" in printed.err
    assert "\x1b" not in printed.err


# ---- hosts


def run_here(storage: RunStorage, host: Host, run_dir: Path, left: timedelta) -> int:
    """Run a host that is being reclaimed, of a run that has this time left."""
    ends = (datetime.now(UTC) + left).isoformat()
    options = Ec2HostOptions(storage=storage.uri, token_secret="x", ends=ends, run_dir=run_dir)
    with running_metadata() as metadata:
        metadata.interrupt()
        return HostRunner(storage, host, "a token", InstanceMetadata(metadata.endpoint), options).run()


@pytest.mark.parametrize(
    ("is_head", "name", "value", "code"),
    [
        (False, None, "", INTERRUPTED_EXIT_CODE),  # reclaimed while it waits for the head
        (True, "end.json", RunEnd(exit_code=1, message="").model_dump_json(), 1),  # started when the run was over
        (False, "end.json", RunEnd(exit_code=1, message="").model_dump_json(), 1),
    ],
)
def test_host_without_work_writes_why_and_leaves(
    aws: AwsServer, tmp_path: Path, is_head: bool, name: str | None, value: str, code: int
) -> None:
    storage = RunStorage(Aws(), f"s3://{BUCKET}/runs/x")
    if name is not None:
        storage.write_text(name, value)
        storage.write_text("coordinator.json", '{"join": "127.0.0.1:1", "serial": "of a head that is gone"}')
    assert run_here(storage, Host("i-1", "127.0.0.1", is_head), tmp_path / "run", timedelta(hours=1)) == code
    status = storage.read("hosts/i-1.json", HostStatus)
    assert status is not None
    assert status.state == ("interrupted" if code == INTERRUPTED_EXIT_CODE else "ended")


def test_head_stops_the_run_before_its_time_is_over(aws: AwsServer, tmp_path: Path) -> None:
    storage = RunStorage(Aws(), f"s3://{BUCKET}/runs/x")
    storage.write_text("job.yaml", "cluster: {hosts: 1}")  # which would end with exit code 2
    assert run_here(storage, Host("i-1", "127.0.0.1", is_head=True), tmp_path / "run", timedelta(minutes=4)) == 143
    end = storage.read("end.json", RunEnd)
    assert end is not None
    assert end.exit_code == 143


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
    # Without the calls of CloudFormation, which have a policy of their own: moto executes the stack itself.
    Story(aws, Story.interrupt, Story.terminate)
    assert submit(job, "--spot", "--poll-seconds", 0.1) == 1
    follow = {("cloudformation", "DescribeStackEvents")}  # if the stack fails
    assert called(aws) == policy("ec2") - follow
    assert detached(job) == 0
    run = submitted_run(aws)
    aws.calls.clear()
    assert main(["submit", "ec2", "--list"]) == 0
    assert called(aws) == policy("ec2-list")
    aws.calls.clear()
    assert main(["submit", "ec2", "--cleanup"]) == 0
    assert main(["submit", "ec2", "--cleanup", run]) == 0
    assert called(aws) == policy("ec2-list") | policy("ec2-cleanup")
