"""``crossfade submit ec2 --list`` and ``--cleanup`` after clients that were killed."""

from pathlib import Path

import pytest
from aws_server import AwsServer
from ec2_leftovers import leftovers
from running_command import started
from submitting_ec2 import BUCKET, detached, submitted_run

from crossfade.cli.main import main

pytestmark = pytest.mark.slow

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
"""The requests that create a run's resources, in their order."""
REMOVALS = ["TerminateInstances", "DeleteRole"]


# A role without its profile, and everything.
@pytest.mark.parametrize("stage", ["PutRolePolicy", "RunInstances"])
def test_cleanup_deletes_what_a_killed_client_created(
    aws: AwsServer, job: Path, tmp_path: Path, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # SIGKILL arrives while the request is under way: AWS executes it, and nobody receives the response.
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


def test_cleanup_completes_an_interrupted_cleanup(aws: AwsServer, job: Path, tmp_path: Path) -> None:
    for stage in REMOVALS:
        aws.calls.clear()
        assert detached(job, "--hosts", 2) == 0
        run = submitted_run(aws)
        with started("submit", "ec2", "--cleanup", run, cwd=tmp_path, variables=aws.variables) as command:
            aws.before(stage, lambda _, process=command.process: process.kill())
            assert command.finish().returncode == -9, stage
        aws.before(stage, lambda _: None)
        assert main(["submit", "ec2", "--cleanup", run]) == 0, stage
        assert leftovers(aws) == [], stage


def test_cleanup_without_a_name_keeps_active_and_foreign_runs(
    aws: AwsServer, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert detached(job) == 0
    active = submitted_run(aws)
    before = leftovers(aws)
    aws.client("iam").create_role(
        RoleName="crossfade-of-another",
        Path="/crossfade/us-east-1/",
        AssumeRolePolicyDocument="{}",
        Tags=[{"Key": "crossfade:owner", "Value": "arn:aws:iam::123456789012:user/another"}],
    )
    aws.client("iam").create_role(RoleName="crossfade", AssumeRolePolicyDocument="{}")  # made without Crossfade
    assert main(["submit", "ec2", "--cleanup"]) == 0
    stderr = capsys.readouterr().err
    assert f"{active} still has 1 instance" in stderr
    assert "of-another belongs to arn:aws:iam::123456789012:user/another" in stderr
    assert sorted(leftovers(aws)) == sorted([*before, "role crossfade-of-another", "role crossfade"])


def test_resource_that_cannot_be_deleted_is_reported_and_the_rest_is_deleted(
    aws: AwsServer, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert detached(job, "--hosts", 2) == 0
    run = submitted_run(aws)
    aws.fail("DeleteRole", "AccessDenied", "not authorized to perform: iam:DeleteRole", times=0)
    aws.fail("DeleteSecurityGroup", "DependencyViolation", "resource has a dependent object", times=3)
    assert main(["submit", "ec2", "--cleanup", run]) == 1
    stderr = capsys.readouterr().err.splitlines()[-1]
    assert f"cannot delete all resources of the run {run}" in stderr
    assert "iam:DeleteRole" in stderr
    assert leftovers(aws) == [f"role crossfade-{run}"]


def test_unknown_run_is_rejected(aws: AwsServer, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--cleanup", "--follow"):
        assert main(["submit", "ec2", option, "planted-00000000"]) == 2
        assert "run planted-00000000 not found" in capsys.readouterr().err
    assert main(["submit", "ec2", "--cleanup", "../x"]) == 2
    assert main(["submit", "ec2"]) == 2
