"""``crossfade submit sagemaker``: options that it rejects, and errors of AWS, whose wording ``test_aws.py`` tests."""

import re
import shlex
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from aws_server import ACCOUNT, REGION, AwsServer
from botocore.model import StructureShape
from botocore.validate import ParamValidator
from running_command import succeeded
from submitting_sagemaker import IMAGE, ROLE, command, submit

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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--stop", "plays-1", "--dry-run"), "--dry-run: does not apply to --stop; leave it out"),
        (("--follow", "plays-1", "--hosts", 4), "--hosts: does not apply to --follow; leave it out"),
        (
            ("--stop", "plays-1", "--follow", "plays-1"),
            "--stop: was given, and so was --follow; expected one of JOB, --follow, or --stop",
        ),
    ],
)
def test_options_that_an_action_would_ignore_are_rejected(
    aws: AwsServer, arguments: tuple[object, ...], message: str
) -> None:
    result = command(aws, *arguments)
    assert (result.returncode, result.stderr) == (2, f"crossfade: error: {message}\n")


def test_documented_commands_of_endpoints_are_valid() -> None:
    sagemaker = botocore.session.get_session().get_service_model("sagemaker")
    text = (Path(__file__).parents[4] / "docs" / "aws.md").read_text().replace("\\\n", " ")
    found = re.findall(r"^aws sagemaker create-(.*)$", text, re.MULTILINE)
    assert len(found) == 4
    for verb, *words in map(shlex.split, found):
        shape = sagemaker.operation_model(f"Create{verb.title().replace('-', '')}").input_shape
        assert isinstance(shape, StructureShape)
        names = {f"--{botocore.xform_name(name, '-')}": name for name in shape.members}
        request = {}
        for option, value in zip(words[::2], words[1::2], strict=True):
            parsed, name = shorthand(value), names[option]
            request[name] = [parsed] if shape.members[name].type_name == "list" else parsed
        assert ParamValidator().validate(request, shape).generate_report() == ""


def shorthand(text: str) -> Any:
    """Parse a value as the AWS command line does: ``A=1,B={C=x}``."""
    pairs = re.findall(r"(\w+)=(\{(?:[^{}]|\{[^{}]*\})*\}|[^,{}]+)", text)
    if pairs and "=" in text:
        return {name: shorthand(value[1:-1] if value[0] == "{" else value) for name, value in pairs}
    return int(text) if text.isdecimal() else text
