"""Clients, error messages, and accelerators of AWS."""

import os

import pytest
from aws_server import ACCOUNT, REGION, AwsServer
from documented_policies import unrestricted

from crossfade.deploy.aws.accelerators import gpu_of, variant_of
from crossfade.deploy.aws.aws_errors import CloudError, CloudRequestError, translate_aws_errors
from crossfade.deploy.aws.clients import Aws
from crossfade.trainer.config.sections import EngineName


@pytest.fixture
def aws(server: AwsServer, monkeypatch: pytest.MonkeyPatch) -> AwsServer:
    server.reset()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in server.variables.items():
        monkeypatch.setenv(name, value)
    return server


@pytest.mark.slow
def test_client_uses_endpoint_and_region_of_the_environment(aws: AwsServer) -> None:
    assert Aws().account() == ACCOUNT
    assert Aws(region="eu-west-1").account() == ACCOUNT
    assert [(call.service, call.action, call.region) for call in aws.calls] == [
        ("sts", "GetCallerIdentity", REGION),
        ("sts", "GetCallerIdentity", "eu-west-1"),
    ]


@pytest.mark.parametrize(
    ("action", "code", "kind", "exit_code", "advice"),
    [
        ("ListTrainingJobs", "ResourceLimitExceeded", "quota", 2, "request an increase in AWS's console"),
        ("ListTrainingJobs", "AccessDeniedException", "permission", 2, "allow it by an IAM policy"),
        ("ListTrainingJobs", "ExpiredTokenException", "credentials", 2, "log in"),
        ("ListTrainingJobs", "OptInRequired", "region", 2, "set the right region with region"),
        ("ListTrainingJobs", "ResourceNotFound", "missing", 2, ""),
        ("ListTrainingJobs", "ValidationException", "request", 2, ""),
        ("ListTrainingJobs", "CapacityError", "capacity", 1, "try again later"),
        ("ListTrainingJobs", "ThrottlingException", "throttled", 1, "try again in some minutes"),
        ("ListTrainingJobs", "InternalFailure", "fault", 1, "try again in some minutes"),
        ("DescribeInstances", "UnauthorizedOperation", "permission", 2, "allow it by an IAM policy"),
        ("DescribeInstances", "VcpuLimitExceeded", "quota", 2, "request an increase"),
        ("DescribeInstances", "InvalidInstanceID.NotFound", "missing", 2, ""),
        ("DescribeInstances", "AuthFailure", "credentials", 2, "log in"),
    ],
)
def test_aws_error_becomes_one_line_with_its_fix(
    aws: AwsServer, monkeypatch: pytest.MonkeyPatch, action: str, code: str, kind: str, exit_code: int, advice: str
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    aws.fail(action, code, "a message\n in two lines.")
    call = Aws().sagemaker.list_training_jobs if action == "ListTrainingJobs" else Aws().ec2.describe_instances
    with pytest.raises((CloudError, CloudRequestError)) as caught, translate_aws_errors("listing", REGION):
        call()
    assert (caught.value.kind, caught.value.exit_code, caught.value.code) == (kind, exit_code, code)
    found = f"listing: a message in two lines ({code}, region us-east-1)"
    assert str(caught.value).startswith(f"{found}; {advice}" if advice else found)


def test_missing_credentials_or_region_send_no_request(aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(CloudRequestError, match="Unable to locate credentials; log in"):
        Aws().account()
    monkeypatch.delenv("AWS_REGION")
    with pytest.raises(CloudRequestError, match="no AWS region is set; set one with region"):
        Aws()
    with pytest.raises(CloudRequestError, match="profile") as caught:
        Aws(region=REGION, profile="nobody")
    assert caught.value.kind == "credentials"
    assert aws.calls == []


@pytest.mark.parametrize(
    ("instance_type", "engine", "gpu", "variant"),
    [
        ("ml.p2.xlarge", "auto", "K80", "cu90"),
        ("p3.2xlarge", "auto", "V100", "cu112"),
        ("g3.4xlarge", "auto", "M60", "cu112"),
        ("g4dn.xlarge", "auto", "T4", "torch"),
        ("g5.xlarge", "mxnet", "A10G", "cu112"),
        ("g7e.2xlarge", "auto", "RTX PRO 6000", "torch"),
        ("r6i.4xlarge", "mxnet", None, "cpu"),
        ("x2idn.16xlarge", "auto", None, "cpu"),
    ],
)
def test_gpu_and_engine_select_the_image_variant(
    instance_type: str, engine: EngineName, gpu: str | None, variant: str
) -> None:
    found = gpu_of(instance_type)
    assert (found.name if found else None, variant_of(instance_type, engine)) == (gpu, variant)


def test_documented_policies_allow_no_action_on_everything() -> None:
    assert unrestricted() == []
