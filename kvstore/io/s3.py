"""Objects of an S3 bucket, as files: what ``kvstore.io.folder`` does on S3.

Requests that can be made again are made again here and not by the client: of its strategies one does not vary its
pauses, so that workers which were refused together come again together, and the other has a budget of tries that is
never filled up again. Uploads, which only the client can repeat, are left to the first of the two.
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

from kvstore.errors import InputError
from kvstore.io.random_access import RandomFile
from kvstore.io.s3_errors import explain, is_bare_refusal, is_transient, is_unexplained

ATTEMPTS_VARIABLE = "CROSSFADE_S3_ATTEMPTS"
TIMEOUT_VARIABLE = "CROSSFADE_S3_TIMEOUT_SECONDS"
DEFAULT_ATTEMPTS = 12
"""Tries of one S3 request. The pause before each next one doubles, from 25 ms, and is then cut at random by up to a
half: all together they last 25 to 51 s where connections are refused, and three minutes where nothing answers."""
DEFAULT_TIMEOUT_SECONDS = 10
"""How long an S3 request may stand still before it is tried again."""
_FIRST_PAUSE_SECONDS = 0.025
_CONNECT_TIMEOUT_SECONDS = 5
_unfinished: list[Any] = []
"""Objects whose writing broke off: nothing may ever close them."""

Answer = TypeVar("Answer")


class NoBucketError(FileNotFoundError):
    """There is no such bucket."""


class S3Files:
    """Objects of an S3 bucket. Connects when it is first used."""

    def __init__(self, uri: str) -> None:
        """Those below ``uri``.

        Raises:
            InputError: it is no URI of a folder on S3.
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
        """The client of requests that are made again here."""
        return self._client(tries_again=0)

    @cached_property
    def _writes(self) -> Any:
        """The client of uploads."""
        return self._client(tries_again=setting(ATTEMPTS_VARIABLE, DEFAULT_ATTEMPTS) - 1)

    def _client(self, tries_again: int) -> Any:
        from pyarrow import fs

        endpoint = _endpoint()
        where = {}
        if endpoint:
            url = urlsplit(endpoint)
            if url.scheme not in {"http", "https"} or not url.netloc:
                raise InputError(f"AWS_ENDPOINT_URL is {endpoint!r}, which is not a URL such as https://HOST:PORT")
            where = {"scheme": url.scheme, "endpoint_override": url.netloc}
        return fs.S3FileSystem(
            region=self._region(bool(endpoint)),
            connect_timeout=_CONNECT_TIMEOUT_SECONDS,
            request_timeout=setting(TIMEOUT_VARIABLE, DEFAULT_TIMEOUT_SECONDS),
            retry_strategy=fs.AwsDefaultS3RetryStrategy(max_attempts=tries_again),
            # A part at a time: in the background there is no bound to how much waits in memory for a slow network.
            background_writes=False,
            # No upload is begun before there is something to send, and a small file is one request.
            allow_delayed_open=True,
            **where,
        )

    def _region(self, endpoint: bool) -> str | None:
        """The bucket's region, asked for where nothing says it: AWS sends other regions' requests away."""
        known = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        if known or endpoint:
            return known
        from pyarrow import fs

        with suppress(OSError):
            region: str = fs.resolve_s3_region(self._bucket)
            return region
        return None

    def interrupt(self) -> None:
        """Have no request made again from now on."""
        self._interrupted.set()

    def retry(self, request: Callable[[], Answer], path: str | None = None) -> Answer:
        """The answer to ``request``, made until it comes, or until it is clear that it will not.

        ``path`` is the object that the request is about: of some answers the client does not tell what they were.

        Raises:
            OSError: as ``s3_errors.explain`` makes it.
        """
        last = setting(ATTEMPTS_VARIABLE, DEFAULT_ATTEMPTS) - 1
        for attempt in range(last + 1):
            try:
                return request()
            except OSError as error:
                reason = self._reason(error, path)
                if attempt == last or not is_transient(reason) or self._interrupted.is_set():
                    raise explain(reason, self._bucket, self._where()) from error
            self._interrupted.wait(_FIRST_PAUSE_SECONDS * 2**attempt * random.uniform(0.5, 1.0))  # noqa: S311
        raise AssertionError("the last try answers or raises")

    def _reason(self, error: OSError, path: str | None) -> OSError:
        """What is behind ``error``, as far as another request can tell."""
        try:
            if isinstance(error, FileNotFoundError):
                return self._no_bucket() or error
            if is_bare_refusal(error):
                self._list("no/such/folder/", recursive=False)
            elif is_unexplained(error) and path is not None:
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
            f"there is no bucket '{self._bucket}' at {self._where()}; check its name, AWS_ENDPOINT_URL and AWS_REGION"
        )

    def check_bucket(self) -> None:
        """See that there is the bucket.

        Raises:
            NoBucketError: there is not.
        """
        missing = self.retry(self._no_bucket)
        if missing is not None:
            raise missing

    @staticmethod
    def _where() -> str:
        return _endpoint() or "AWS"

    def write(self, path: str, data: bytes) -> None:
        """Write a small object."""
        with self.open_output(path) as file:
            file.write(data)

    @contextmanager
    def open_output(self, path: str) -> Iterator[Any]:
        """Write a large object piece by piece."""
        try:
            file = self._writes.open_output_stream(self._root + path)
            # Not after an error: closing would make an object of what there is so far, and so would forgetting it.
            _unfinished.append(file)
            yield file
            file.close()
        except OSError as error:
            raise explain(error, self._bucket, self._where()) from error
        _unfinished.remove(file)

    def read(self, path: str) -> bytes:
        """The content of a small object."""
        with closing(self.open_random(path)) as file:
            return file.read_at(0, file.size()) if file.size() else b""

    def open_input(self, path: str) -> RandomFile:
        """Open an object for reading."""
        return self.open_random(path)

    def open_random(self, path: str) -> RandomFile:
        """Open an object for reading anywhere in it."""
        return _S3RandomFile(self, path, self.retry(lambda: self._reads.open_input_file(self._root + path), path))

    def names(self, prefix: str) -> list[str]:
        """The names below ``prefix``."""
        return [info.base_name for info in self.retry(lambda: self._list(prefix, recursive=False))]

    def entries(self, prefix: str) -> dict[str, int | None]:
        """The bytes of the objects below ``prefix`` by name, None for those that have others below them."""
        listed = self.retry(lambda: self._list(prefix, recursive=False))
        return {info.base_name: info.size if info.is_file else None for info in listed}

    def sizes(self, prefix: str) -> dict[str, int]:
        """The bytes of all objects below ``prefix``."""
        start = len(self._root + prefix)
        listed = self.retry(lambda: self._list(prefix, recursive=True))
        return {info.path[start:]: info.size for info in listed if info.is_file}

    def _list(self, prefix: str, *, recursive: bool) -> list[Any]:
        from pyarrow import fs

        folder = (self._root + prefix).rstrip("/")
        listed: list[Any] = self._reads.get_file_info(
            fs.FileSelector(folder, recursive=recursive, allow_not_found=True)
        )
        return listed

    def remove(self, path: str) -> None:
        """Delete an object."""
        with suppress(FileNotFoundError):
            self.retry(lambda: self._reads.delete_file(self._root + path))

    def delete(self, prefix: str) -> None:
        """Delete all below ``prefix``."""
        with suppress(FileNotFoundError):
            self.retry(lambda: self._reads.delete_dir((self._root + prefix).rstrip("/")))


