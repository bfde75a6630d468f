"""What AWS answers when it does not do what was asked, said in one line: what was found, and how to mend it.

    with explained("starting the training job", region):
        client.create_training_job(**request)

raises CloudError where another time may do better (no capacity, too many requests, no answer), and RefusedError where
the user has something to mend (credentials, permission, region, quota, something missing, the request itself).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from kvstore.errors import CloudError, CloudErrorKind, CloudRequestError, CrossfadeError, CloudRequestErrorKind

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
    "500",
    "503",
}
_LATER: dict[CloudErrorKind, str] = {
    "capacity": "AWS has no such instance free in {region} now ({said}); try again later, or name another instance "
    "type, region or zone",
    "throttled": "AWS still says that there are too many requests, after all tries ({said}); try again in some minutes",
    "fault": "AWS has a fault of its own ({said}); try again in some minutes",
}
_REFUSED: list[tuple[CloudRequestErrorKind, set[str], str]] = [
    ("credentials", _EXPIRED, "the AWS credentials have expired ({said}); log in again and repeat"),
    (
        "credentials",
        _WRONG_CREDENTIALS,
        "AWS does not know the credentials ({said}); see AWS_PROFILE and AWS_ACCESS_KEY_ID, and whether the region "
        "{region} is enabled in the account",
    ),
    (
        "region",
        _REGION,
        "not in the region {region} ({said}); name the right one with --region, or enable it in the account",
    ),
]
_ACTION = re.compile(r"not authorized to perform:? ?([a-z0-9-]+:[A-Za-z]+)")
_RESOURCE = re.compile(r"on resource: (\S+?)(?: |$)")
_LIMIT = re.compile(r"service limit '([^']+)'|[Qq]uota[^']*'([^']+)'|current (\S+ limit of \S+)")
_POLICY = re.compile(r"because (.+?)(?: User: |$)")
_MAX_MESSAGE = 600


@contextmanager
def translate_aws_errors(doing: str, region: str) -> Iterator[None]:
    """Have what botocore raises within raise a CloudError or a RefusedError; ``doing`` says what was being done."""
    try:
        import botocore.exceptions as aws
    except ImportError:  # whoever made a client has said so
        yield
        return
    try:
        yield
    except aws.ClientError as error:
        raise error_from_response(error.response, error.operation_name, doing, region) from error
    except (aws.BotoCoreError, aws.HTTPClientError) as error:
        raise _of_client(error, doing, region) from error


def _of_client(error: Exception, doing: str, region: str) -> CrossfadeError:
    """What it means that no answer came."""
    import botocore.exceptions as aws

    said = _line(error)
    means: list[tuple[tuple[type[Exception], ...], CloudRequestErrorKind, str]] = [
        (
            (aws.NoCredentialsError, aws.PartialCredentialsError),
            "credentials",
            f"{doing}: no AWS credentials were found ({said}); set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or log in with 'aws sso login'",
        ),
        (
            (aws.ProfileNotFound, aws.ConfigNotFound, aws.ConfigParseError),
            "credentials",
            f"{doing}: {said}; see AWS_PROFILE and ~/.aws/config",
        ),
        (
            (aws.CredentialRetrievalError, aws.TokenRetrievalError, aws.SSOError, aws.MetadataRetrievalError),
            "credentials",
            f"{doing}: the AWS credentials could not be had ({said}); log in again, as with 'aws sso login'",
        ),
        (
            (aws.NoRegionError, aws.InvalidRegionError, aws.UnknownRegionError),
            "region",
            f"{doing}: {said}; name a region with --region or AWS_REGION",
        ),
        (
            (aws.ParamValidationError,),
            "request",
            f"{doing}: the request is not one that AWS takes: {said}",
        ),
    ]
    for kinds, kind, message in means:
        if isinstance(error, kinds):
            return CloudRequestError(message, kind)
    if isinstance(error, aws.EndpointConnectionError):
        said += (
            f" Is '{region}' a region that has this service, is this machine on the network, and is AWS_ENDPOINT_URL, "
            "if it is set, right?"
        )
    return CloudError(f"{doing}: AWS did not answer: {said}", "unreachable")


def error_from_response(response: object, operation: str, doing: str, region: str) -> CrossfadeError:
    """What the error ``response`` of the call ``operation`` means."""
    body = response.get("Error", {}) if isinstance(response, dict) else {}
    code, message = str(body.get("Code", "")), _line(body.get("Message", ""))
    return error_from_code(code, message, operation, doing, region)


def error_from_code(code: str, message: str, operation: str, doing: str, region: str) -> CrossfadeError:
    """What AWS's error ``code`` with its ``message`` means, in answer to ``operation``."""
    said = f"{code}: {message}" if message else code
    if code in _CAPACITY or code in _THROTTLED or code in _FAULTS:
        kind: CloudErrorKind = "capacity" if code in _CAPACITY else "throttled" if code in _THROTTLED else "fault"
        return CloudError(f"{doing}: {_LATER[kind].format(said=said, region=region)}", kind, code)
    if code in _QUOTA:
        return CloudRequestError(_quota(said, doing, region), "quota", code)
    if code in _DENIED:
        return CloudRequestError(_denied(message, operation, doing), "permission", code)
    for kind_of, codes, mend in _REFUSED:
        if code in codes:
            return CloudRequestError(f"{doing}: {mend.format(said=said, region=region)}", kind_of, code)
    if _MISSING.fullmatch(code):
        return CloudRequestError(f"{doing}: {message or 'it is not there'} ({code}, region {region})", "missing", code)
    return CloudRequestError(f"{doing}: AWS refuses {operation}: {message} ({code})", "request", code)


def _quota(said: str, doing: str, region: str) -> str:
    found = _LIMIT.search(said)
    name = next((group for group in found.groups() if group), None) if found else None
    which = f"the quota '{name}'" if name else "a quota of the account"
    return (
        f"{doing}: {which} does not allow it in {region} ({said}); ask for more in AWS's console under "
        f"Service Quotas, or name another instance type or fewer hosts"
    )


def _denied(message: str, operation: str, doing: str) -> str:
    action, resource, why = _ACTION.search(message), _RESOURCE.search(message), _POLICY.search(message)
    what = action[1] if action else operation
    where = f" on {resource[1]}" if resource else ""
    because = f", because {why[1].rstrip('.')}" if why else f" ({message})" if message and not action else ""
    return (
        f"{doing}: these credentials may not do {what}{where}{because}; have a policy allow it (docs/aws.md has those "
        "that each command needs)"
    )


def _line(said: object) -> str:
    text = " ".join(str(said).split())
    return text if len(text) <= _MAX_MESSAGE else f"{text[:_MAX_MESSAGE]}…"
