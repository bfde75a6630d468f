"""``crossfade submit ec2`` against moto's AWS: what it asks for, what it says when AWS refuses, and what it leaves."""

import functools
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import botocore.loaders
import pytest
from aws_server import AwsServer, Call, running_aws
from cluster_data import write_job
from documented_policies import policy
from ec2_leftovers import leftovers
from placement_groups import PlacementGroups
from running_command import started

from crossfade.main import main
from deploy.aws.ec2 import resources
from deploy.aws.ec2.spec import RunSpec, new_run_name
from deploy.aws.ec2.user_data import MAX_BYTES, user_data

pytestmark = pytest.mark.slow

BUCKET = "music"
IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/crossfade:cpu"
MUTATIONS = [
    "PutParameter",
    "CreateRole",
    "PutRolePolicy",
    "CreateInstanceProfile",
    "AddRoleToInstanceProfile",
    "CreateSecurityGroup",
    "AuthorizeSecurityGroupIngress",
    "CreatePlacementGroup",
    "RunInstances",
]
"""What starting a run makes, in the order in which it does."""
REMOVALS = ["TerminateInstances", "DeletePlacementGroup", "DeleteRole"]


_LOADER = functools.cache(botocore.loaders.create_loader)


@pytest.fixture(scope="module")
def server() -> Iterator[AwsServer]:
    with running_aws() as aws:
        yield aws


@pytest.fixture
def aws(server: AwsServer, monkeypatch: pytest.MonkeyPatch) -> AwsServer:
    """An empty account, but for a bucket and an image; this process's environment leads there."""
    server.reset()
    PlacementGroups(server)
    server.answer("GetProducts", {"FormatVersion": "aws_v1", "PriceList": []})  # so the table's price is told
    server.client("s3").create_bucket(Bucket=BUCKET)
    ecr = server.client("ecr")
    ecr.create_repository(repositoryName="crossfade")
    for variant in ("cpu", "cu112", "cu90"):
        kind = "application/vnd.oci.image.manifest.v1+json"
        manifest = {"schemaVersion": 2, "mediaType": kind, "config": {"digest": f"sha256:{variant}"}, "layers": []}
        ecr.put_image(repositoryName="crossfade", imageManifest=json.dumps(manifest), imageTag=variant)
    for name, value in server.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(resources, "_POLL_SECONDS", 0.01)
    # The models of AWS's services are read once for all commands of this process, which takes a second otherwise.
    monkeypatch.setattr("botocore.session.create_loader", _LOADER)
    return server


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return write_job(tmp_path / "job.yaml", f"s3://{BUCKET}/data")


def submit(job: Path, *options: object) -> int:
    """Start a run in this process, and leave it alone."""
    where = ("--output", f"s3://{BUCKET}/runs", "--instance-type", "r6i.large")
    return main(list(map(str, ("submit", "ec2", job, *where, *options))))


def detached(job: Path, *options: object) -> int:
    return submit(job, *options, "--detach")


def the_run(aws: AwsServer) -> str:
    [call] = aws.made("RunInstances")
    return str(tags_of(call, 1)["crossfade:run"])


def tags_of(call: Call, number: int) -> dict[str, str]:
    """The tags that a call gives to its kind of resource number ``number``, as ``kind`` besides."""
    prefix = f"TagSpecification.{number}."
    keys = {name: value for name, value in call.body.items() if name.startswith(prefix) and name.endswith(".Key")}
    tags = {value: call.body[name.removesuffix("Key") + "Value"] for name, value in keys.items()}
    return {"kind": call.body[f"{prefix}ResourceType"], **tags}


# ---- what is asked for


