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
from typing import Literal

from crossfade.base.errors import CrossfadeError, InputError, Option, Text

CloudErrorKind = Literal["capacity", "throttled", "unreachable", "fault"]
CloudRequestErrorKind = Literal["credentials", "permission", "region", "quota", "missing", "request"]


class CloudError(CrossfadeError):
    """AWS cannot serve the request now. A later attempt, or another instance type, may succeed.

    ``code`` is AWS's own error code, such as InsufficientInstanceCapacity; ``kind`` is its category.
    """

    def __init__(self, *message: Text, kind: CloudErrorKind, code: str = "") -> None:
        super().__init__(*message)
        self.kind, self.code = kind, code


class CloudRequestError(InputError):
    """AWS rejects the request until the user fixes something; ``code`` and ``kind`` are as in ``CloudError``."""

    def __init__(self, *message: Text, kind: CloudRequestErrorKind, code: str = "") -> None:
        super().__init__(*message)
        self.kind, self.code = kind, code


_CAPACITY = {
    "InsufficientInstanceCapacity",
    "InsufficientHostCapacity",
    "InsufficientReservedInstanceCapacity",
    "InsufficientCapacity",
    "InsufficientCapacityOnOutpost",
    "CapacityError",
    "SpotMaxPriceTooLow",
    "UnfulfillableCapacity",
}
_THROTTLED = {
    "ThrottlingException",
    "Throttling",
    "ThrottledException",
    "RequestLimitExceeded",
    "RequestThrottled",
    "RequestThrottledException",
    "TooManyRequestsException",
    "SlowDown",
    "PriorRequestNotComplete",
    "EC2ThrottledException",
}
_QUOTA = {
    "ResourceLimitExceeded",
    "VcpuLimitExceeded",
    "InstanceLimitExceeded",
    "MaxSpotInstanceCountExceeded",
    "SpotInstanceCountLimitExceeded",
    "VolumeLimitExceeded",
    "MaxIOPSLimitExceeded",
    "SecurityGroupLimitExceeded",
    "PlacementGroupLimitExceeded",
    "AddressLimitExceeded",
    "LimitExceeded",
    "LimitExceededException",
    "ServiceQuotaExceededException",
    "ServiceLimitExceeded",
}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
_WRONG_CREDENTIALS = {
    "UnrecognizedClientException",
    "InvalidClientTokenId",
    "AuthFailure",
    "SignatureDoesNotMatch",
    "InvalidSignatureException",
    "InvalidAccessKeyId",
    "IncompleteSignature",
    "MissingAuthenticationToken",
    "MissingAuthenticationTokenException",
}
_DENIED = {
    "AccessDenied",
    "AccessDeniedException",
    "UnauthorizedOperation",
    "UnauthorizedException",
    "403",
    "Forbidden",
}
_REGION = {"OptInRequired", "PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
_MISSING = re.compile(r".*(NotFound|NotFoundException|NoSuch[A-Za-z]*|\.Malformed|Unknown)|404|ResourceNotFound")
_FAULTS = {"InternalError", "InternalFailure", "InternalServerError", "InternalServiceError", "ServiceUnavailable"} | {
    "ServiceUnavailableException",
    "Unavailable",
    "InternalServerException",
    "ServiceInternalError",
    "NetworkFailure",
    "500",
    "503",
}
_TRANSIENT_ADVICE: dict[CloudErrorKind, str] = {
    "capacity": "AWS has no capacity for this instance type in {region} ({found}); try again later, or choose another "
    "instance type, region or zone",
    "throttled": "AWS throttles the requests, also after retries ({found}); try again in some minutes",
    "fault": "AWS has an internal fault ({found}); try again in some minutes",
}
_REQUEST_ADVICE: list[tuple[CloudRequestErrorKind, set[str], str]] = [
    ("credentials", _EXPIRED, "the AWS credentials have expired ({found}); log in again and repeat"),
    (
        "credentials",
        _WRONG_CREDENTIALS,
        "AWS rejects the credentials ({found}); check AWS_PROFILE and AWS_ACCESS_KEY_ID, and whether the region "
        "{region} is enabled in the account",
    ),
    (
        "region",
        _REGION,
        "not available in the region {region} ({found}); set the right one, or enable it in the account",
    ),
]
_ACTION = re.compile(r"not authorized to perform:? ?([a-z0-9-]+:[A-Za-z]+)")
_RESOURCE = re.compile(r"on resource: (\S+?)(?: |$)")
_LIMIT = re.compile(r"service limit '([^']+)'|[Qq]uota[^']*'([^']+)'|current (\S+ limit of \S+)")
_REASON = re.compile(r"because (.+?)(?: User: |$)")
_MAX_MESSAGE = 600


@contextmanager
def translate_aws_errors(doing: str, region: str) -> Iterator[None]:
    """Turn exceptions of botocore into CloudError or CloudRequestError; ``doing`` names the action for the message.

    Raises:
        CloudError: a retry may succeed.
        CloudRequestError: the user has something to fix.
    """
    try:
        import botocore.exceptions as aws
    except ImportError:  # without boto3 there is no client, so nothing to translate
        yield
        return
    try:
        yield
    except aws.ClientError as error:
        raise error_from_response(error.response, error.operation_name, doing, region) from error
    except aws.WaiterError as error:
        if "Error" in error.last_response:
            raise error_from_response(error.last_response, "", doing, region) from error
        raise CloudError(f"{doing}: {_one_line(error)}", kind="fault") from error
    except (aws.BotoCoreError, aws.HTTPClientError) as error:
        raise _from_client(error, doing, region) from error


def _from_client(error: Exception, doing: str, region: str) -> CrossfadeError:
    """Translate an error of the client itself: no answer of AWS came."""
    import botocore.exceptions as aws

    found = _one_line(error)
    kind: CloudRequestErrorKind = "credentials"
    problem: Text
    match error:
        case aws.NoCredentialsError() | aws.PartialCredentialsError():
            problem = (
                f"no AWS credentials were found ({found}); set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or log in with 'aws sso login'"
            )
        case aws.ProfileNotFound() | aws.ConfigNotFound() | aws.ConfigParseError():
            problem = f"{found}; check AWS_PROFILE and ~/.aws/config"
        case aws.CredentialRetrievalError() | aws.TokenRetrievalError() | aws.SSOError() | aws.MetadataRetrievalError():
            problem = f"cannot retrieve the AWS credentials ({found}); log in again, as with 'aws sso login'"
        case aws.NoRegionError() | aws.InvalidRegionError() | aws.UnknownRegionError():
            kind, problem = "region", (f"{found}; set a region with ", Option("region"), " or AWS_REGION")
        case aws.ParamValidationError():
            kind, problem = "request", f"the request is invalid: {found}"
        case _:
            if isinstance(error, aws.EndpointConnectionError):
                found += (
                    f" Check that the region '{region}' has this service, that this machine is on the network, and "
                    "that AWS_ENDPOINT_URL is right if it is set."
                )
            return CloudError(f"{doing}: AWS did not answer: {found}", kind="unreachable")
    return CloudRequestError(f"{doing}: ", problem, kind=kind)


def error_from_response(response: object, operation: str, doing: str, region: str) -> CrossfadeError:
    """Translate the error ``response`` of the call ``operation``."""
    body = response.get("Error", {}) if isinstance(response, dict) else {}
    code, message = str(body.get("Code", "")), _one_line(body.get("Message", ""))
    return error_from_code(code, message, operation, doing, region)


def error_from_code(code: str, message: str, operation: str, doing: str, region: str) -> CrossfadeError:
    """Translate AWS's error ``code`` and ``message``, the answer to ``operation``; ``doing`` names the action."""
    found = f"{code}: {message}" if message else code
    if code in _CAPACITY or code in _THROTTLED or code in _FAULTS:
        kind: CloudErrorKind = "capacity" if code in _CAPACITY else "throttled" if code in _THROTTLED else "fault"
        return CloudError(
            f"{doing}: {_TRANSIENT_ADVICE[kind].format(found=found, region=region)}", kind=kind, code=code
        )
    if code in _QUOTA:
        return CloudRequestError(_quota(found, doing, region), kind="quota", code=code)
    if code in _DENIED:
        return CloudRequestError(_denied(message, operation, doing), kind="permission", code=code)
    for request_kind, codes, advice in _REQUEST_ADVICE:
        if code in codes:
            message = f"{doing}: {advice.format(found=found, region=region)}"
            return CloudRequestError(message, kind=request_kind, code=code)
    if _MISSING.fullmatch(code):
        return CloudRequestError(
            f"{doing}: {message or 'not found'} ({code}, region {region})", kind="missing", code=code
        )
    return CloudRequestError(f"{doing}: AWS rejects {operation}: {message} ({code})", kind="request", code=code)


def _quota(found: str, doing: str, region: str) -> str:
    limit = _LIMIT.search(found)
    name = next((group for group in limit.groups() if group), None) if limit else None
    quota = f"the quota '{name}'" if name else "a quota of the account"
    return (
        f"{doing}: {quota} does not allow it in {region} ({found}); request an increase in AWS's console under "
        f"Service Quotas, or choose another instance type or fewer hosts"
    )


def _denied(message: str, operation: str, doing: str) -> str:
    action, resource, reason = _ACTION.search(message), _RESOURCE.search(message), _REASON.search(message)
    call = action[1] if action else operation
    target = f" on {resource[1]}" if resource else ""
    because = f", because {reason[1].rstrip('.')}" if reason else f" ({message})" if message and not action else ""
    return (
        f"{doing}: these credentials lack the permission {call}{target}{because}; allow it by a policy (docs/aws.md "
        "lists the policies of each command)"
    )


def _one_line(message: object) -> str:
    text = " ".join(str(message).split())
    return text if len(text) <= _MAX_MESSAGE else f"{text[:_MAX_MESSAGE]}…"
