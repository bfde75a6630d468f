"""Images in Amazon ECR: their parts, and a check that they exist before anything that costs money starts.

EcrImage.parse("123456789012.dkr.ecr.us-east-1.amazonaws.com/crossfade:cpu").tag     # "cpu"
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from crossfade.base.errors import Option
from crossfade.deploy.aws.aws_errors import CloudRequestError, translate_aws_errors

if TYPE_CHECKING:
    from crossfade.deploy.aws.clients import Aws

_logger = logging.getLogger(__name__)

_ECR = re.compile(
    r"(?P<registry>(?P<account>[^./]+)\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(?:\.cn)?)"
    r"/(?P<repository>[^:@]+)(?:@(?P<digest>sha256:[0-9a-f]+)|:(?P<tag>.+))?"
)


@dataclass(frozen=True)
class EcrImage:
    """An image in ECR, named by its digest or, without one, by its tag."""

    registry: str
    account: str
    region: str
    repository: str
    digest: str | None
    tag: str

    @staticmethod
    def parse(image: str) -> EcrImage | None:
        """Return the parts of ``image``; None if it is not in ECR."""
        match = _ECR.fullmatch(image)
        return None if match is None else EcrImage(**match.groupdict() | {"tag": match["tag"] or "latest"})


def check_image(aws: Aws, image: str) -> None:
    """Check that ``image`` exists in the region of ``aws``, if it is in ECR and these credentials may look.

    Raises:
        CloudRequestError: it does not exist, or is in another region.
        CloudError: AWS does not answer.
    """
    parts = EcrImage.parse(image)
    if parts is None:
        return
    if parts.region != aws.region:
        raise CloudRequestError(
            Option("image", image),
            f": is in {parts.region}, but the job is to run in {aws.region}; push the image to {aws.region}, or set ",
            Option("region", parts.region),
            kind="region",
        )
    which: Any = {"imageDigest": parts.digest} if parts.digest else {"imageTag": parts.tag}
    try:
        with translate_aws_errors(f"looking for the image {image}", aws.region):
            aws.ecr.describe_images(registryId=parts.account, repositoryName=parts.repository, imageIds=[which])
    except CloudRequestError as error:
        if error.kind == "missing":
            fix = ("; push it ('docker push' after 'aws ecr get-login-password'), or set another ", Option("image"))
            raise CloudRequestError(*error.args, fix, kind="missing", code=error.code) from error
        if error.kind != "permission":
            raise
        _logger.info(f"not checked: {error}")
