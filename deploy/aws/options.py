"""Options of the verbs that call AWS."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from crossfade.base.options import Options, option

if TYPE_CHECKING:
    from crossfade.deploy.aws.clients import Aws

DEFAULT_EC2_TYPE = "p2.xlarge"
DEFAULT_SAGEMAKER_TYPE = "ml.p2.xlarge"
DEFAULT_ENDPOINT_TYPE = "ml.m5.large"

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
        from crossfade.deploy.aws.clients import Aws

        return Aws(self.region, self.profile)