class _S3RandomFile(RandomFile):
    """An object that is being read. Each opening asks anew what it is, and ``version`` is its entity tag."""

    def __init__(self, files: S3Files, path: str, file: Any) -> None:
        facts = file.metadata() or {}
        super().__init__(file.size(), (facts.get("ETag") or facts.get("Last-Modified") or b"").decode())
        self._files = files
        self._path = path
        self._file = file

    def read_at(self, offset: int, length: int) -> bytes:
        """All ``length`` bytes from ``offset`` on."""

        def read() -> bytes:
            data: bytes = self._file.read_at(length, offset)
            if len(data) != length:
                raise OSError(f"AWS Error NETWORK_CONNECTION during GetObject operation: {_short(len(data), length)}")
            return data

        return self._files.retry(read, self._path)

    def close(self) -> None:
        """Let go of it."""
        if not self.closed:
            self._file.close()
        super().close()


def _short(found: int, expected: int) -> str:
    return f"the answer was cut short, {found} of {expected} bytes"


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def setting(variable: str, default: int) -> int:
    """The whole number that the environment gives ``variable``.

    Raises:
        InputError: it is none, or less than 1.
    """
    value = os.environ.get(variable, str(default))
    if not value.isdecimal() or int(value) < 1:
        raise InputError(f"{variable} is {value!r}, but must be a whole number of at least 1")
    return int(value)
