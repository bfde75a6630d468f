"""Clients, error messages, accelerators and prices of AWS."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aws_server import ACCOUNT, REGION, AwsServer
from documented_policies import unrestricted

from crossfade.base.errors import InputError
from crossfade.deploy.aws.accelerators import gpu_of, variant_of
from crossfade.deploy.aws.aws_errors import CloudError, CloudRequestError, translate_aws_errors
from crossfade.deploy.aws.clients import Aws
from crossfade.deploy.aws.prices import Cost, Price, hourly_price
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
        ("OptInRequired", "You are not subscribed", "region", 2, "with region"),
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
def test_xml_error_of_ec2_and_iam_is_translated(aws: AwsServer) -> None:
    def failure(send: Callable[..., object], **request: Any) -> CloudRequestError:
        with pytest.raises(CloudRequestError) as caught, translate_aws_errors("looking", REGION):
            send(**request)
        return caught.value

    aws.fail("DescribeInstances", "UnauthorizedOperation", "You are not authorized to perform this operation.")
    assert "lack the permission DescribeInstances" in str(failure(Aws().ec2.describe_instances))
    aws.fail("GetRole", "NoSuchEntity", "The role with name x cannot be found.", status=404)
    error = failure(Aws().iam.get_role, RoleName="x")
    assert (error.kind, "The role with name x" in str(error)) == ("missing", True)
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
    ("instance_type", "gpu", "variant"),
    [
        ("ml.p2.xlarge", "K80", "cu90"),
        ("p3.2xlarge", "V100", "cu112"),
        ("g3.4xlarge", "M60", "cu112"),
        ("g4dn.xlarge", "T4", "torch"),
        ("g5.48xlarge", "A10G", "torch"),
        ("ml.p5.48xlarge", "H100", "torch"),
        ("p6-b300.48xlarge", "B300", "torch"),
        ("g7e.2xlarge", "RTX PRO 6000", "torch"),
        ("r6i.4xlarge", None, "cpu"),
        ("c7i-flex.large", None, "cpu"),
        ("x2idn.16xlarge", None, "cpu"),
        ("r7g.4xlarge", None, "slim"),
        ("c7gn.xlarge", None, "slim"),
        ("m8g.metal-24xl", None, "slim"),
        ("ml.m6g.large", None, "slim"),
        ("a1.large", None, "slim"),
    ],
)
def test_gpu_selects_the_image_variant(instance_type: str, gpu: str | None, variant: str) -> None:
    found = gpu_of(instance_type)
    assert (found.name if found else None, variant_of(instance_type)) == (gpu, variant)


@pytest.mark.parametrize(
    ("instance_type", "engine", "variant"),
    [
        ("g5.xlarge", "mxnet", "cu112"),
        ("g5.xlarge", "torch", "torch"),
        ("g5.xlarge", "cpu", "torch"),
        ("p2.xlarge", "cpu", "cu90"),
        ("r6i.4xlarge", "mxnet", "cpu"),
        ("r7g.4xlarge", "cpu", "slim"),
    ],
)
def test_named_engine_selects_a_variant_that_has_it(instance_type: str, engine: EngineName, variant: str) -> None:
    assert variant_of(instance_type, engine) == variant


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


def test_price_list_gives_the_training_price(aws: AwsServer) -> None:
    products = [_product("EUW1-Host:ml.g5.xlarge", "9.0"), _product("EUW1-Train:ml.g5.xlarge", "1.57")]
    aws.answer("GetProducts", {"FormatVersion": "aws_v1", "PriceList": products})
    price = hourly_price(Aws(region="eu-west-1"), "AmazonSageMaker", "ml.g5.xlarge")
    assert price == Price(1.57, "AWS's price list, eu-west-1")
    fields = {each["Field"]: each["Value"] for each in aws.calls_of("GetProducts")[0].body["Filters"]}
    assert fields == {"regionCode": "eu-west-1", "instanceName": "ml.g5.xlarge"}


def test_denied_price_list_falls_back_to_the_dated_table(aws: AwsServer) -> None:
    aws.fail("GetProducts", "AccessDeniedException", "User: x is not authorized to perform: pricing:GetProducts")
    price = hourly_price(Aws(), "AmazonEC2", "p2.xlarge")
    assert price.dollars == 0.90
    assert price.source == (
        "us-east-1, July 2025, from the built-in table; AWS's price list cannot be read: AccessDeniedException"
    )


def test_cost_ceiling_is_hours_times_hosts_times_price() -> None:
    cost = Cost(Price(1.5, "somewhere"), hosts=2, hours=24)
    assert (cost.hourly, cost.ceiling) == (3.0, 72.0)
    assert cost.explain("ml.g5.xlarge", spot=True) == (
        "cost: $3.00 an hour, $72.00 at most (2 x ml.g5.xlarge, 24 h at most; price: somewhere; on demand, spot costs "
        "less)"
    )
    unknown = Cost(hourly_price(None, "AmazonSageMaker", "ml.r5.large"), hosts=1, hours=1)
    assert unknown.ceiling is None
    assert unknown.explain("ml.r5.large", spot=False).startswith(
        "cost: unknown: the price of ml.r5.large is not in the table"
    )


def test_documented_policies_allow_no_action_on_everything() -> None:
    assert unrestricted() == []


def test_few_files_import_boto3() -> None:
    root = Path(__file__).resolve().parents[3]
    importers = {
        str(path.relative_to(root))
        for package in ("kvstore", "trainer", "deploy", "crossfade")
        for path in (root / package).rglob("*.py")
        if re.search(r"^\s*(import boto|from boto(3|core)[. ])", path.read_text(), re.MULTILINE)
    }
    assert importers == {
        "crossfade/base/io/s3_conditional.py",
        "deploy/aws/aws_errors.py",
        "deploy/aws/clients.py",
        "trainer/formats/s3_vectors.py",
        "trainer/prepare/lake_tables.py",
    }
