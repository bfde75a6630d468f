"""Objects of an S3 bucket as files: the S3 side of ``crossfade.base.io.folder``.

Requests are retried here rather than by pyarrow's client. Of the client's two strategies one has no jitter, so workers
that are throttled together retry together, and the other has a budget of retries that is never refilled. Uploads, which
only the client can retry, use the first of the two.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import cached_property
from typing import Any, TypeVar
from urllib.parse import urlsplit

from crossfade.base.environment import environment_integer
from crossfade.base.errors import InputError
from crossfade.base.io.random_access import RandomFile
from crossfade.base.io.regular_files import FoundFile, check_size
from crossfade.base.io.s3_conditional import ConditionalClient, Version
from crossfade.base.io.s3_errors import is_transient, is_unexplained_denial, is_unparsed_answer, translate_s3_error

ATTEMPTS_VARIABLE = "CROSSFADE_S3_ATTEMPTS"
TIMEOUT_VARIABLE = "CROSSFADE_S3_TIMEOUT_SECONDS"
DEFAULT_ATTEMPTS = 12
"""Attempts of one S3 request. Pauses double from 25 ms, each cut at random by up to a half, so that 12 attempts take 25
to 51 s if connections are refused, and three minutes if nothing answers."""
MAX_ATTEMPTS = 100
DEFAULT_TIMEOUT_SECONDS = 10
"""Seconds without progress after which a request is retried."""
MAX_TIMEOUT_SECONDS = 86_400
_FIRST_PAUSE_SECONDS = 0.025
_CONNECT_TIMEOUT_SECONDS = 5
_unfinished: list[Any] = []
"""Uploads in progress or failed. References keep failed ones from being closed, which would create the object."""

Result = TypeVar("Result")


class NoBucketError(FileNotFoundError):
    """There is no such bucket. The message is a complete line that names it."""


class S3Files:
    """The objects below a prefix of an S3 bucket. Connects when it is first used."""

    def __init__(self, uri: str) -> None:
        """Represent the objects below ``uri``.

        Raises:
            InputError: it is not of the form s3://BUCKET/PREFIX.
        """
        bucket, _, prefix = uri.partition("://")[2].partition("/")
        if not bucket or "//" in f"/{prefix}" or set("?#") & set(uri) or "@" in bucket:
            raise InputError(
                f"{uri}: not an S3 folder: expected s3://BUCKET/PREFIX; credentials, region and endpoint come from the "
                "environment (AWS_ACCESS_KEY_ID, AWS_REGION, AWS_ENDPOINT_URL ...)"
            )
        self._bucket = bucket
        self._root = f"{bucket}/{prefix}".rstrip("/") + "/"
        self._interrupted = threading.Event()

    @cached_property
    def _reads(self) -> Any:
        """The client of requests that ``retry`` repeats."""
        return self._client(max_retries=0)

    @cached_property
    def _writes(self) -> Any:
        """The client of uploads, which retries by itself."""
        return self._client(max_retries=_attempts() - 1)

    @cached_property
    def _conditional(self) -> ConditionalClient:
        """The client of conditional requests, which ``retry`` repeats."""
        endpoint = s3_endpoint()
        return ConditionalClient(
            self._bucket, self._region(bool(endpoint)), endpoint, _CONNECT_TIMEOUT_SECONDS, _timeout_seconds()
        )

    def _client(self, max_retries: int) -> Any:
        from pyarrow import fs

        endpoint = s3_endpoint()
        address = {}
        if endpoint:
            url = urlsplit(endpoint)
            address = {"scheme": url.scheme, "endpoint_override": url.netloc}
        return fs.S3FileSystem(
            region=self._region(bool(endpoint)),
            connect_timeout=_CONNECT_TIMEOUT_SECONDS,
            request_timeout=_timeout_seconds(),
            retry_strategy=fs.AwsDefaultS3RetryStrategy(max_attempts=max_retries),
            # One part at a time: background writes buffer without bound if the network is slow.
            background_writes=False,
            # Start no upload before there is data, and send a small file in one request.
            allow_delayed_open=True,
            **address,
        )

    def _region(self, endpoint: bool) -> str | None:
        """Return the configured region or else the bucket's: AWS redirects requests that go to other regions."""
        configured = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        if configured or endpoint:
            return configured
        from pyarrow import fs

        with suppress(OSError):
            region: str = fs.resolve_s3_region(self._bucket)
            return region
        return None

    def interrupt(self) -> None:
        """Stop retrying: a request that fails from now on raises at once."""
        self._interrupted.set()

    def retry(self, request: Callable[[], Result], path: str | None = None) -> Result:
        """Call ``request`` until it succeeds or fails with an error that is not transient; return its result.

        ``path`` is the object in question. The client hides the reason of some errors, which a second request for the
        object reveals.

        Raises:
            OSError: of the kinds that ``s3_errors.translate_s3_error`` returns.
        """
        last = _attempts() - 1
        for attempt in range(last + 1):
            try:
                return request()
            except OSError as error:
                reason = self._reason(error, path)
                if attempt == last or not is_transient(reason) or self._interrupted.is_set():
                    raise translate_s3_error(reason, self._bucket, _endpoint_name()) from error
            self._interrupted.wait(_FIRST_PAUSE_SECONDS * 2**attempt * random.uniform(0.5, 1.0))  # noqa: S311
        raise AssertionError("the last attempt returns or raises")

    def _reason(self, error: OSError, path: str | None) -> OSError:
        """Return the error behind ``error``, as far as another request reveals it."""
        try:
            if isinstance(error, FileNotFoundError):
                return self._no_bucket() or error
            if is_unexplained_denial(error):
                self._list("no/such/folder/", recursive=False)
            elif is_unparsed_answer(error) and path is not None:
                self._reads.open_input_file(self._root + path).close()
        except OSError as found:
            if isinstance(error, FileNotFoundError):
                return error
            return self._reason(found, None)
        return error

    def _no_bucket(self) -> NoBucketError | None:
        from pyarrow import fs

        if self._reads.get_file_info(self._bucket).type != fs.FileType.NotFound:
            return None
        return NoBucketError(
            f"there is no bucket '{self._bucket}' at {_endpoint_name()}; "
            "check its name, AWS_ENDPOINT_URL and AWS_REGION"
        )

    def check_bucket(self) -> None:
        """Check that the bucket exists.

        Raises:
            NoBucketError: it does not.
        """
        missing = self.retry(self._no_bucket)
        if missing is not None:
            raise missing

    def write(self, path: str, data: bytes) -> None:
        """Write a small object."""
        with self.open_output(path) as file:
            file.write(data)

    @contextmanager
    def open_output(self, path: str) -> Iterator[Any]:
        """Write a large object in pieces. If an error leaves the block, no object is created."""
        try:
            file = self._writes.open_output_stream(self._root + path)
            # Not closed after an error: closing, or garbage collection, would create a truncated object.
            _unfinished.append(file)
            yield file
            file.close()
        except OSError as error:
            raise translate_s3_error(error, self._bucket, _endpoint_name()) from error
        _unfinished.remove(file)

    def take_over(self, path: str, source: object, source_path: str) -> bool:
        """Have the server copy an object of ``source``; return False where it cannot: the bytes must be sent."""
        if not isinstance(source, S3Files):
            return False
        try:
            self.retry(lambda: self._reads.copy_file(source._root + source_path, self._root + path), path)
        except FileNotFoundError:
            raise
        except OSError:  # a bucket in another region, more than 5 GB, or a key that encrypts only what is sent
            return False
        return True

    def read(self, path: str, max_bytes: int) -> bytes:
        """Read an object of at most ``max_bytes``."""
        with closing(self.open_random(path)) as file:
            check_size(file.size(), max_bytes)
            return file.read_at(0, file.size()) if file.size() else b""

    def read_version(self, path: str) -> Version:
        """Read a small object and its version."""
        return self.retry(lambda: self._conditional.get(self._key(path)), path)

    def write_over(self, path: str, data: bytes, version: str | None) -> str:
        """Write a small object if ``version`` is still that of the present one; return the new version."""
        return self.retry(lambda: self._conditional.put(self._key(path), data, version), path)

    def _key(self, path: str) -> str:
        return (self._root + path).partition("/")[2]

    def open_input(self, path: str) -> RandomFile:
        """Open an object for reading."""
        return self.open_random(path)

    def open_random(self, path: str) -> RandomFile:
        """Open an object for random access."""
        return _S3RandomFile(self, path, self.retry(lambda: self._reads.open_input_file(self._root + path), path))

    def names(self, prefix: str) -> list[str]:
        """Return the names directly below ``prefix``."""
        return [info.base_name for info in self.retry(lambda: self._list(prefix, recursive=False))]

    def entries(self, prefix: str) -> dict[str, FoundFile | None]:
        """Return the objects directly below ``prefix`` by name; None for a prefix of further objects."""
        listed = self.retry(lambda: self._list(prefix, recursive=False))
        return {info.base_name: _found(info) if info.is_file else None for info in listed}

    def files(self, prefix: str) -> dict[str, FoundFile]:
        """Return all objects below ``prefix`` by path."""
        start = len(self._root + prefix)
        listed = self.retry(lambda: self._list(prefix, recursive=True))
        return {info.path[start:]: _found(info) for info in listed if info.is_file}

    def _list(self, prefix: str, *, recursive: bool) -> list[Any]:
        from pyarrow import fs

        folder = (self._root + prefix).rstrip("/")
        listed: list[Any] = self._reads.get_file_info(
            fs.FileSelector(folder, recursive=recursive, allow_not_found=True)
        )
        return listed

    def remove(self, path: str, version: str | None = None) -> None:
        """Delete an object if it exists or, with ``version``, if it still has this version."""
        if version is not None:
            self.retry(lambda: self._conditional.delete(self._key(path), version), path)
            return
        with suppress(FileNotFoundError):
            self.retry(lambda: self._reads.delete_file(self._root + path))

    def delete(self, prefix: str) -> None:
        """Delete all objects below ``prefix``."""
        with suppress(FileNotFoundError):
            self.retry(lambda: self._reads.delete_dir((self._root + prefix).rstrip("/")))


