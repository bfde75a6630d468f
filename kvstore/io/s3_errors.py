"""What an error of the S3 client means: whether to try again, and what to tell a person in one line.

pyarrow's client says everything in the text of an OSError, such as "AWS Error SLOW_DOWN during GetObject operation:
..." or "AWS Error UNKNOWN (HTTP status 400) during ListObjectsV2 operation: Unable to parse ExceptionName: ExpiredToken
Message: ...". That text is read here and nowhere else.
"""

from __future__ import annotations

import os
import re

_CODE = re.compile(r"AWS Error ([A-Z0-9_]+)(?: \(HTTP status (\d+)\))?")
_NAME = re.compile(r"Unable to parse ExceptionName: ([A-Za-z0-9]+)")
_DETAIL = re.compile(r"AWS Error .*? operation: (.*?)(?: \(Request ID: [^)]*\))?\.?$")
_ANSWER_TOO_LONG = "Failed to flush response stream"
"""What the client says of any answer longer than the data that it had asked for: an error of the server, as a rule."""

_REFUSED = {
    "ACCESS_DENIED": "access denied (403 AccessDenied): {who} may not do this in bucket '{bucket}'; ask for the right "
    "to list it and to read and write its objects, or check the name of the bucket",
    "INVALID_ACCESS_KEY_ID": "access denied (403 InvalidAccessKeyId): {endpoint} does not know the access key of "
    "{who}; check AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL",
    "SIGNATURE_DOES_NOT_MATCH": "access denied (403 SignatureDoesNotMatch): the secret key does not belong to {who}; "
    "check AWS_SECRET_ACCESS_KEY",
    "EXPIRED_TOKEN": "access denied (ExpiredToken): {who} have expired; get new ones (AWS_ACCESS_KEY_ID, "
    "AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN)",
    "INVALID_TOKEN": "access denied (InvalidToken): the session token of {who} is not valid; check AWS_SESSION_TOKEN",
    "REQUEST_TIME_TOO_SKEWED": "access denied (403 RequestTimeTooSkewed): the clock of this machine is wrong; set it",
    "MOVED": "bucket '{bucket}' is in another region than this request went to (301); set AWS_REGION to the bucket's",
}
_SAME = {
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
}
_PASSING_STATUS = {408, 429, 500, 502, 503, 504, 509}


def _read(error: OSError) -> tuple[str, int]:
    """The code of ``error``, in one spelling, and its HTTP status, 0 where it has none."""
    text = str(error)
    found = _CODE.search(text)
    if found is None:
        return "", 0
    name = _NAME.search(text)
    code = name[1].upper() if name else found[1]
    status = int(found[2] or 0)
    if status in {301, 307}:
        code = "MOVED"
    return _SAME.get(code, code), status


def is_transient(error: OSError) -> bool:
    """Whether the same request may do better in a while: the server was busy, or out of reach."""
    code, status = _read(error)
    return code in _TRANSIENT or status in _PASSING_STATUS or is_unexplained(error)


def is_unexplained(error: OSError) -> bool:
    """Whether it says only that the server answered something else than what it was asked for."""
    return _ANSWER_TOO_LONG in str(error)


def is_bare_refusal(error: OSError) -> bool:
    """Whether it is one without a reason: the answer to a HEAD request has no room for any."""
    code, status = _read(error)
    return "No response body" in str(error) and (code == "ACCESS_DENIED" or status in {400, 403})


def explain(error: OSError, bucket: str, endpoint: str) -> OSError:
    """``error`` as one of Python's own kinds, with a line that says what is wrong and how to mend it.

    FileNotFoundError: there is no such object or bucket. PermissionError: whoever asks may not. ConnectionError: the
    server was not to be reached, or had no time. OSError: anything else.
    """
    code, status = _read(error)
    if not code:
        return error
    detail = _DETAIL.search(str(error))
    said = " ".join((detail[1] if detail else str(error)).split()).rpartition("; Details: ")[2]
    called = code if not status else f"{status} {code}" if code != "UNKNOWN" else str(status)
    if code in _MISSING:
        return FileNotFoundError(f"there is no such object or bucket ({called})")
    if code in _REFUSED:
        return PermissionError(_REFUSED[code].format(who=_who(), bucket=bucket, endpoint=endpoint))
    if is_transient(error):
        away = code == "NETWORK_CONNECTION"
        how = "cannot be reached" if away else "did not answer as it should, after all tries"
        mend = "; check AWS_ENDPOINT_URL and the network" if away else ""
        return ConnectionError(f"{endpoint} {how} ({called}){f': {said}' if said else ''}{mend}")
    if 400 <= status < 500:
        return PermissionError(f"{endpoint} refused the request ({called}): {said}")
    return OSError(f"{said} ({called})")


def _who() -> str:
    """Whose credentials are in use, as far as the environment says."""
    key = os.environ.get("AWS_ACCESS_KEY_ID")
    if key:
        return f"the credentials of AWS_ACCESS_KEY_ID={key}"
    profile = os.environ.get("AWS_PROFILE")
    return f"the credentials of AWS_PROFILE={profile}" if profile else "the credentials found (~/.aws, or a role)"
