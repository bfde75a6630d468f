"""``crossfade submit ec2`` when its input or AWS's answers are errors."""

from pathlib import Path

import pytest
from aws_server import AwsServer
from ec2_leftovers import leftovers
from submitting_ec2 import IMAGE, detached, stored

from crossfade.cli.main import main

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ((), "--output: is missing"),
        (("--output", "music"), "--output: expected s3://BUCKET/PREFIX, but found 'music'"),
        (("--output", "s3://music/runs", "--hosts", "0"), "--hosts 0: expected an integer from 1 to 1000"),
        (
            ("--output", "s3://music/runs", "--max-hours", "9999"),
            "--max-hours 9999: expected a number from 0.05 to 720",
        ),
        (("--output", "s3://music/runs", "--instance-type", "g4ad.xlarge"), "only NVIDIA GPUs are supported"),
        (("--output", "s3://music/runs", "--set", "data.path=here"), "data.path: "),
        (
            ("--output", "s3://music/runs", "--set", "model.start={track: here.parquet}"),
            "model.start.track: here.parquet is on this machine, which the instances cannot read; copy it to S3",
        ),
        (
            ("--output", "s3://music/runs", "--image", IMAGE.replace("us-east-1", "eu-west-1")),
            "is in eu-west-1, but",
        ),
    ],
)
def test_invalid_input_is_rejected_before_anything_is_created(
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
            "AWS has no capacity for this instance type",
        ),
        ("RunInstances", "VcpuLimitExceeded", "current vCPU limit of 0", 2, "does not allow it in us-east-1"),
        ("RunInstances", "MaxSpotInstanceCountExceeded", "too many", 2, "a quota of the account does not allow it"),
        (
            "RunInstances",
            "UnauthorizedOperation",
            "not authorized",
            2,
            "these credentials lack the permission RunInstances",
        ),
        (
            "CreateRole",
            "AccessDenied",
            "not authorized to perform: iam:CreateRole",
            2,
            "lack the permission iam:CreateRole",
        ),
        ("CreateSecurityGroup", "UnauthorizedOperation", "no", 2, "lack the permission CreateSecurityGroup"),
        ("CreatePlacementGroup", "PlacementGroupLimitExceeded", "no more", 2, "a quota of the account"),
        ("DescribeImages", "InvalidAMIID.NotFound", "The image id does not exist", 2, "does not exist"),
        ("GetCallerIdentity", "ExpiredToken", "expired", 2, "the AWS credentials have expired"),
    ],
)
def test_aws_error_is_one_line_and_leaves_no_resources(
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
    stderr = capsys.readouterr().err
    assert line in stderr.splitlines()[-1], stderr
    assert "Traceback" not in stderr
    assert leftovers(aws) == []


def test_throttled_requests_are_retried(aws: AwsServer, job: Path) -> None:
    for action in ("RunInstances", "CreateRole", "DescribeVpcs"):
        aws.fail(action, "RequestLimitExceeded" if action != "CreateRole" else "Throttling", "slow down", times=2)
    assert detached(job) == 0
    assert {len(aws.calls_of(action)) for action in ("RunInstances", "CreateRole", "DescribeVpcs")} == {3}
    tokens = {call.body["ClientToken"] for call in aws.calls_of("RunInstances")}
    assert len(tokens) == 1  # so retries start instances only once


def test_new_instance_profile_is_retried_until_ec2_accepts_it(
    aws: AwsServer, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossfade.deploy.aws.ec2.launch._POLL_SECONDS", 0.01)
    unknown = "Value (crossfade-x) for parameter iamInstanceProfile.name is invalid. Invalid IAM Instance Profile name"
    aws.fail("RunInstances", "InvalidParameterValue", unknown, times=3)
    assert detached(job) == 0
    assert len(aws.calls_of("RunInstances")) == 4


@pytest.mark.parametrize("missing", ["image", "repository", "region", "subnet"])
def test_missing_resource_is_named_before_anything_is_created(
    aws: AwsServer, job: Path, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    options = {
        "image": ("--image", f"{IMAGE}-of-yesterday"),
        "repository": ("--image", IMAGE.replace("crossfade:", "elsewhere:")),
        "region": ("--region", "moon-1"),
        "subnet": ("--subnet", "subnet-0123456789abcdef0"),
    }[missing]
    assert detached(job, *options) == 2
    stderr = capsys.readouterr().err.splitlines()[-1]
    expected = {"image": "cpu-of-yesterday", "repository": "elsewhere", "region": "moon-1", "subnet": "subnet-01234567"}
    assert expected[missing] in stderr
    assert leftovers(aws) == []
    assert stored(aws) == {}
