"""Clients, error messages, accelerators and prices of AWS."""

import json
import os
from collections.abc import Callable
from typing import Any

import pytest
from aws_server import ACCOUNT, REGION, AwsServer
from documented_policies import unrestricted

from crossfade.base.errors import InputError
from crossfade.deploy.aws.accelerators import gpu_of, variant_of
from crossfade.deploy.aws.aws_errors import CloudError, CloudRequestError, translate_aws_errors
from crossfade.deploy.aws.clients import Aws
from crossfade.deploy.aws.prices import Service, describe_cost
from crossfade.trainer.config.sections import EngineName

P2_QUOTA = (
    "The account-level service limit 'ml.p2.xlarge for training job usage' is 0 Instances, with current utilization of "
    "0 Instances and a request delta of 1 Instances. Please use AWS Service Quotas to request an increase for this "
    "quota."
)
DENIED = (
    "User: arn:aws:iam::123456789012:user/ann is not authorized to perform: sagemaker:CreateTrainingJob on resource: "
    "arn:aws:sagemaker:us-east-1:123456789012:training-job/x because no identity-based policy allows the "
    "sagemaker:CreateTrainingJob action"
)


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


@pytest.mark.slow
def test_throttled_request_is_retried(aws: AwsServer) -> None:
    aws.fail("ListTrainingJobs", "ThrottlingException", "Rate exceeded", times=2)
    with translate_aws_errors("listing", REGION):
        assert Aws().sagemaker.list_training_jobs()["TrainingJobSummaries"] == []
    assert len(aws.calls_of("ListTrainingJobs")) == 3