def test_a_cluster_is_asked_for_as_the_plan_says(aws: AwsServer, job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert detached(job, "--hosts", 2, "--spot", "--max-hours", 3, "--volume-gb", 200) == 0
    said = capsys.readouterr().err
    assert "cost: $0.25 an hour, $0.76 at most (2 x r6i.large, 3 h at most" in said
    [call] = aws.made("RunInstances")
    asked = call.body
    assert (asked["MinCount"], asked["MaxCount"]) == ("2", "2")
    assert asked["InstanceInitiatedShutdownBehavior"] == "terminate"
    metadata = {name: value for name, value in asked.items() if name.startswith("MetadataOptions.")}
    assert metadata == {
        "MetadataOptions.HttpEndpoint": "enabled",
        "MetadataOptions.HttpTokens": "required",
        "MetadataOptions.HttpPutResponseHopLimit": "2",
    }
    disk = {name.rpartition(".")[2]: value for name, value in asked.items() if name.startswith("BlockDeviceMapping.")}
    assert disk["Encrypted"] == disk["DeleteOnTermination"] == "true"
    assert (disk["VolumeSize"], disk["VolumeType"]) == ("200", "gp3")
    assert asked["InstanceMarketOptions.MarketType"] == "spot"
    assert asked["Placement.GroupName"] == f"crossfade-{the_run(aws)}"
    kinds = [tags_of(call, number)["kind"] for number in range(1, 5)]
    assert kinds == ["instance", "volume", "network-interface", "spot-instances-request"]
    for number in range(1, 5):
        tags = tags_of(call, number)
        assert tags["crossfade:owner"] == "arn:aws:sts::123456789012:user/moto"
        assert (tags["crossfade:job"], tags["crossfade:first-host"]) == ("planted", "0")
    [opened] = [call.body for call in aws.made("AuthorizeSecurityGroupIngress")]
    assert opened["GroupId"] == opened["IpPermissions.1.Groups.1.GroupId"] == asked["SecurityGroupId.1"]
    assert not any("CidrIp" in name for name in opened)


def test_the_token_is_in_an_encrypted_parameter_and_nowhere_else(aws: AwsServer, job: Path) -> None:
    assert detached(job, "--hosts", 2) == 0
    [put] = [call.body for call in aws.made("PutParameter")]
    assert put["Type"] == "SecureString"
    assert len(put["Value"]) == 64
    for call in aws.calls:
        assert call.action == "PutParameter" or put["Value"] not in json.dumps(call.body)
    s3 = aws.client("s3")
    for entry in s3.list_objects_v2(Bucket=BUCKET)["Contents"]:
        assert put["Value"] not in s3.get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read().decode()


def test_a_dry_run_prints_every_request_and_sends_none(
    aws: AwsServer, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(job, "--hosts", 2, "--dry-run") == 0
    printed = capsys.readouterr()
    assert "Horovod" not in printed.err
    assert submit(job, "--hosts", 2, "--dry-run", "--set", "model.dim=8", "--set", "model.dense={item: [8]}") == 0
    assert "of several workers need Horovod" in capsys.readouterr().err
    assert aws.calls == []
    assert "cost: $0.25 an hour" in printed.err
    names = re.findall(r"^([a-z0-9]+)\.([a-z_]+) \{", printed.out, re.MULTILINE)
    shown = [(service, "".join(word.capitalize() for word in name.split("_"))) for service, name in names]
    assert "#!/bin/bash" in printed.out
    assert detached(job, "--hosts", 2) == 0
    sent = [
        (call.service, "PutObject" if call.action.startswith("PUT ") else call.action)
        for call in aws.calls
        if call.service != "pricing"
    ]
    assert shown == list(dict.fromkeys(sent))


@pytest.mark.parametrize(
    ("options", "parameter", "variant"),
    [
        (("--instance-type", "r6i.large"), "amazon-linux-2023/recommended", "cpu"),
        (("--instance-type", "g5.xlarge"), "amazon-linux-2023/gpu/recommended", "cu112"),
        (("--instance-type", "p2.xlarge"), "amazon-linux-2023/gpu/recommended", "cu90"),
    ],
)
def test_image_and_machine_image_follow_from_the_instance_type(
    aws: AwsServer, job: Path, options: tuple[str, str], parameter: str, variant: str
) -> None:
    assert detached(job, *options) == 0
    [asked] = aws.made("GetParameter")
    assert asked.body["Name"].endswith(f"{parameter}/image_id")
    [plan] = [json.loads(text) for name, text in stored(aws).items() if name.endswith("plan.json")]
    assert plan["image"] == IMAGE.replace("cpu", variant)
    assert plan["variant"] == variant


def stored(aws: AwsServer) -> dict[str, str]:
    """The objects of the bucket."""
    s3 = aws.client("s3")
    entries = s3.list_objects_v2(Bucket=BUCKET).get("Contents", [])
    return {e["Key"]: s3.get_object(Bucket=BUCKET, Key=e["Key"])["Body"].read().decode() for e in entries}


@pytest.mark.parametrize(
    ("options", "servers", "workers"),
    [((), 3, 3), (("--servers", 1, "--workers", 2), 1, 2), (("--set", "cluster.servers=2", "--workers", 1), 2, 1)],
)
def test_the_roles_are_as_many_as_the_options_say(
    aws: AwsServer, job: Path, options: tuple[object, ...], servers: int, workers: int
) -> None:
    assert detached(job, "--hosts", 3, *options) == 0
    [plan] = [json.loads(text) for name, text in stored(aws).items() if name.endswith("plan.json")]
    assert (plan["job"]["cluster"]["servers"], plan["job"]["cluster"]["workers"]) == (servers, workers)


def test_p2_is_the_default_type(job: Path, aws: AwsServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "ec2", str(job), "--output", f"s3://{BUCKET}/runs", "--dry-run"]) == 0
    assert "p2.xlarge" in capsys.readouterr().err


# ---- what is refused


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ((), "--output is missing"),
        (("--output", "music"), "--output: expected s3://BUCKET/PREFIX, but found 'music'"),
        (("--output", "s3://music/runs", "--hosts", "0"), "--hosts: expected 1 to 1000, but found 0"),
        (("--output", "s3://music/runs", "--max-hours", "9999"), "--max-hours: expected 0.05 to 720, but found 9999"),
        (("--output", "s3://music/runs", "--instance-type", "p5.48xlarge"), "MXNet cannot use its GPU, H100"),
        (("--output", "s3://music/runs", "--set", "data.path=here"), "data.path: "),
        (
            ("--output", "s3://music/runs", "--image", IMAGE.replace("us-east-1", "eu-west-1")),
            "is in eu-west-1, but",
        ),
    ],
)
def test_wrong_input_is_refused_before_anything_is_made(
    aws: AwsServer, job: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], line: str
) -> None:
    assert main(["submit", "ec2", str(job), *options]) == 2
    assert line in capsys.readouterr().err
    assert leftovers(aws) == []
    assert stored(aws) == {}


