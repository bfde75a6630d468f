"""``crossfade submit ec2`` following a run to its end, and the permissions that it needs."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aws_server import AwsServer, Call
from documented_policies import policy
from ec2_leftovers import leftovers
from fake_imds import running_metadata
from submitting_ec2 import BUCKET, detached, stored, submit, submitted_run, tags_of

from crossfade.base.exit_codes import INTERRUPTED_EXIT_CODE
from crossfade.cli.main import main
from crossfade.deploy.aws.clients import Aws
from crossfade.deploy.aws.ec2.follower import MAX_LOSSES
from crossfade.deploy.aws.ec2.resources import Ec2Instance, find_instances
from crossfade.deploy.aws.ec2.run_host import Host, HostRunner
from crossfade.deploy.aws.ec2.run_storage import HostStatus, RunStorage
from crossfade.deploy.aws.metadata import InstanceMetadata

pytestmark = pytest.mark.slow

S3_ACTIONS = {"PUT": "PutObject", "GET": "GetObject"}
NOT_YET = "not yet"


class Story:
    """Events on the hosts of a run while it is followed: one chapter each time the client lists the instances.

    A chapter that returns ``NOT_YET`` is tried again the next time.
    """

    def __init__(self, aws: AwsServer, *chapters: Callable[["Story"], object]) -> None:
        self._aws, self._chapters = aws, list(chapters)
        aws.before("DescribeInstances", self._next_chapter)

    def _next_chapter(self, _call: Call) -> None:
        if self._chapters and self._aws.calls_of("RunInstances") and self._chapters[0](self) != NOT_YET:
            del self._chapters[0]

    def put(self, name: str, **value: Any) -> None:
        """Write an object of the run."""
        self.put_text(name, json.dumps(value))

    def put_text(self, name: str, text: str) -> None:
        """Write an object of the run that may be no JSON."""
        [call, *_] = self._aws.calls_of("RunInstances")
        run = tags_of(call, 1)["crossfade:run"]
        self._aws.client("s3").put_object(Bucket=BUCKET, Key=f"runs/{run}/{name}", Body=text.encode())

    def ids(self) -> list[str]:
        """Return the ids of the running instances."""
        reservations = self._aws.client("ec2").describe_instances()["Reservations"]
        instances = [instance for reservation in reservations for instance in reservation["Instances"]]
        return [instance["InstanceId"] for instance in instances if instance["State"]["Name"] == "running"]

    def interrupt(self) -> None:
        """Reclaim the instances, after they have written their interruption notices."""
        for number, name in enumerate(self.ids()):
            self.put(f"hosts/{number}.json", state="interrupted", message="exit code 75", instance=name)
        self.terminate()

    def terminate(self) -> None:
        """Terminate the instances before they write their state."""
        self._aws.client("ec2").terminate_instances(InstanceIds=self.ids())

    def terminate_one(self) -> None:
        """Terminate all instances but the first before they write their state."""
        self._aws.client("ec2").terminate_instances(InstanceIds=self.ids()[1:])

    def fail(self) -> None:
        """Report a failure by the first host."""
        self.put("hosts/0.json", state="failed", message="the image x cannot be pulled", instance=self.ids()[0])

    def end(self) -> None:
        """End the run successfully."""
        self.put("end.json", exit_code=0, message="embeddings and report: /runs/run")


def nothing(_story: Story) -> None:
    """Leave all hosts unchanged."""


def when_running(chapter: Callable[[Story], object]) -> Callable[[Story], object]:
    """Delay ``chapter`` until an instance is running."""
    return lambda story: chapter(story) if story.ids() else NOT_YET


def test_interrupted_spot_host_is_replaced_once_there_is_capacity(
    aws: AwsServer, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_capacity(story: Story) -> None:
        story.interrupt()
        aws.fail("RunInstances", "InsufficientInstanceCapacity", "no capacity", times=2)

    Story(aws, nothing, no_capacity, when_running(Story.end))
    assert submit(job, "--spot", "--poll-seconds", 0.1) == 0
    stderr = capsys.readouterr().err
    assert stderr.count("host 0 was lost (Client.UserInitiatedShutdown); retrying in") == 2
    assert "host 0 was lost (Client.UserInitiatedShutdown); started another instance in its place" in stderr
    first, *failed, second = aws.calls_of("RunInstances")
    assert len(failed) == 2
    assert tags_of(second, 1) == tags_of(first, 1)
    assert second.body["SubnetId"]  # that of the first instance
    assert leftovers(aws) == []


def test_host_that_is_reclaimed_while_it_waits_for_the_first_one_reports_it(
    aws: AwsServer, job: Path, tmp_path: Path
) -> None:
    assert detached(job, "--hosts", 2, "--spot") == 0
    storage = RunStorage(Aws(), f"s3://{BUCKET}/runs/{submitted_run(aws)}")
    with running_metadata() as metadata:
        metadata.interrupt()
        service, host = InstanceMetadata(metadata.endpoint), Host(1, "i-1", "127.0.0.1")
        assert HostRunner(storage, host, "a token", service, tmp_path / "run").run() == INTERRUPTED_EXIT_CODE
    status = storage.read("hosts/1.json", HostStatus)
    assert status is not None
    assert status.state == "interrupted"


def test_silent_host_with_a_spot_reason_is_replaced(aws: AwsServer, job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # More losses than end a run, without messages from the host: only EC2's reason identifies the interruptions.
    def reclaimed_instances(*arguments: Any) -> list[Ec2Instance]:
        instances = find_instances(*arguments)
        return [one if one.is_live else replace(one, reason="Server.SpotInstanceTermination") for one in instances]

    monkeypatch.setattr("crossfade.deploy.aws.ec2.follower.find_instances", reclaimed_instances)
    Story(aws, nothing, *[when_running(Story.terminate)] * (MAX_LOSSES + 1), when_running(Story.end))
    assert submit(job, "--spot", "--poll-seconds", 0.1) == 0
    assert len(aws.calls_of("RunInstances")) == MAX_LOSSES + 2
    assert leftovers(aws) == []


@pytest.mark.parametrize(
    ("chapter", "line"),
    [
        (Story.fail, "host 0 failed: the image x cannot be pulled"),
        (Story.terminate, "has ended: Client.UserInitiatedShutdown; its console"),
    ],
)
def test_failed_or_terminated_host_ends_the_run_with_its_reason(
    aws: AwsServer, job: Path, capsys: pytest.CaptureFixture[str], chapter: Callable[[Story], object], line: str
) -> None:
    Story(aws, nothing, chapter)
    assert submit(job, "--poll-seconds", 0.1) == 1
    assert line in capsys.readouterr().err.splitlines()[-1]
    assert len(aws.calls_of("RunInstances")) == 1
    assert leftovers(aws) == []


def test_detached_run_can_be_followed_and_is_cleaned_up_at_its_end(
    aws: AwsServer, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert detached(job, "--hosts", 2, "--poll-seconds", 0.1) == 0
    run = submitted_run(aws)
    Story(aws, nothing, nothing, nothing, Story.end)
    assert main(["submit", "ec2", "--follow", run]) == 0
    assert "the run has ended with exit code 0: embeddings and report" in capsys.readouterr().err
    assert leftovers(aws) == []


# ---- hostile hosts


def changed_spec(values: dict[str, Any]) -> str:
    """Return the specification as a host would change it to have the client start what it likes."""
    return json.dumps({**values, "hosts": 100, "instance_profile": "arn:aws:iam::1:instance-profile/admin"})


@pytest.mark.parametrize("change", [changed_spec, lambda _: "[" * 100_000, lambda _: " " * (1 << 21)])
def test_specification_that_hosts_changed_is_rejected(
    aws: AwsServer, job: Path, capsys: pytest.CaptureFixture[str], change: Callable[[dict[str, Any]], str]
) -> None:
    assert detached(job) == 0
    run = submitted_run(aws)
    [(key, text)] = [(name, text) for name, text in stored(aws).items() if name.endswith("spec.json")]
    aws.client("s3").put_object(Bucket=BUCKET, Key=key, Body=change(json.loads(text)).encode())
    aws.calls.clear()
    assert main(["submit", "ec2", "--follow", run]) == 2
    # moto's server logs that a body was not read to its end.
    [error] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("crossfade: error: ")]
    assert error.startswith(f"crossfade: error: s3://{BUCKET}/{key}: expected ")
    assert "end the run with 'crossfade submit ec2 --cleanup RUN'" in error
    assert {action for service, action in aws.actions() if service == "ec2"} <= {
        *("DescribeInstances", "DescribeSecurityGroups", "DescribePlacementGroups", "DescribeVolumes")
    }
    assert main(["submit", "ec2", "--cleanup", run]) == 0  # needs no file of the folder
    assert leftovers(aws) == []


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("end.json", {"exit_code": 12, "message": ""}, "exit_code: Input should be 0, 1, 2 or 143"),
        ("hosts/0.json", {"state": "done", "message": "", "instance": {}}, "instance: Input should be a valid string"),
    ],
)
def test_invalid_file_of_a_host_ends_the_run_with_one_line(
    aws: AwsServer, job: Path, capsys: pytest.CaptureFixture[str], name: str, value: dict[str, Any], found: str
) -> None:
    Story(aws, nothing, lambda story: story.put(name, **value))
    assert submit(job, "--poll-seconds", 0.1) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"/{name}: expected the JSON of a " in last
    assert found in last
    assert leftovers(aws) == []


def test_text_of_hosts_cannot_control_the_terminal(
    aws: AwsServer, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def hostile(story: Story) -> None:
        story.put_text("log/0/000001.txt", "step 1\x1b]0;title\x07\nstep\xe9 \x9b2J\n")
        story.put_text("log/0/latest.txt", "is no piece of the log")
        story.put("end.json", exit_code=1, message="lost\r\x1b[2Jdone \u202e")

    Story(aws, nothing, hostile)
    assert submit(job, "--poll-seconds", 0.1) == 1
    printed = capsys.readouterr()
    assert printed.out == "step 1\\x1b]0;title\\x07\nstep\xe9 \\x9b2J\n"
    assert "the run has ended with exit code 1: lost\\r\\x1b[2Jdone \\u202e\n" in printed.err
    assert "\x1b" not in printed.err


def called(aws: AwsServer) -> set[tuple[str, str]]:
    """Return service and action of all calls, by their names in IAM."""
    actions = set()
    for service, action in aws.actions():
        verb, _, path = action.partition(" ")
        of_s3 = "ListBucket" if path == f"/{BUCKET}" else S3_ACTIONS.get(verb, verb)
        actions.add((service, of_s3 if service == "s3" else action))
    return actions - {("sts", "GetCallerIdentity")}  # which needs no permission


def test_documented_policies_allow_exactly_the_calls_of_the_commands(aws: AwsServer, job: Path) -> None:
    checked_by_aws = {  # with calls that set tags or pass a role
        ("iam", "PassRole"),
        ("iam", "TagRole"),
        ("iam", "TagInstanceProfile"),
        ("ec2", "CreateTags"),
        ("ssm", "AddTagsToResource"),
    }
    rare = {("ec2", "DescribeSubnets"), ("ec2", "DeleteVolume")}  # with --subnet, and if a disk outlives its instance
    Story(aws, nothing, Story.interrupt, *[nothing] * 4, Story.terminate_one)
    assert submit(job, "--hosts", 2, "--spot", "--poll-seconds", 0.1) == 1
    assert called(aws) == policy("ec2") - checked_by_aws - rare

    aws.calls.clear()
    assert detached(job) == 0
    run = submitted_run(aws)
    aws.calls.clear()
    assert main(["submit", "ec2", "--list"]) == 0
    assert called(aws) == policy("ec2-list")
    aws.calls.clear()
    assert main(["submit", "ec2", "--cleanup", run]) == 0
    both = policy("ec2-list") | policy("ec2-cleanup")
    assert called(aws) == both - rare - {("ec2", "DeletePlacementGroup")}  # a single host has no placement group
