"""Translate what a ``Folder`` raises about a user's file or folder into an error of Crossfade: one line that names it.

    with translate_storage_errors(Option("out", out.uri)):
        out.write("manifest.json", data)

Errors of file systems and of S3 are handled alike: ``s3.py`` has turned the S3 client's errors into Python's
kinds before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from crossfade.base.errors import CrossfadeError, InputError, StorageUnavailableError, Text
from crossfade.base.io.regular_files import UnsuitableFileError
from crossfade.base.io.s3 import NoBucketError


@contextmanager
def translate_storage_errors(
    subject: Text,
    *,
    action: str = "accessed",
    if_missing: str | None = None,
    unreachable: type[CrossfadeError] = StorageUnavailableError,
    other: type[CrossfadeError] = InputError,
) -> Iterator[None]:
    """Have errors of storage inside the block raised as errors of Crossfade that begin with ``subject``.

    Args:
        subject: the file, folder or option in question, such as ``--out s3://music/data``.
        action: what the block does with it, as in "cannot be read".
        if_missing: the message after ``subject`` if there is no such file. (A missing bucket has its own.)
        unreachable: what to raise if S3 is unreachable or too busy. Pass ``InputError`` for the first access to what
            a user named, where a wrong endpoint or bucket is the likely cause.
        other: what to raise for errors that are neither about the file's existence, kind or permissions nor about
            reaching it, such as a disk's.

    Raises:
        InputError: it does not exist, is of the wrong kind, or access is denied.
        StorageUnavailableError: storage is unreachable, and ``unreachable`` has its default.
    """
    try:
        yield
    except FileNotFoundError as error:
        if if_missing is None or isinstance(error, NoBucketError):
            raise InputError(_message(subject, action, error)) from error
        raise InputError(subject, f": {if_missing}") from error
    except (PermissionError, IsADirectoryError, NotADirectoryError, UnsuitableFileError) as error:
        raise InputError(_message(subject, action, error)) from error
    except ConnectionError as error:
        raise unreachable(_message(subject, action, error)) from error
    except OSError as error:
        raise other(_message(subject, action, error)) from error


def _message(subject: Text, action: str, error: OSError) -> Text:
    if error.errno:
        return (subject, f": cannot be {action}: {error.strerror}")
    text = " ".join(str(error).split())
    # Errors of S3 begin with the URI that they are about, which the subject names already.
    uri, separator, rest = text.partition(": ")
    return (subject, f": {rest if separator and (uri.startswith('s3://') or uri == subject) else text}")
