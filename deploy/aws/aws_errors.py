"""Translate errors of AWS into one line each: what was being done, what AWS answered, and how to fix it.

    with translate_aws_errors("starting the training job", region):
        client.create_training_job(**request)

raises CloudError if a retry may succeed (no capacity, throttling, no answer), and CloudRequestError if the user has
something to fix (credentials, permission, region, quota, a missing resource, the request itself).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from crossfade.base.errors import CrossfadeError, InputError, Option, Text


class CloudError(CrossfadeError):
    """AWS cannot serve the request now. A later attempt, or another instance type, may succeed.

    ``code`` is AWS's own error code, such as InsufficientInstanceCapacity; ``kind`` is its category.
    """

    def __init__(self, *message: Text, kind: str, code: str = "") -> None:
        super().__init__(*message)
        self.kind, self.code = kind, code


class CloudRequestError(InputError):
    """AWS rejects the request until the user fixes something; ``code`` and ``kind`` are as in ``CloudError``."""

    def __init__(self, *message: Text, kind: str, code: str = "") -> None:
        super().__init__(*message)
        self.kind, self.code = kind, code


_TRANSIENT = {"capacity", "throttled", "fault"}
_ADVICE: dict[str, Text] = {
    "capacity": "try again later, or choose another instance type, region, or zone",
    "throttled": "try again in some minutes",
    "fault": "try again in some minutes",
    "quota": "request an increase in AWS's console under Service Quotas, or choose another instance type or fewer "
    "hosts",
    "credentials": "log in, as with 'aws sso login', or set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY",
    "permission": "allow it by an IAM policy of this user or role",
    "region": ("set the right region with ", Option("region"), " or AWS_REGION, or enable it in the account"),
}
"""How to fix the errors of a kind, or what to do until they pass."""
_CODES = (
    ("capacity", r"Insufficient\w*Capacity\w*|CapacityError|SpotMaxPriceTooLow|UnfulfillableCapacity"),
    ("throttled", r"\w*Throttl\w*|RequestLimitExceeded|TooManyRequestsException|SlowDown|PriorRequestNotComplete"),
    ("fault", r"Internal\w*|Service(Unavailable|Internal)\w*|Unavailable|NetworkFailure|5\d\d"),
    ("quota", r"\w*(Limit|Quota|InstanceCount)Exceeded\w*"),
    ("credentials", r"\w*Expired\w*|UnrecognizedClient\w*|AuthFailure|\w*(Signature|ClientTokenId|AccessKeyId)\w*"),
    ("credentials", r"MissingAuthenticationToken\w*|TokenRefreshRequired"),
    ("permission", r"AccessDenied\w*|Unauthorized\w*|403|Forbidden"),
    ("region", r"OptInRequired|PermanentRedirect|AuthorizationHeaderMalformed|IllegalLocationConstraintException"),
    ("missing", r".*(NotFound|NotFoundException|NoSuch\w*|\.Malformed|\.Unknown)|404"),
)
"""AWS's error codes by kind. The first pattern that matches a code counts."""
_MAX_MESSAGE = 600


@contextmanager
def translate_aws_errors(doing: str, region: str) -> Iterator[None]:
    """Turn exceptions of botocore into CloudError or CloudRequestError; ``doing`` names the action for the message.

    Raises:
        CloudError: a retry may succeed.
        CloudRequestError: the user has something to fix.
    """
    import botocore.exceptions as aws

    try:
        yield
    except aws.ClientError as error:
        raise _from_response(error, doing, region) from error
    except (aws.BotoCoreError, aws.HTTPClientError) as error:
        raise _from_client(error, doing, region) from error


def _from_response(error: Any, doing: str, region: str) -> CrossfadeError:
    """Translate a ``ClientError``, AWS's answer to a request."""
    body = error.response.get("Error", {})
    code, message = str(body.get("Code", "")), _one_line(body.get("Message", "")).rstrip(".")
    kind = next((kind for kind, pattern in _CODES if re.fullmatch(pattern, code)), "request")
    found = f"{doing}: {message or f'AWS rejects {error.operation_name}'} ({code}, region {region})"
    fix = ("; ", _ADVICE[kind]) if kind in _ADVICE else ()
    return (CloudError if kind in _TRANSIENT else CloudRequestError)(found, fix, kind=kind, code=code)


def _from_client(error: Exception, doing: str, region: str) -> CrossfadeError:
    """Translate an error of the client itself: no answer of AWS came."""
    import botocore.exceptions as aws

    found = f"{doing}: {_one_line(error).rstrip('.')}"
    match error:
        case aws.NoRegionError() | aws.InvalidRegionError() | aws.UnknownRegionError():
            return CloudRequestError(found, "; ", _ADVICE["region"], kind="region")
        case aws.ParamValidationError():
            return CloudRequestError(found, kind="request")
        case aws.WaiterError():
            return CloudError(found, kind="fault")
        case (
            aws.NoCredentialsError()
            | aws.PartialCredentialsError()
            | aws.ProfileNotFound()
            | aws.ConfigParseError()
            | aws.CredentialRetrievalError()
            | aws.TokenRetrievalError()
            | aws.SSOError()
        ):
            return CloudRequestError(found, "; ", _ADVICE["credentials"], kind="credentials")
    fix = f"check the network, that the region '{region}' has this service, and AWS_ENDPOINT_URL if it is set"
    return CloudError(f"{found}; {fix}", kind="unreachable")


def _one_line(message: object) -> str:
    text = " ".join(str(message).split())
    return text if len(text) <= _MAX_MESSAGE else f"{text[:_MAX_MESSAGE]}…"
