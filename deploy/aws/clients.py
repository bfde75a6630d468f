"""Clients of AWS services, all with the same region, credentials, timeouts and retries.

    aws = Aws(region="eu-west-1")
    with translate_aws_errors("starting the training job", aws.region):      # deploy/aws/aws_errors.py
        aws.sagemaker.create_training_job(**request)

Credentials, profile and endpoint are configured as for the AWS command line (``AWS_PROFILE``, ``AWS_ACCESS_KEY_ID``,
``~/.aws``, ``AWS_ENDPOINT_URL`` ...). In ``deploy``, only this file and ``aws_errors.py`` import boto3 and botocore.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from crossfade.base.errors import MissingExtraError, Option
from crossfade.base.options import Options, option
from crossfade.deploy.aws.aws_errors import CloudRequestError, translate_aws_errors

if TYPE_CHECKING:
    from botocore.config import Config
    from mypy_boto3_autoscaling import AutoScalingClient
    from mypy_boto3_cloudformation import CloudFormationClient
    from mypy_boto3_ec2 import EC2Client
    from mypy_boto3_ecr import ECRClient
    from mypy_boto3_logs import CloudWatchLogsClient
    from mypy_boto3_pricing import PricingClient
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_sagemaker import SageMakerClient
    from mypy_boto3_secretsmanager import SecretsManagerClient
    from mypy_boto3_ssm import SSMClient
    from mypy_boto3_sts import STSClient

PRICING_REGION = "us-east-1"
"""The price list of all regions is served here."""
CONNECT_SECONDS, READ_SECONDS = 10, 60
MAX_ATTEMPTS = 8
"""Attempts for a request that is throttled or not answered, with exponential backoff and jitter up to 20 s."""
_REGION = re.compile(r"[a-z]{2,4}(-[a-z]+)+-[0-9]+")


class Aws:
    """An account in a region, reached with the credentials of the environment. Clients are created on first use."""

    autoscaling: AutoScalingClient
    cloudformation: CloudFormationClient
    ec2: EC2Client
    ecr: ECRClient
    logs: CloudWatchLogsClient
    pricing: PricingClient
    s3: S3Client
    sagemaker: SageMakerClient
    secretsmanager: SecretsManagerClient
    ssm: SSMClient
    sts: STSClient

    def __init__(self, region: str | None = None, profile: str | None = None) -> None:
        """Use ``region`` or, without one, the region of AWS_REGION, AWS_DEFAULT_REGION or the profile.

        Raises:
            MissingExtraError: boto3 is not installed.
            CloudRequestError: there is no region, or the profile does not exist.
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
                "no AWS region is set; set one with ",
                Option("region"),
                " or AWS_REGION, as in ",
                Option("region", "us-east-1"),
                kind="region",
            )
        if not _REGION.fullmatch(self.region):
            raise CloudRequestError(
                f"'{self.region}' is not the name of an AWS region; expected one such as us-east-1", kind="region"
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
                "total_max_attempts": int(attempts) if attempts.isdecimal() and int(attempts) else MAX_ATTEMPTS,
            },
            user_agent_extra="crossfade",
        )

    @property
    def partition(self) -> str:
        """The partition in ARNs of the region: aws, aws-cn or aws-us-gov."""
        return self._session.get_partition_for_region(self.region)

    @property
    def domain(self) -> str:
        """The domain of the region's services."""
        return "amazonaws.com.cn" if self.partition == "aws-cn" else "amazonaws.com"

    def account(self) -> str:
        """Return the number of the account. The call needs credentials but no permission.

        Raises:
            CloudError, CloudRequestError: as ``caller``.
        """
        return self.caller()[0]

    def caller(self) -> tuple[str, str]:
        """Return the account and the ARN of the caller; of an assumed role without the session's name, which changes.

        Raises:
            CloudError: AWS does not answer.
            CloudRequestError: the credentials are missing, wrong or expired.
        """
        with translate_aws_errors("looking up the account of the credentials", self.region):
            if self._session.get_credentials() is None:
                raise CloudRequestError(
                    "no AWS credentials were found; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                    "or log in with 'aws sso login' "
                    "(https://docs.aws.amazon.com/cli/latest/userguide/cli-configure-files.html)",
                    kind="credentials",
                )
            identity = self.sts.get_caller_identity()
        arn = identity["Arn"]
        return identity["Account"], "/".join(arn.split("/")[:2]) if ":assumed-role/" in arn else arn

    def check_request(self, client: Any, operation: str, request: Mapping[str, Any]) -> None:
        """Validate ``request`` against botocore's model of ``operation``, without sending it.

        Raises:
            CloudRequestError: it is invalid.
        """
        from botocore.exceptions import ParamValidationError
        from botocore.validate import ParamValidator

        shape = client.meta.service_model.operation_model(operation).input_shape
        with translate_aws_errors(f"checking the request {operation}", self.region):
            report = ParamValidator().validate(request, shape)
            if report.has_errors():
                raise ParamValidationError(report=report.generate_report())

    if not TYPE_CHECKING:  # so that mypy rejects a service that is not declared

        def __getattr__(self, service: str) -> Any:
            """Create the client of a service, at its first use."""
            if service not in Aws.__annotations__:
                raise AttributeError(service)
            region = PRICING_REGION if service == "pricing" else None
            client = self._session.client(service, region_name=region, config=self._config)
            setattr(self, service, client)
            return client


_account = partial(option, group="account")


class AccountOptions(Options):
    """The account and the region."""

    region: str | None = _account(None, "use this AWS region (default: AWS_REGION, or the profile's)", value="REGION")
    profile: str | None = _account(None, "use this AWS profile (default: AWS_PROFILE)", value="NAME")

    def aws(self) -> Aws:
        """Return the account and its clients.

        Raises:
            MissingExtraError: boto3 is not installed.
            CloudRequestError: there is no region, or the profile does not exist.
        """
        return Aws(self.region, self.profile)
