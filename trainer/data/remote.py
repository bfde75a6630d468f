"""What went wrong with a file or folder that may lie on S3, in words that say how to mend it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kvstore.errors import InputError

_PROBLEMS = {
    ("NO_SUCH_BUCKET", "NoSuchBucket"): ("there is no such bucket", "check the name, and AWS_ENDPOINT_URL"),
    ("INVALID_ACCESS_KEY_ID", "InvalidAccessKeyId"): ("the access key is not known there", "check AWS_ACCESS_KEY_ID"),
    ("SIGNATURE_DOES_NOT_MATCH", "SignatureDoesNotMatch"): ("the secret key is wrong", "check AWS_SECRET_ACCESS_KEY"),
    ("ExpiredToken", "EXPIRED_TOKEN", "RequestExpired"): ("the credentials have expired", "get new ones"),
    ("ACCESS_DENIED", "AccessDenied", "Forbidden"): (
        "access is denied",
        "check the credentials (AWS_ACCESS_KEY_ID …) and what they are allowed to do",
    ),
    ("NETWORK_CONNECTION", "CURL", "curlCode"): (
        "the server does not answer",
        "check AWS_ENDPOINT_URL and the network",
    ),
}


def reason(error: OSError) -> str:
    """What ``error`` means, in one line, and how to mend it where that is known."""
    text = str(error.strerror or error).strip().partition("\n")[0]
    for marks, (problem, mend) in _PROBLEMS.items():
        if any(mark in text for mark in marks):
            return f"{problem}; {mend}"
    return text


@contextmanager
def explaining(what: str, done: str) -> Iterator[None]:
    """Turn an OSError into one line: ``what`` cannot be ``done``, and why.

    Raises:
        InputError: there was one.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{what}: cannot be {done}: {reason(error)}") from error