@pytest.mark.parametrize(
    ("code", "message", "kind", "exit_code", "expected"),
    [
        ("ResourceLimitExceeded", P2_QUOTA, "quota", 2, "the quota 'ml.p2.xlarge for training job usage'"),
        ("AccessDeniedException", DENIED, "permission", 2, "because no identity-based policy allows"),
        ("AccessDeniedException", "", "permission", 2, "lack the permission ListTrainingJobs"),
        ("ExpiredTokenException", "The security token is expired", "credentials", 2, "have expired"),
        ("UnrecognizedClientException", "The security token is invalid.", "credentials", 2, "rejects the credentials"),
        ("OptInRequired", "You are not subscribed", "region", 2, "set the right one"),
        ("ResourceNotFound", "Requested resource not found.", "missing", 2, "Requested resource not found."),
        ("ImageNotFoundException", "no such image", "missing", 2, "no such image"),
        ("ValidationException", "1 validation error", "request", 2, "AWS rejects ListTrainingJobs"),
        ("InsufficientInstanceCapacity", "none left", "capacity", 1, "no capacity for this instance type in us-east-1"),
        ("ThrottlingException", "Rate exceeded", "throttled", 1, "also after retries"),
        ("InternalFailure", "oh", "fault", 1, "an internal fault"),
    ],
)
def test_aws_error_becomes_one_line_with_its_fix(
    aws: AwsServer, monkeypatch: pytest.MonkeyPatch, code: str, message: str, kind: str, exit_code: int, expected: str
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    aws.fail("ListTrainingJobs", code, message)
    with pytest.raises((CloudError, CloudRequestError)) as caught, translate_aws_errors("listing the jobs", REGION):
        Aws().sagemaker.list_training_jobs()
    assert (caught.value.kind, caught.value.exit_code, caught.value.code) == (kind, exit_code, code)
    line = str(caught.value)
    assert line.startswith("listing the jobs: ")
    assert expected in line
    assert "\n" not in line


@pytest.mark.slow
def test_xml_error_of_ec2_and_cloudformation_is_translated(aws: AwsServer) -> None:
    def failure(send: Callable[..., object], **request: Any) -> CloudRequestError:
        with pytest.raises(CloudRequestError) as caught, translate_aws_errors("looking", REGION):
            send(**request)
        return caught.value

    aws.fail("DescribeInstances", "UnauthorizedOperation", "You are not authorized to perform this operation.")
    assert "lack the permission DescribeInstances" in str(failure(Aws().ec2.describe_instances))
    aws.fail("GetTemplate", "ChangeSetNotFound", "The change set x cannot be found.", status=404)
    error = failure(Aws().cloudformation.get_template, StackName="x")
    assert (error.kind, "The change set x" in str(error)) == ("missing", True)
    aws.fail("RunInstances", "VcpuLimitExceeded", "more vCPU capacity than your current vCPU limit of 0 allows")
    assert "the quota 'vCPU limit of 0'" in str(failure(Aws().ec2.run_instances, MinCount=1, MaxCount=1))
    aws.fail("DescribeInstances", "InvalidInstanceID.NotFound", "no i-1")
    assert failure(Aws().ec2.get_waiter("instance_terminated").wait, InstanceIds=["i-1"]).kind == "missing"


def test_missing_credentials_or_region_send_no_request(aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CloudRequestError, match="'Virginia' is not the name of an AWS region"):
        Aws(region="Virginia")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(CloudRequestError, match="no AWS credentials were found; set AWS_PROFILE"):
        Aws().account()
    monkeypatch.delenv("AWS_REGION")
    with pytest.raises(CloudRequestError, match="no AWS region is set; set one with region"):
        Aws()
    with pytest.raises(CloudRequestError, match="profile") as caught:
        Aws(region=REGION, profile="nobody")
    assert caught.value.kind == "credentials"
    assert aws.calls == []


def test_unreachable_endpoint_error_names_the_region(aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(CloudError, match="Check that the region 'us-east-1' has this service") as caught:
        Aws().account()
    assert caught.value.kind == "unreachable"


@pytest.mark.parametrize(
    ("instance_type", "engine", "gpu", "variant"),
    [
        ("ml.p2.xlarge", "auto", "K80", "cu90"),
        ("p2.xlarge", "cpu", "K80", "cu90"),
        ("p3.2xlarge", "auto", "V100", "cu112"),
        ("g3.4xlarge", "auto", "M60", "cu112"),
        ("g4dn.xlarge", "auto", "T4", "torch"),
        ("g5.xlarge", "mxnet", "A10G", "cu112"),
        ("g5.48xlarge", "cpu", "A10G", "torch"),
        ("ml.p5.48xlarge", "auto", "H100", "torch"),
        ("p6-b300.48xlarge", "torch", "B300", "torch"),
        ("g7e.2xlarge", "auto", "RTX PRO 6000", "torch"),
        ("r6i.4xlarge", "mxnet", None, "cpu"),
        ("c7i-flex.large", "auto", None, "cpu"),
        ("x2idn.16xlarge", "auto", None, "cpu"),
        ("r7g.4xlarge", "cpu", None, "slim"),
        ("m8g.metal-24xl", "auto", None, "slim"),
        ("ml.m6g.large", "auto", None, "slim"),
        ("a1.large", "auto", None, "slim"),
    ],
)
def test_gpu_and_engine_select_the_image_variant(
    instance_type: str, engine: EngineName, gpu: str | None, variant: str
) -> None:
    found = gpu_of(instance_type)
    assert (found.name if found else None, variant_of(instance_type, engine)) == (gpu, variant)


@pytest.mark.parametrize(
    ("instance_type", "engine", "reason"),
    [
        ("g7e.2xlarge", "mxnet", r"RTX PRO 6000 \(.* 12.0\); leave train.engine out, which uses PyTorch"),
        ("p2.xlarge", "torch", r"PyTorch has no code for the GPU of p2.xlarge, K80 .*, which uses MXNet, or choose"),
        ("p3.2xlarge", "torch", r"V100 \(compute capability 7.0\).* such as g4dn.xlarge or g5.xlarge"),
        ("r6i.4xlarge", "torch", r"r6i.4xlarge has no GPU, and the image for it, crossfade:cpu, has no PyTorch; leave"),
        ("r7g.4xlarge", "torch", r"r7g.4xlarge has no GPU, and the image for it, crossfade:slim, has no PyTorch"),
        ("r7g.4xlarge", "mxnet", r"r7g.4xlarge has an Arm processor .*, for which there is no MXNet package; leave"),
    ],
)
def test_engine_without_code_for_the_gpu_is_rejected_with_the_choices(
    instance_type: str, engine: EngineName, reason: str
) -> None:
    with pytest.raises(InputError, match=f"^train.engine is {engine}, but .*{reason}"):
        variant_of(instance_type, engine)


@pytest.mark.parametrize(
    ("instance_type", "reason"),
    [
        ("ml.g5g.xlarge", r"its GPU \(NVIDIA T4G\) is beside an Arm processor"),
        ("trn1.2xlarge", "AWS Trainium"),
        ("g4ad.xlarge", "AMD Radeon"),
        ("mac1.metal", "unknown family 'mac1'"),
        ("large", "expected one such as g4dn.xlarge"),
    ],
)
def test_unsupported_instance_type_is_rejected_with_the_reason(instance_type: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        variant_of(instance_type)


def _product(usage: str, dollars: str) -> str:
    terms = {"OnDemand": {"a": {"priceDimensions": {"b": {"unit": "Hrs", "pricePerUnit": {"USD": dollars}}}}}}
    return json.dumps({"product": {"attributes": {"usagetype": usage}}, "terms": terms})


@pytest.mark.parametrize(
    ("service", "kind", "spot", "line"),
    [
        (
            "AmazonSageMaker",
            "ml.g5.xlarge",
            False,
            "cost: $3.14 an hour, $75.36 at most (2 x ml.g5.xlarge, 24 h at most; price: AWS's price list, eu-west-1)",
        ),
        (
            "AmazonEC2",
            "g5.xlarge",
            True,
            "cost: $18.00 an hour, $432.00 at most (2 x g5.xlarge, 24 h at most; price: AWS's price list, eu-west-1; "
            "on demand, spot costs less)",
        ),
    ],
)
def test_cost_comes_from_the_price_list(aws: AwsServer, service: Service, kind: str, spot: bool, line: str) -> None:
    products = [_product("EUW1-Host:ml.g5.xlarge", "9.0"), _product("EUW1-Train:ml.g5.xlarge", "1.57")]
    aws.answer("GetProducts", {"FormatVersion": "aws_v1", "PriceList": products})
    assert describe_cost(Aws(region="eu-west-1"), service, kind, hosts=2, hours=24, spot=spot) == line
    fields = {each["Field"]: each["Value"] for each in aws.calls_of("GetProducts")[0].body["Filters"]}
    assert fields["regionCode"] == "eu-west-1"
    assert fields["instanceType" if service == "AmazonEC2" else "instanceName"] == kind


def test_cost_is_unknown_without_the_right_to_read_the_price_list(aws: AwsServer) -> None:
    def cost(account: Aws | None) -> str:
        return describe_cost(account, "AmazonEC2", "p2.xlarge", hosts=2, hours=3, spot=True)

    assert cost(None) == "cost: unknown: AWS's price list was not read; 2 x p2.xlarge, 3 h at most"
    assert cost(Aws()).startswith("cost: unknown: AWS's price list has none for us-east-1; ")
    aws.fail("GetProducts", "AccessDeniedException", "User: x is not authorized to perform: pricing:GetProducts")
    assert cost(Aws()).startswith("cost: unknown: AWS's price list cannot be read: AccessDeniedException; ")


def test_documented_policies_allow_no_action_on_everything() -> None:
    assert unrestricted() == []
