"""What storage says of a file or folder that a user named becomes an error of Crossfade, in one line that names it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kvstore.errors import InputError, StorageUnavailableError


@contextmanager
def storage_errors(what: str, *, at_start: bool) -> Iterator[None]:
    """Within it, storage is asked about ``what``, which begins the message of any error.

    ``at_start`` is before there was an answer from it: then one that cannot be reached was named wrong, most likely.

    Raises:
        InputError: it is not there, or whoever asks may not, or it cannot be reached at the start.
        UnreachableError: it cannot be reached any more.
    """
    try:
        yield
    except ConnectionError as error:
        raise (InputError if at_start else StorageUnavailableError)(_line(what, error)) from error
    except OSError as error:
        raise InputError(_line(what, error)) from error


def _line(what: str, error: OSError) -> str:
    # Errors of S3 begin with the URI that they are about, which ``what`` names already.
    text = f"cannot be reached: {error.strerror}" if error.errno else " ".join(str(error).split())
    uri, separator, rest = text.partition(": ")
    return f"{what}: {rest if separator and uri.startswith('s3://') else text}"
