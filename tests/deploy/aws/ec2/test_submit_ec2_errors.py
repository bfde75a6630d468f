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
    ("action", "code", "exit_code", "line"),
    [
        ("RunInstances", "InsufficientInstanceCapacity", 1, "AWS has no capacity for this instance type"),
        ("RunInstances", "VcpuLimitExceeded", 2, "does not allow it in us-east-1"),
        ("CreateRole", "AccessDenied", 2, "lack the permission CreateRole"),
        ("CreateSecurityGroup", "UnauthorizedOperation", 2, "lack the permission CreateSecurityGroup"),
        ("CreatePlacementGroup", "PlacementGroupLimitExceeded", 2, "a quota of the account"),
        ("DescribeImages", "InvalidAMIID.NotFound", 2, "looking for the machine image"),
    ],
)
def test_aws_error_is_one_line_and_leaves_no_resources(
    aws: AwsServer, job: Path, capsys: pytest.CaptureFixture[str], action: str, code: str, exit_code: int, line: str
) -> None:
    aws.fail(action, code, "no", times=0)
    assert detached(job, "--hosts", 2, "--spot") == exit_code
    assert line in capsys.readouterr().err.splitlines()[-1]
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


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--image", f"{IMAGE}-of-yesterday"), "cpu-of-yesterday"),
        (("--subnet", "subnet-0123456789abcdef0"), "subnet-01234567"),
    ],
)
def test_missing_resource_is_named_before_anything_is_created(
    aws: AwsServer, job: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], line: str
) -> None:
    assert detached(job, *options) == 2
    assert line in capsys.readouterr().err.splitlines()[-1]
    assert leftovers(aws) == []
    assert stored(aws) == {}
