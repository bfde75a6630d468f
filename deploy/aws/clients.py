"""Clients of AWS services, all with the same region and credentials.

    aws = Aws(region="eu-west-1")
    with translate_aws_errors("starting the training job", aws.region):      # deploy/aws/aws_errors.py
        aws.sagemaker.create_training_job(**request)

Credentials, profile, endpoint, and retries are configured as for the AWS command line (``AWS_PROFILE``,
``AWS_ACCESS_KEY_ID``, ``~/.aws``, ``AWS_ENDPOINT_URL``, ``AWS_MAX_ATTEMPTS`` ...). In ``deploy``, only this file and
``aws_errors.py`` import boto3 and botocore.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

from crossfade.base.errors import MissingExtraError, Option
from crossfade.base.options import Options, option
from crossfade.deploy.aws.aws_errors import CloudRequestError, translate_aws_errors

if TYPE_CHECKING:
    from mypy_boto3_autoscaling import AutoScalingClient
    from mypy_boto3_cloudformation import CloudFormationClient
    from mypy_boto3_ec2 import EC2Client
    from mypy_boto3_ecr import ECRClient
    from mypy_boto3_logs import CloudWatchLogsClient
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_sagemaker import SageMakerClient
    from mypy_boto3_secretsmanager import SecretsManagerClient
    from mypy_boto3_ssm import SSMClient
    from mypy_boto3_sts import STSClient


class Aws:
    """An account in a region, reached with the credentials of the environment. Clients are created on first use."""

    autoscaling: AutoScalingClient
    cloudformation: CloudFormationClient
    ec2: EC2Client
    ecr: ECRClient
    logs: CloudWatchLogsClient
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
            CloudError: AWS does not answer.
            CloudRequestError: the credentials are missing, wrong or expired.
        """
        with translate_aws_errors("looking up the account of the credentials", self.region):
            return self.sts.get_caller_identity()["Account"]

    if not TYPE_CHECKING:  # so that mypy rejects a service that is not declared

        def __getattr__(self, service: str) -> Any:
            """Create the client of a service, at its first use."""
            if service not in Aws.__annotations__:
                raise AttributeError(service)
            with translate_aws_errors(f"connecting to {service}", self.region):
                client = self._session.client(service)
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