@pytest.mark.parametrize(
    ("action", "code", "message", "exit_code", "line"),
    [
        (
            "RunInstances",
            "InsufficientInstanceCapacity",
            "no capacity",
            1,
            "AWS has no such instance free",
        ),
        ("RunInstances", "VcpuLimitExceeded", "current vCPU limit of 0", 2, "does not allow it in us-east-1"),
        ("RunInstances", "MaxSpotInstanceCountExceeded", "too many", 2, "a quota of the account does not allow it"),
        ("RunInstances", "UnauthorizedOperation", "not authorized", 2, "these credentials may not do RunInstances"),
        ("CreateRole", "AccessDenied", "not authorized to perform: iam:CreateRole", 2, "may not do iam:CreateRole"),
        ("CreateSecurityGroup", "UnauthorizedOperation", "no", 2, "may not do CreateSecurityGroup"),
        ("CreatePlacementGroup", "PlacementGroupLimitExceeded", "no more", 2, "a quota of the account"),
        ("DescribeImages", "InvalidAMIID.NotFound", "The image id does not exist", 2, "does not exist"),
        ("GetCallerIdentity", "ExpiredToken", "expired", 2, "the AWS credentials have expired"),
    ],
)
def test_what_aws_refuses_is_said_in_one_line_and_nothing_stays(
    aws: AwsServer,
    job: Path,
    capsys: pytest.CaptureFixture[str],
    action: str,
    code: str,
    message: str,
    exit_code: int,
    line: str,
) -> None:
    aws.fail(action, code, message, times=0)
    assert detached(job, "--hosts", 2, "--spot") == exit_code
    said = capsys.readouterr().err
    assert line in said.splitlines()[-1], said
    assert "Traceback" not in said
    assert leftovers(aws) == []


def test_requests_that_are_throttled_are_made_again(aws: AwsServer, job: Path) -> None:
    for action in ("RunInstances", "CreateRole", "DescribeVpcs"):
        aws.fail(action, "RequestLimitExceeded" if action != "CreateRole" else "Throttling", "slow down", times=2)
    assert detached(job) == 0
    assert {len(aws.made(action)) for action in ("RunInstances", "CreateRole", "DescribeVpcs")} == {3}
    tokens = {call.body["ClientToken"] for call in aws.made("RunInstances")}
    assert len(tokens) == 1  # however often it is made, it starts instances once


