"""Check what may be done with a folder on S3, by doing it with a probe object, and compare clocks with S3's."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from importlib.util import find_spec
from urllib.parse import urlsplit

from crossfade.base.errors import InputError
from crossfade.base.formatting import duration
from crossfade.base.io.folder import Folder
from crossfade.base.io.s3 import ATTEMPTS_VARIABLE, TIMEOUT_VARIABLE, s3_endpoint
from crossfade.base.io.s3_conditional import ChangedError
from crossfade.deploy.doctor.findings import Finding, State

_LIMITS = {ATTEMPTS_VARIABLE: "2", TIMEOUT_VARIABLE: "5", "AWS_MAX_ATTEMPTS": "2"}
"""Attempts and seconds of a request, where the environment has none: a run may wait for minutes, a check not."""
_PROBE = ".crossfade-doctor-"
_FIRST, _SECOND = b"probe", b"probe 2"
_CONNECT_SECONDS = 5.0
_SKEW_SECONDS, _MAX_SKEW_SECONDS = 30.0, 300.0
"""Difference of clocks that is reported, and that is to be fixed: at 15 minutes, S3 rejects requests."""


@contextmanager
def short_requests() -> Iterator[None]:
    """Have requests to S3 fail soon while the context lasts, unless the environment sets how long they are retried."""
    added = {name: value for name, value in _LIMITS.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def check_checkpoint_storage(uri: str) -> Iterator[Finding]:
    """Check that objects can be listed, written, read, and deleted in the folder ``uri``."""
    folder, probe = Folder(uri), f"{_PROBE}{uuid.uuid4().hex}"
    with _naming(uri, "listing"):
        folder.check_bucket()
        folder.names()
    try:
        with _naming(uri, "writing"):
            folder.write(probe, _FIRST)
        with _naming(uri, "reading"):
            if folder.read(probe) != _FIRST:
                raise InputError(f"{uri}: an object has other bytes than were written; look at what serves S3")
    except InputError:
        with suppress(OSError):
            _remove(folder, probe)
        raise
    try:
        _remove(folder, probe)
    except OSError as error:
        found = f"deleting fails, so that old checkpoints would stay: {error}"
        yield Finding("storage", "warning", f"{found}; allow it, and delete {uri}/{probe}")
        return
    yield Finding("storage", "ok", f"{uri}: list, read, write, and delete succeed")


def check_dataset_storage(uri: str) -> Iterator[Finding]:
    """Check that the dataset at ``uri`` can be listed, and whether another one can replace it.

    Training only reads it. ``crossfade prepare`` and ``forget`` also need conditional writes.
    """
    folder, probe = Folder(uri), f"{_PROBE}{uuid.uuid4().hex}"
    with _naming(uri, "listing"):
        folder.check_bucket()
        folder.names()
    if find_spec("boto3") is None:
        yield Finding("storage", "ok", f"{uri}: list succeeds; writing datasets needs pip install 'crossfade[aws]'")
        return
    try:
        folder.write_over(probe, _FIRST, None)
    except PermissionError:
        yield Finding("storage", "ok", f"{uri}: list succeeds; writing, which only prepare and forget need, is denied")
        return
    try:
        folder.write_over(probe, _SECOND, None)
    except ChangedError:
        yield Finding("storage", "ok", f"{uri}: list, and conditional write, succeed")
    else:
        found = (
            f"{uri}: the server ignores conditions of requests, so that two commands could write one dataset at once"
        )
        yield Finding("storage", "warning", f"{found}; use a server that has conditional writes")
    finally:
        with _naming(uri, f"deleting {probe}"):
            _remove(folder, probe)


def _remove(folder: Folder, probe: str) -> None:
    """Delete ``probe``. Without boto3 an empty object stays in its place, as pyarrow keeps the folder of a file."""
    folder.remove(probe, folder.version(probe) if find_spec("boto3") is not None else None)


@contextmanager
def _naming(uri: str, action: str) -> Iterator[None]:
    """Name ``action`` in errors of S3."""
    try:
        yield
    except OSError as error:
        where, _, reason = str(error).partition(": ")
        raise InputError(f"{uri}: {action} fails: {reason if where.startswith(uri) else error}") from error


def check_clock() -> Iterator[Finding]:
    """Compare this host's clock with that of S3, which dates each answer."""
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    url = urlsplit(s3_endpoint() or f"https://s3.{region}.amazonaws.com")
    host = url.netloc.rpartition("@")[2]  # without credentials
    before = time.time()
    try:
        theirs = parsedate_to_datetime(_date_header(url.scheme, host) or "").timestamp()
    except (OSError, HTTPException, ValueError) as error:
        yield Finding("clock", "warning", f"not compared, since {host} sent no date ({error}); check AWS_ENDPOINT_URL")
        return
    skew = (before + time.time()) / 2 - theirs
    found = f"{duration(abs(skew))} {'ahead of' if skew > 0 else 'behind'} that of {host}"
    if abs(skew) > _SKEW_SECONDS:
        state: State = "fix" if abs(skew) > _MAX_SKEW_SECONDS else "warning"
        fix = "at 15 minutes, S3 rejects requests: synchronize the clock, as with timedatectl set-ntp true"
        yield Finding("clock", state, f"{found}; {fix}")
    else:
        yield Finding("clock", "ok", found)


def _date_header(scheme: str, host: str) -> str | None:
    kind = HTTPSConnection if scheme == "https" else HTTPConnection
    with closing(kind(host, timeout=_CONNECT_SECONDS)) as connection:
        connection.request("HEAD", "/")
        return connection.getresponse().getheader("Date")
