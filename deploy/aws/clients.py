"""Clients of AWS services, all with the same region, credentials, patience and retries.

    aws = Aws(region="eu-west-1")
    with explained("starting the training job", aws.region):      # deploy/aws/errors.py
        aws.sagemaker.create_training_job(**request)

Credentials, profile and endpoint come from where the AWS tools take them (``AWS_PROFILE``, ``AWS_ACCESS_KEY_ID``,
``~/.aws``, ``AWS_ENDPOINT_URL`` ...). This file and ``aws_errors.py`` alone import boto3 and botocore.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from deploy.aws.errors import translate_aws_errors
from kvstore.errors import CloudRequestError, MissingExtraError

if TYPE_CHECKING:
    from botocore.config import Config
    from mypy_boto3_ec2 import EC2Client
    from mypy_boto3_ecr import ECRClient
    from mypy_boto3_iam import IAMClient
    from mypy_boto3_logs import CloudWatchLogsClient
    from mypy_boto3_pricing import PricingClient
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_sagemaker import SageMakerClient
    from mypy_boto3_ssm import SSMClient
    from mypy_boto3_sts import STSClient

PRICING_REGION = "us-east-1"
"""Where the price list of all regions is answered."""
CONNECT_SECONDS, READ_SECONDS = 10, 60
ATTEMPTS = 8
"""Of a request that is throttled, or not answered: with pauses that double and vary, up to 20 s each."""
_REGION = re.compile(r"[a-z]{2,4}(-[a-z]+)+-[0-9]+")


class Aws:
    """An account in a region, as the credentials of the environment reach it. Clients are made when first used."""

    def __init__(self, region: str | None = None, profile: str | None = None) -> None:
        """Use ``region``, or that of AWS_REGION, AWS_DEFAULT_REGION or the profile.

        Raises:
            MissingExtraError: boto3 is not installed.
            RefusedError: no region is named, the profile is not there, or there are no credentials.
        """
        try:
            import boto3
        except ImportError as error:
            raise MissingExtraError("boto3", "aws", "crossfade submit") from error
        region = region or os.environ.get("AWS_REGION")
        with translate_aws_errors("reading the AWS configuration", region or ""):
            self._session = boto3.Session(region_name=region, profile_name=profile)
        self.region: str = self._session.region_name or ""
        if not self.region:
            raise CloudRequestError(
                "no AWS region is named; name one with --region or AWS_REGION, as in --region us-east-1", "region"
            )
        if not _REGION.fullmatch(self.region):
            raise CloudRequestError(
                f"'{self.region}' is not the name of an AWS region; expected one as us-east-1", "region"
            )

    @cached_property
    def _config(self) -> Config:
        from botocore.config import Config

        mode = os.environ.get("AWS_RETRY_MODE", "standard")
        attempts = os.environ.get("AWS_MAX_ATTEMPTS", "")
        return Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            retries={
                "mode": "adaptive" if mode == "adaptive" else "standard",
                "total_max_attempts": int(attempts) if attempts.isdecimal() and int(attempts) else ATTEMPTS,
            },
            user_agent_extra="crossfade",
        )

    @property
    def partition(self) -> str:
        """What ARNs of the region begin with: aws, aws-cn or aws-us-gov."""
        return self._session.get_partition_for_region(self.region)

    @property
    def domain(self) -> str:
        """The domain of the region's services."""
        return "amazonaws.com.cn" if self.partition == "aws-cn" else "amazonaws.com"

    def check_credentials(self) -> None:
        """See that there are credentials at all, without a request.

        Raises:
            RefusedError: there are none.
        """
        with translate_aws_errors("looking for AWS credentials", self.region):
            credentials = self._session.get_credentials()
        if credentials is None:
            raise CloudRequestError(
                "no AWS credentials were found; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
                "log in with 'aws sso login' (https://docs.aws.amazon.com/cli/latest/userguide/cli-configure-files.html)",
                "credentials",
            )

    def account(self) -> str:
        """The number of the account, which anybody who has credentials may ask for.

        Raises:
            RefusedError: the credentials are missing, wrong or expired.
        """
        self.check_credentials()
        with translate_aws_errors("asking whose the credentials are", self.region):
            return self.sts.get_caller_identity()["Account"]

    def check_request(self, client: Any, operation: str, request: Mapping[str, Any]) -> None:
        """See that ``request`` is one of ``operation`` by the service's own model, without asking the service.

        Raises:
            RefusedError: it is not.
        """
        from botocore.exceptions import ParamValidationError
        from botocore.validate import ParamValidator

        shape = client.meta.service_model.operation_model(operation).input_shape
        with translate_aws_errors(f"checking the request {operation}", self.region):
            report = ParamValidator().validate(request, shape)
            if report.has_errors():
                raise ParamValidationError(report=report.generate_report())

    @cached_property
    def ec2(self) -> EC2Client:
        """Virtual machines, and their networks."""
        return self._session.client("ec2", config=self._config)

    @cached_property
    def ecr(self) -> ECRClient:
        """The registry of images."""
        return self._session.client("ecr", config=self._config)

    @cached_property
    def iam(self) -> IAMClient:
        """Roles and their policies."""
        return self._session.client("iam", config=self._config)

    @cached_property
    def logs(self) -> CloudWatchLogsClient:
        """CloudWatch's logs."""
        return self._session.client("logs", config=self._config)

    @cached_property
    def pricing(self) -> PricingClient:
        """The price list."""
        return self._session.client("pricing", region_name=PRICING_REGION, config=self._config)

    @cached_property
    def s3(self) -> S3Client:
        """Buckets."""
        return self._session.client("s3", config=self._config)

    @cached_property
    def sagemaker(self) -> SageMakerClient:
        """Training jobs."""
        return self._session.client("sagemaker", config=self._config)

    @cached_property
    def ssm(self) -> SSMClient:
        """Parameters."""
        return self._session.client("ssm", config=self._config)

    @cached_property
    def sts(self) -> STSClient:
        """Who one is."""
        return self._session.client("sts", config=self._config)
