"""Interpret errors of the S3 client: whether to retry, and a one-line message on what is wrong and how to fix it.

pyarrow's client reports everything in the text of an OSError, such as "AWS Error SLOW_DOWN during GetObject operation:
..." or "AWS Error UNKNOWN (HTTP status 400) during ListObjectsV2 operation: Unable to parse ExceptionName: ExpiredToken
Message: ...". Only this module parses that text.
"""

from __future__ import annotations

import os
import re

_CODE = re.compile(r"AWS Error ([A-Z0-9_]+)(?: \(HTTP status (\d+)\))?")
_EXCEPTION_NAME = re.compile(r"Unable to parse ExceptionName: ([A-Za-z0-9]+)")
_DETAIL = re.compile(r"AWS Error .*? operation: (.*?)(?: \(Request ID: [^)]*\))?\.?$")
_ANSWER_TOO_LONG = "Failed to flush response stream"
"""The client's text for any answer longer than the data it requested; such an answer usually is an error page."""

_REJECTED = {
    "ACCESS_DENIED": "access denied (403 AccessDenied): {who} may not do this in bucket '{bucket}'; ask for the right "
    "to list it and to read and write its objects, or check the name of the bucket",
    "INVALID_ACCESS_KEY_ID": "access denied (403 InvalidAccessKeyId): {endpoint} does not recognize the access key of "
    "{who}; check AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL",
    "SIGNATURE_DOES_NOT_MATCH": "access denied (403 SignatureDoesNotMatch): the secret key does not belong to {who}; "
    "check AWS_SECRET_ACCESS_KEY",
    "EXPIRED_TOKEN": "access denied (ExpiredToken): {who} have expired; get new ones (AWS_ACCESS_KEY_ID, "
    "AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN)",
    "INVALID_TOKEN": "access denied (InvalidToken): the session token of {who} is not valid; check AWS_SESSION_TOKEN",
    "REQUEST_TIME_TOO_SKEWED": "access denied (403 RequestTimeTooSkewed): the clock of this machine is wrong; set it",
    "MOVED": "bucket '{bucket}' is in another region than this request went to (301); set AWS_REGION to the bucket's",
}
_SYNONYMS = {
    "EXPIREDTOKEN": "EXPIRED_TOKEN",
    "TOKENREFRESHREQUIRED": "EXPIRED_TOKEN",
    "REQUEST_EXPIRED": "EXPIRED_TOKEN",
    "INVALIDTOKEN": "INVALID_TOKEN",
    "INVALIDACCESSKEYID": "INVALID_ACCESS_KEY_ID",
    "INVALID_CLIENT_TOKEN_ID": "INVALID_ACCESS_KEY_ID",
    "INVALID_SIGNATURE": "SIGNATURE_DOES_NOT_MATCH",
    "SIGNATUREDOESNOTMATCH": "SIGNATURE_DOES_NOT_MATCH",
    "ACCESSDENIED": "ACCESS_DENIED",
    "ALLACCESSDISABLED": "ACCESS_DENIED",
    "MISSING_AUTHENTICATION_TOKEN": "ACCESS_DENIED",
    "UNRECOGNIZED_CLIENT": "INVALID_ACCESS_KEY_ID",
    "REQUESTTIMETOOSKEWED": "REQUEST_TIME_TOO_SKEWED",
    "PERMANENTREDIRECT": "MOVED",
    "AUTHORIZATIONHEADERMALFORMED": "MOVED",
}
_MISSING = {"NO_SUCH_BUCKET", "NO_SUCH_KEY", "RESOURCE_NOT_FOUND", "NOSUCHBUCKET", "NOSUCHKEY"}
_TRANSIENT = {
    "NETWORK_CONNECTION",
    "SLOW_DOWN",
    "THROTTLING",
    "SERVICE_UNAVAILABLE",
    "INTERNAL_FAILURE",
    "REQUEST_TIMEOUT",
    "SLOWDOWN",
    "TOOMANYREQUESTS",
    "REQUESTLIMITEXCEEDED",
    "CONDITIONALREQUESTCONFLICT",
    "OPERATIONABORTED",
}
_TRANSIENT_STATUS = {408, 429, 500, 502, 503, 504, 509}


def _parse(error: OSError) -> tuple[str, int]:
    """Return the code of ``error``, normalized, and its HTTP status, 0 if it has none."""
    text = str(error)
    found = _CODE.search(text)
    if found is None:
        return "", 0
    name = _EXCEPTION_NAME.search(text)
    code = name[1].upper() if name else found[1]
    status = int(found[2] or 0)
    if status in {301, 307}:
        code = "MOVED"
    return _SYNONYMS.get(code, code), status


def is_transient(error: OSError) -> bool:
    """Return whether a retry may succeed: the server was busy or unreachable."""
    code, status = _parse(error)
    return code in _TRANSIENT or status in _TRANSIENT_STATUS or is_unparsed_answer(error)


def is_unparsed_answer(error: OSError) -> bool:
    """Return whether the client only noticed that the answer is not the requested data, without reading it."""
    return _ANSWER_TOO_LONG in str(error)


def is_unexplained_denial(error: OSError) -> bool:
    """Return whether a request was denied without a reason: answers to HEAD requests have no body for one."""
    code, status = _parse(error)
    return "No response body" in str(error) and (code == "ACCESS_DENIED" or status in {400, 403})


def translate_s3_error(error: OSError, bucket: str, endpoint: str) -> OSError:
    """Return ``error`` as one of Python's kinds, with one line on what is wrong and how to fix it.

    FileNotFoundError: there is no such object or bucket. PermissionError: access is denied. ConnectionError: the server
    was unreachable or too busy. OSError: anything else; an error that is not of S3 is returned unchanged.
    """
    code, status = _parse(error)
    if not code:
        return error
    found = _DETAIL.search(str(error))
    detail = " ".join((found[1] if found else str(error)).split()).rpartition("; Details: ")[2]
    label = code if not status else f"{status} {code}" if code != "UNKNOWN" else str(status)
    if code in _MISSING:
        return FileNotFoundError(f"there is no such object or bucket ({label})")
    if code in _REJECTED:
        return PermissionError(_REJECTED[code].format(who=_describe_credentials(), bucket=bucket, endpoint=endpoint))
    if is_transient(error):
        is_unreachable = code == "NETWORK_CONNECTION"
        problem = "cannot be reached" if is_unreachable else "did not answer correctly, after all retries"
        fix = "; check AWS_ENDPOINT_URL and the network" if is_unreachable else ""
        return ConnectionError(f"{endpoint} {problem} ({label}){f': {detail}' if detail else ''}{fix}")
    if 400 <= status < 500:
        return PermissionError(f"{endpoint} rejected the request ({label}): {detail}")
    return OSError(f"{detail} ({label})")


def _describe_credentials() -> str:
    """Describe the credentials in use, as far as the environment names them."""
    key = os.environ.get("AWS_ACCESS_KEY_ID")
    if key:
        return f"the credentials of AWS_ACCESS_KEY_ID={key}"
    profile = os.environ.get("AWS_PROFILE")
    return f"the credentials of AWS_PROFILE={profile}" if profile else "the credentials found (~/.aws, or a role)"
