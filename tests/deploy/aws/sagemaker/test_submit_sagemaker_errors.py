"""``crossfade submit sagemaker`` when AWS answers with errors, whose wording ``test_aws.py`` tests."""

from pathlib import Path

import pytest
from aws_server import ACCOUNT, REGION, AwsServer
from running_command import succeeded
from submitting_sagemaker import IMAGE, ROLE, submit

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("action", "code", "message", "exit_code", "expected"),
    [
        (
            "CreateTrainingJob",
            "AccessDeniedException",
            f"User: arn:aws:iam::{ACCOUNT}:user/ann is not authorized to perform: iam:PassRole on resource: {ROLE} "
            "because no identity-based policy allows the iam:PassRole action",
            2,
            f"these credentials lack the permission iam:PassRole on {ROLE}, because no identity-based policy allows",
        ),
        ("CreateTrainingJob", "CapacityError", "Unable to provision capacity.", 1, "no capacity for this instance"),
        ("DescribeImages", "ImageNotFoundException", "no image cu90", 2, "push it as docs/aws.md describes"),
    ],
)
def test_aws_error_is_one_line_with_its_fix(
    aws: AwsServer, job: Path, action: str, code: str, message: str, exit_code: int, expected: str
) -> None:
    aws.fail(action, code, message)
    result = submit(aws, job)
    assert result.returncode == exit_code, result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("crossfade: error: ")
    assert expected in last


def test_image_of_another_region_is_rejected_before_the_job_starts(aws: AwsServer, job: Path) -> None:
    other = submit(aws, job, "--image", IMAGE.replace(REGION, "eu-west-1"))
    assert other.returncode == 2
    assert "is in eu-west-1, but the job is to run in us-east-1" in other.stderr
    assert aws.calls_of("CreateTrainingJob") == []


def test_job_is_submitted_without_permission_to_read_images_or_prices(aws: AwsServer, job: Path) -> None:
    denied = "User: x is not authorized to perform: {} on resource: y because no policy allows it"
    aws.fail("DescribeImages", "AccessDeniedException", denied.format("ecr:DescribeImages"))
    aws.fail("GetProducts", "AccessDeniedException", denied.format("pricing:GetProducts"))
    result = succeeded(submit(aws, job))
    assert "lack the permission ecr:DescribeImages" in result.stderr
    assert "AWS's price list cannot be read: AccessDeniedException" in result.stderr