def _found(info: Any) -> FoundFile:
    return FoundFile(info.size, info.mtime.timestamp())


class _S3RandomFile(RandomFile):
    """An object opened for reading. ``version`` is its entity tag when it was opened."""

    def __init__(self, files: S3Files, path: str, file: Any) -> None:
        metadata = file.metadata() or {}
        super().__init__(file.size(), (metadata.get("ETag") or metadata.get("Last-Modified") or b"").decode())
        self._files = files
        self._path = path
        self._file = file

    def read_at(self, offset: int, length: int) -> bytes:
        """Read exactly ``length`` bytes from ``offset`` on."""

        def read() -> bytes:
            data: bytes = self._file.read_at(length, offset)
            if len(data) != length:
                # In the client's format, so that it counts as transient.
                problem = f"the answer was truncated, {len(data)} of {length} bytes"
                raise OSError(f"AWS Error NETWORK_CONNECTION during GetObject operation: {problem}")
            return data

        return self._files.retry(read, self._path)

    def close(self) -> None:
        """Close the object."""
        if not self.closed:
            self._file.close()
        super().close()


def s3_endpoint() -> str | None:
    """Return the URL of the S3 server that the environment sets; None: AWS.

    Raises:
        InputError: it is not such a URL. Clients would take a port above 65535 for another one.
    """
    for variable in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if endpoint := os.environ.get(variable):
            try:
                url = urlsplit(endpoint)
                is_valid = url.scheme in {"http", "https"} and url.hostname and url.port != 0
            except ValueError:
                is_valid = False
            if not is_valid:
                raise InputError(f"{variable} is {endpoint!r}, expected a URL such as https://HOST:PORT")
            return endpoint
    return None


def _endpoint_name() -> str:
    return s3_endpoint() or "AWS"


def _attempts() -> int:
    return environment_integer(ATTEMPTS_VARIABLE, DEFAULT_ATTEMPTS, 1, MAX_ATTEMPTS)


def _timeout_seconds() -> int:
    return environment_integer(TIMEOUT_VARIABLE, DEFAULT_TIMEOUT_SECONDS, 1, MAX_TIMEOUT_SECONDS)