def test_an_instance_profile_that_ec2_does_not_know_yet_is_waited_for(
    aws: AwsServer, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.aws.ec2.launch._POLL_SECONDS", 0.01)
    unknown = "Value (crossfade-x) for parameter iamInstanceProfile.name is invalid. Invalid IAM Instance Profile name"
    aws.fail("RunInstances", "InvalidParameterValue", unknown, times=3)
    assert detached(job) == 0
    assert len(aws.made("RunInstances")) == 4


@pytest.mark.parametrize("missing", ["image", "repository", "region", "subnet"])
def test_what_is_not_there_is_named_before_anything_is_made(
    aws: AwsServer, job: Path, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    options = {
        "image": ("--image", f"{IMAGE}-of-yesterday"),
        "repository": ("--image", IMAGE.replace("crossfade:", "elsewhere:")),
        "region": ("--region", "moon-1"),
        "subnet": ("--subnet", "subnet-0123456789abcdef0"),
    }[missing]
    assert detached(job, *options) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    expected = {"image": "cpu-of-yesterday", "repository": "elsewhere", "region": "moon-1", "subnet": "subnet-01234567"}
    assert expected[missing] in said
    assert leftovers(aws) == []
    assert stored(aws) == {}


# ---- what is left


# Of every third request, each of another service or kind of resource.
@pytest.mark.parametrize("stage", MUTATIONS[2::3])
def test_what_a_client_that_was_killed_has_left_is_found_by_its_tags_and_cleaned(
    aws: AwsServer, job: Path, tmp_path: Path, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # SIGKILL comes when the request is on its way: AWS does what it says, and nobody hears the answer.
    options = ("--output", f"s3://{BUCKET}/runs", "--instance-type", "r6i.large", "--hosts", 2, "--spot")
    with started("submit", "ec2", job, *options, cwd=tmp_path, variables=aws.variables) as command:
        aws.before(stage, lambda _: command.process.kill())
        assert command.finish().returncode == -9
    assert [call.action for call in aws.calls if call.action in MUTATIONS] == MUTATIONS[: MUTATIONS.index(stage) + 1]
    assert leftovers(aws) != []
    assert main(["submit", "ec2", "--list"]) == 0
    [line] = capsys.readouterr().out.splitlines()[1:]
    run = line.split()[0]
    assert run.startswith("planted-")
    assert main(["submit", "ec2", "--cleanup", run]) == 0
    assert leftovers(aws) == []
    assert main(["submit", "ec2", "--list"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("RUN")


def test_a_client_that_is_killed_while_it_takes_a_run_down_leaves_what_the_next_one_cleans(
    aws: AwsServer, job: Path, tmp_path: Path
) -> None:
    for stage in REMOVALS:
        aws.calls.clear()
        assert detached(job, "--hosts", 2) == 0
        run = the_run(aws)
        with started("submit", "ec2", "--cleanup", run, cwd=tmp_path, variables=aws.variables) as command:
            aws.before(stage, lambda _, process=command.process: process.kill())
            assert command.finish().returncode == -9, stage
        aws.before(stage, lambda _: None)
        assert main(["submit", "ec2", "--cleanup", run]) == 0, stage
        assert leftovers(aws) == [], stage


def test_clean_without_a_name_leaves_runs_that_go_on_and_those_of_others(
    aws: AwsServer, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert detached(job) == 0
    goes_on = the_run(aws)
    before = leftovers(aws)
    aws.client("iam").create_role(
        RoleName="crossfade-of-another",
        Path="/crossfade/us-east-1/",
        AssumeRolePolicyDocument="{}",
        Tags=[{"Key": "crossfade:owner", "Value": "arn:aws:iam::123456789012:user/another"}],
    )
    aws.client("iam").create_role(RoleName="crossfade", AssumeRolePolicyDocument="{}")  # by somebody, for something
    assert main(["submit", "ec2", "--cleanup"]) == 0
    said = capsys.readouterr().err
    assert f"{goes_on} still has 1 instance(s)" in said
    assert "of-another belongs to arn:aws:iam::123456789012:user/another" in said
    assert sorted(leftovers(aws)) == sorted([*before, "role crossfade-of-another", "role crossfade"])


def test_what_cannot_be_removed_is_said_and_does_not_keep_the_rest(
    aws: AwsServer, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert detached(job, "--hosts", 2) == 0
    run = the_run(aws)
    aws.fail("DeleteRole", "AccessDenied", "not authorized to perform: iam:DeleteRole", times=0)
    aws.fail("DeleteSecurityGroup", "DependencyViolation", "resource has a dependent object", times=3)
    assert main(["submit", "ec2", "--cleanup", run]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"not all of the run {run} could be removed" in said
    assert "iam:DeleteRole" in said
    assert leftovers(aws) == [f"role crossfade-{run}"]


def test_a_run_that_nobody_knows_is_not_cleaned_or_followed(aws: AwsServer, capsys: pytest.CaptureFixture[str]) -> None:
    for what in ("--cleanup", "--follow"):
        assert main(["submit", "ec2", what, "planted-00000000"]) == 2
        assert "there is nothing of a run planted-00000000" in capsys.readouterr().err
    assert main(["submit", "ec2", "--cleanup", "../x"]) == 2
    assert main(["submit", "ec2"]) == 2


# ---- a run that is followed


class Story:
    """What happens to the hosts of the one run while it is followed: a chapter each time the client looks at them."""

    def __init__(self, aws: AwsServer, *chapters: Callable[["Story"], object]) -> None:
        self._aws, self._chapters = aws, list(chapters)
        aws.before("DescribeInstances", self._turn)

    def _turn(self, _call: Call) -> None:
        if self._chapters and self._aws.made("RunInstances"):
            self._chapters.pop(0)(self)

    def put(self, name: str, **value: Any) -> None:
        """Write an object of the run."""
        [call, *_] = self._aws.made("RunInstances")
        run = tags_of(call, 1)["crossfade:run"]
        self._aws.client("s3").put_object(Bucket=BUCKET, Key=f"runs/{run}/{name}", Body=json.dumps(value).encode())

    def ids(self) -> list[str]:
        """Of the living instances."""
        found = self._aws.client("ec2").describe_instances()["Reservations"]
        instances = [instance for reservation in found for instance in reservation["Instances"]]
        return [one["InstanceId"] for one in instances if one["State"]["Name"] == "running"]

    def interrupt(self) -> None:
        """EC2 takes the instances back, after they have said so."""
        for number, name in enumerate(self.ids()):
            self.put(f"hosts/{number}.json", state="interrupted", message="exit code 75", instance=name)
        self.terminate()

    def terminate(self) -> None:
        """The instances end without a word."""
        self._aws.client("ec2").terminate_instances(InstanceIds=self.ids())

    def terminate_one(self) -> None:
        """One of them does."""
        self._aws.client("ec2").terminate_instances(InstanceIds=self.ids()[1:])

    def fail(self) -> None:
        """The first host says that it cannot go on."""
        self.put("hosts/0.json", state="failed", message="the image x cannot be pulled", instance=self.ids()[0])

    def end(self) -> None:
        """The run is done."""
        self.put("end.json", exit_code=0, message="embeddings and report: /runs/run")


def nothing(_story: Story) -> None:
    """Nothing happens."""


def test_a_host_that_the_spot_market_takes_is_replaced_as_soon_as_there_is_capacity(
    aws: AwsServer, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_capacity(story: Story) -> None:
        story.interrupt()
        aws.fail("RunInstances", "InsufficientInstanceCapacity", "no capacity", times=2)

    Story(aws, nothing, no_capacity, *[nothing] * 8, Story.end)
    assert submit(job, "--spot", "--poll-seconds", 0.1) == 0
    said = capsys.readouterr().err
    assert said.count("host 0 is gone (Client.UserInitiatedShutdown); trying again in") == 2
    assert "host 0 is gone (Client.UserInitiatedShutdown); another instance takes its place" in said
    first, *failed, second = aws.made("RunInstances")
    assert len(failed) == 2
    assert tags_of(second, 1) == tags_of(first, 1)
    assert second.body["SubnetId"]  # where the first one was
    assert leftovers(aws) == []


@pytest.mark.parametrize(
    ("chapter", "line"),
    [
        (Story.fail, "host 0 failed: the image x cannot be pulled"),
        (Story.terminate, "has ended: Client.UserInitiatedShutdown; its console"),
    ],
)
def test_a_host_that_fails_or_is_ended_by_somebody_ends_the_run_with_the_reason(
    aws: AwsServer, job: Path, capsys: pytest.CaptureFixture[str], chapter: Callable[[Story], object], line: str
) -> None:
    Story(aws, nothing, chapter)
    assert submit(job, "--poll-seconds", 0.1) == 1
    assert line in capsys.readouterr().err.splitlines()[-1]
    assert len(aws.made("RunInstances")) == 1
    assert leftovers(aws) == []


def test_a_run_that_was_left_alone_is_followed_and_taken_down_at_its_end(
    aws: AwsServer, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert detached(job, "--hosts", 2, "--poll-seconds", 0.1) == 0
    run = the_run(aws)
    Story(aws, nothing, nothing, nothing, Story.end)
    assert main(["submit", "ec2", "--follow", run]) == 0
    assert "the run has ended with exit code 0: embeddings and report" in capsys.readouterr().err
    assert leftovers(aws) == []


# ---- what it takes

S3_ACTIONS = {"PUT": "PutObject", "GET": "GetObject"}


def called(aws: AwsServer) -> set[tuple[str, str]]:
    """Service and action of all calls, as IAM names them."""
    found = set()
    for service, action in aws.actions():
        verb, _, path = action.partition(" ")
        of_s3 = "ListBucket" if path == f"/{BUCKET}" else S3_ACTIONS.get(verb, verb)
        found.add((service, of_s3 if service == "s3" else action))
    return found - {("sts", "GetCallerIdentity")}  # which needs no permission


def test_the_documented_policies_allow_what_the_commands_call_and_nothing_else(aws: AwsServer, job: Path) -> None:
    checked_by_aws = {  # with calls that give tags, or hand a role on
        ("iam", "PassRole"),
        ("iam", "TagRole"),
        ("iam", "TagInstanceProfile"),
        ("ec2", "CreateTags"),
        ("ssm", "AddTagsToResource"),
    }
    seldom = {("ec2", "DescribeSubnets"), ("ec2", "DeleteVolume")}  # with --subnet, and if a disk outlives its instance
    Story(aws, nothing, Story.interrupt, *[nothing] * 4, Story.terminate_one)
    assert submit(job, "--hosts", 2, "--spot", "--poll-seconds", 0.1) == 1
    assert called(aws) == policy("ec2") - checked_by_aws - seldom

    aws.calls.clear()
    assert detached(job) == 0
    run = the_run(aws)
    aws.calls.clear()
    assert main(["submit", "ec2", "--list"]) == 0
    assert called(aws) == policy("ec2-list")
    aws.calls.clear()
    assert main(["submit", "ec2", "--cleanup", run]) == 0
    both = policy("ec2-list") | policy("ec2-clean")
    assert called(aws) == both - seldom - {("ec2", "DeletePlacementGroup")}  # which one host has none of


# ---- the script


@pytest.mark.parametrize("variant", ["cpu", "cu112", "cu90"])
def test_the_script_is_one_that_bash_and_ec2_take_and_quotes_what_it_is_given(tmp_path: Path, variant: Any) -> None:
    values: dict[str, Any] = {
        "run": new_run_name("x"),
        "region": "us-east-1",
        "account": "1",
        "owner": "me",
        "job": {"name": "x"},
        "storage": "s3://music/it's/x",
        "data": "s3://music/data",
        "image": "registry.example/$(touch /tmp/x)`id`:tag",
        "variant": variant,
        "instance_type": "r6i.large",
        "hosts": 1,
        "spot": False,
        "max_hours": 1.0,
        "volume_gib": 100,
    }
    values["storage"] = "s3://music/its/x"
    script = user_data(RunSpec(**values), 0)
    assert len(script.encode()) <= MAX_BYTES
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    settings = script.partition("\nimds=")[0]
    echo = subprocess.run(["bash"], input=f'{settings}\necho "$image"', text=True, capture_output=True, check=True)
    assert echo.stdout.strip() == values["image"]
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in script if "AWS_SECRET_ACCESS_KEY" in os.environ else True
