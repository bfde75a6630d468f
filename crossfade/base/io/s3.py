"""Objects of an S3 bucket as files: the S3 side of ``crossfade.base.io.folder``. Only this module of it imports boto3.

Requests are retried here rather than by boto3, whose retries either have no jitter or a budget that all threads share.
Errors are of Python's kinds, with one line on what is wrong and how to fix it: FileNotFoundError: there is no such
object or bucket. PermissionError: access is denied. ConnectionError: the server was unreachable or too busy, and a
retry may succeed.
"""

from __future__ import annotations

import io
import os
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast
from urllib.parse import urlsplit

from crossfade.base.environment import environment_integer
from crossfade.base.errors import InputError, MissingExtraError
from crossfade.base.io.random_access import RandomFile
from crossfade.base.io.regular_files import SMALL_FILE_BYTES, FoundFile, check_size

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ListObjectsV2OutputTypeDef

ATTEMPTS_VARIABLE = "CROSSFADE_S3_ATTEMPTS"
TIMEOUT_VARIABLE = "CROSSFADE_S3_TIMEOUT_SECONDS"
DEFAULT_ATTEMPTS = 12
"""Attempts of one S3 request. Pauses double from 25 ms, each cut at random by up to a half, so that 12 attempts take 25
to 51 s if connections are refused, and three minutes if nothing answers."""
MAX_ATTEMPTS = 100
DEFAULT_TIMEOUT_SECONDS = 10
"""Seconds without progress after which a request is retried."""
MAX_TIMEOUT_SECONDS = 86_400
PART_BYTES = 16 << 20
"""Bytes of a part of an upload, of which S3 takes 10,000."""
_DELETED_AT_ONCE = 1000
"""Objects that S3 deletes by one request."""
_FIRST_PAUSE_SECONDS = 0.025
_CONNECT_TIMEOUT_SECONDS = 5
_CHANGED = "was changed by another process"
_DENIED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
_TRANSIENT = {
    *("SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "RequestLimitExceeded", "RequestTimeout"),
    *("InternalError", "ServiceUnavailable", "ConditionalRequestConflict", "OperationAborted"),
}
_TRANSIENT_STATUS = {408, 429, 500, 502, 503, 504, 509}

Result = TypeVar("Result")


class NoBucketError(FileNotFoundError):
    """There is no such bucket. The message is a complete line that names it."""


class ChangedError(OSError):
    """The file was created, replaced, or deleted by another process."""


class Version(NamedTuple):
    """A small file as it was read: its content, what identifies this version, and its time of writing since 1970."""

    data: bytes
    version: str
    modified: float


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
        self.bucket = bucket
        self._prefix = f"{prefix.rstrip('/')}/" if prefix.rstrip("/") else ""
        self._interrupted = threading.Event()

    @cached_property
    def _client(self) -> S3Client:
        try:
            from botocore.config import Config
            from botocore.session import Session
        except ImportError as error:
            raise MissingExtraError("boto3", "aws", "reading and writing on S3") from error
        endpoint = s3_endpoint()
        config = Config(
            connect_timeout=_CONNECT_TIMEOUT_SECONDS,
            read_timeout=environment_integer(TIMEOUT_VARIABLE, DEFAULT_TIMEOUT_SECONDS, 1, MAX_TIMEOUT_SECONDS),
            retries={"total_max_attempts": 1},
            max_pool_connections=64,
            # Other servers than AWS: buckets in the path, and no checksums that they may not support.
            s3={"addressing_style": "path" if endpoint else "auto"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            user_agent_extra="crossfade",
        )
        # Without a region, boto3 finds the bucket's.
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        with translate_s3_errors(self.bucket):
            session = Session()
            session.register_component("data_loader", _loader())
            client = session.create_client("s3", region_name=region, endpoint_url=endpoint, config=config)
            return cast("S3Client", client)

    def interrupt(self) -> None:
        """Stop retrying: a request that fails from now on raises at once."""
        self._interrupted.set()

    def send(self, request: Callable[[S3Client], Result]) -> Result:
        """Call ``request`` with the client, once."""
        client = self._client  # first of all, since the next line needs boto3 too
        with translate_s3_errors(self.bucket):
            return request(client)

    def retry(self, request: Callable[[S3Client], Result]) -> Result:
        """Call ``request`` with the client until it succeeds or fails with an error that is not transient."""
        last = environment_integer(ATTEMPTS_VARIABLE, DEFAULT_ATTEMPTS, 1, MAX_ATTEMPTS) - 1
        for attempt in range(last + 1):
            try:
                return self.send(request)
            except ConnectionError:
                if attempt == last or self._interrupted.is_set():
                    raise
            self._interrupted.wait(_FIRST_PAUSE_SECONDS * 2**attempt * random.uniform(0.5, 1.0))  # noqa: S311
        raise AssertionError("the last attempt returns or raises")

    def key(self, path: str) -> str:
        """Return the key of the object at ``path``."""
        return self._prefix + path

    def write(self, path: str, data: bytes) -> None:
        """Write a small object."""
        self.retry(lambda client: client.put_object(Bucket=self.bucket, Key=self.key(path), Body=data))

    @contextmanager
    def open_output(self, path: str) -> Iterator[_Upload]:
        """Write a large object in pieces. If an error leaves the block, no object is created."""
        upload = _Upload(self, self.key(path))
        try:
            yield upload
            upload.finish()
        except BaseException:
            upload.abort()
            raise

    def take_over(self, path: str, source: object, source_path: str) -> bool:
        """Have the server copy an object of ``source``; return False where it cannot: the bytes must be sent."""
        if not isinstance(source, S3Files):
            return False
        origin = f"{source.bucket}/{source.key(source_path)}"
        try:
            self.retry(lambda client: client.copy_object(Bucket=self.bucket, Key=self.key(path), CopySource=origin))
        except FileNotFoundError:
            raise
        except OSError:  # a bucket in another region, more than 5 GB, or a key that encrypts only what is sent
            return False
        return True

    def read(self, path: str, max_bytes: int) -> bytes:
        """Read an object of at most ``max_bytes``."""
        return self.read_version(path, max_bytes).data

    def read_version(self, path: str, max_bytes: int = SMALL_FILE_BYTES) -> Version:
        """Read an object of at most ``max_bytes``, and its version."""

        def read(client: S3Client) -> Version:
            answer = client.get_object(Bucket=self.bucket, Key=self.key(path))
            with closing(answer["Body"]) as body:
                check_size(answer["ContentLength"], max_bytes)
                return Version(body.read(), answer["ETag"], answer["LastModified"].timestamp())

        return self.retry(read)

    def write_over(self, path: str, data: bytes, version: str | None) -> str:
        """Write a small object if the present one still has ``version``; return the new version."""
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        key = self.key(path)
        try:
            answer = self.retry(lambda client: client.put_object(Bucket=self.bucket, Key=key, Body=data, **condition))
            return answer["ETag"]
        except NoBucketError:
            raise
        except (ChangedError, FileNotFoundError) as error:
            # An earlier attempt may have succeeded although its answer was lost.
            with suppress(FileNotFoundError):
                found = self.read_version(path)
                if found.data == data:
                    return found.version
            raise ChangedError(_CHANGED) from error

    def open_random(self, path: str) -> RandomFile:
        """Open an object for random access."""
        key = self.key(path)
        try:
            answer = self.retry(lambda client: client.head_object(Bucket=self.bucket, Key=key))
        except (FileNotFoundError, PermissionError):
            # The answer to this request has the reason, unlike the answer to HEAD.
            self.retry(lambda client: client.get_object(Bucket=self.bucket, Key=key)["Body"].close())
            raise
        return _S3RandomFile(self, key, answer["ContentLength"], answer["ETag"])

    def entries(self, prefix: str) -> dict[str, FoundFile | None]:
        """Return the objects directly below ``prefix`` by name; None for a prefix of further objects."""
        start = len(self.key(prefix))
        found: dict[str, FoundFile | None] = {}
        for page in self._pages(prefix, "/"):
            found |= {entry["Prefix"][start:-1]: None for entry in page.get("CommonPrefixes", [])}
            found |= _files_of(page, start)
        return found

    names = entries

    def files(self, prefix: str) -> dict[str, FoundFile]:
        """Return all objects below ``prefix`` by path."""
        start = len(self.key(prefix))
        return {path: file for page in self._pages(prefix) for path, file in _files_of(page, start).items()}

    def _pages(self, prefix: str, delimiter: str = "") -> Iterator[ListObjectsV2OutputTypeDef]:
        request: dict[str, Any] = {"Bucket": self.bucket, "Prefix": self.key(prefix), "Delimiter": delimiter}
        while True:
            page = self.retry(lambda client: client.list_objects_v2(**request))
            yield page
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def remove(self, path: str, version: str | None = None) -> None:
        """Delete an object if it exists or, with ``version``, if it still has this version."""
        condition: dict[str, Any] = {} if version is None else {"IfMatch": version}
        try:
            self.retry(lambda client: client.delete_object(Bucket=self.bucket, Key=self.key(path), **condition))
        except FileNotFoundError as error:
            if version is not None:
                raise ChangedError(_CHANGED) from error

    def delete(self, prefix: str) -> None:
        """Delete all objects below ``prefix``, and the empty object that some servers keep for a folder."""
        keys = [listed["Key"] for page in self._pages(prefix) for listed in page.get("Contents", [])]
        keys += filter(None, [self.key(prefix)])
        for begin in range(0, len(keys), _DELETED_AT_ONCE):
            deleted: Any = {"Objects": [{"Key": key} for key in keys[begin : begin + _DELETED_AT_ONCE]], "Quiet": True}
            answer = self.retry(lambda client: client.delete_objects(Bucket=self.bucket, Delete=deleted))  # noqa: B023
            for error in answer.get("Errors", []):
                raise PermissionError(f"s3://{self.bucket}/{error['Key']}: was not deleted: {error['Message']}")


def _files_of(page: ListObjectsV2OutputTypeDef, start: int) -> dict[str, FoundFile]:
    """Return the objects of a page, but not those that stand for a folder."""
    return {
        listed["Key"][start:]: FoundFile(listed["Size"], listed["LastModified"].timestamp())
        for listed in page.get("Contents", [])
        if not listed["Key"].endswith("/")
    }


class _Upload(io.RawIOBase):
    """An object that is written in parts, of equal size but the last, and that exists once all are sent."""

    def __init__(self, files: S3Files, key: str) -> None:
        self._files, self._key = files, key
        self._place: dict[str, Any] = {"Bucket": files.bucket, "Key": key}
        self._buffer: Any = bytearray()
        self._tags: list[str] = []

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: Any) -> int:
        """Append ``data``."""
        self._buffer += data
        while len(self._buffer) > PART_BYTES:
            self._send(self._buffer[:PART_BYTES])
            del self._buffer[:PART_BYTES]
        return len(data)

    def _send(self, part: Any) -> None:
        if "UploadId" not in self._place:
            started = self._files.retry(lambda client: client.create_multipart_upload(**self._place))
            self._place["UploadId"] = started["UploadId"]
        number = len(self._tags) + 1
        answer = self._files.retry(lambda client: client.upload_part(**self._place, PartNumber=number, Body=part))
        self._tags.append(answer["ETag"])

    def finish(self) -> None:
        """Create the object: a small one by one request."""
        if "UploadId" not in self._place:
            self._files.retry(lambda client: client.put_object(**self._place, Body=self._buffer))
            return
        self._send(self._buffer)
        parts: Any = {"Parts": [{"PartNumber": n, "ETag": tag} for n, tag in enumerate(self._tags, 1)]}
        self._files.retry(lambda client: client.complete_multipart_upload(**self._place, MultipartUpload=parts))

    def abort(self) -> None:
        """Delete the parts. Where S3 cannot be reached, a lifecycle rule of the bucket does."""
        if "UploadId" in self._place:
            with suppress(OSError):
                self._files.send(lambda client: client.abort_multipart_upload(**self._place))


class _S3RandomFile(RandomFile):
    """An object opened for reading. ``version`` is its entity tag when it was opened, which reads require."""

    def __init__(self, files: S3Files, key: str, size: int, version: str) -> None:
        super().__init__(size, version)
        self._files, self._key = files, key

    def read_at(self, offset: int, length: int) -> bytes:
        """Read exactly ``length`` bytes from ``offset`` on."""

        def read(client: S3Client) -> bytes:
            answer = client.get_object(
                Bucket=self._files.bucket,
                Key=self._key,
                Range=f"bytes={offset}-{offset + length - 1}",
                IfMatch=self.version,
            )
            data = answer["Body"].read()
            if len(data) != length:
                raise ConnectionError(f"{_endpoint_name()} answered with {len(data)} of {length} bytes")
            return data

        return self._files.retry(read)


@cache
def _loader() -> Any:
    """Return the descriptions of S3's requests, which clients share: to read them takes 0.1 s."""
    from botocore.loaders import Loader

    return Loader()


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


@contextmanager
def translate_s3_errors(bucket: str) -> Iterator[None]:
    """Raise errors of boto3 as errors of Python's kinds."""
    from botocore import exceptions
    from botocore.parsers import ResponseParserError

    cut_off = exceptions.IncompleteReadError, ResponseParserError
    try:
        yield
    except exceptions.ClientError as error:
        raise _describe(error.response, bucket) from error
    except (exceptions.ConnectionError, exceptions.HTTPClientError, *cut_off) as error:
        reason = f"{' '.join(str(error).split())}; check AWS_ENDPOINT_URL and the network"
        raise ConnectionError(f"{_endpoint_name()} cannot be reached (NETWORK_CONNECTION): {reason}") from error
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError, exceptions.ProfileNotFound) as error:
        fix = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE, and ~/.aws"
        raise PermissionError(f"{error}; {fix}") from error
    except exceptions.BotoCoreError as error:
        raise PermissionError(" ".join(str(error).split())) from error


def _describe(answer: Mapping[str, Any], bucket: str) -> OSError:
    """Return the error of an answer of S3."""
    code, detail = (str(answer.get("Error", {}).get(name, "")) for name in ("Code", "Message"))
    status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    label = code if code == str(status) else f"{status} {code}"
    if code == "PreconditionFailed":
        return ChangedError(_CHANGED)
    if status == 404 and code == "NoSuchBucket":
        fix = "check its name, AWS_ENDPOINT_URL and AWS_REGION"
        return NoBucketError(f"there is no bucket '{bucket}' at {_endpoint_name()}; {fix}")
    if status == 404:
        return FileNotFoundError(f"there is no such object ({label})")
    if code in _TRANSIENT or status in _TRANSIENT_STATUS:
        return ConnectionError(f"{_endpoint_name()} did not answer correctly, after all retries ({label}): {detail}")
    if not 400 <= status < 500:
        return OSError(f"{detail} ({label})")
    text = f"{_endpoint_name()} rejected the request ({label}): {detail}"
    if code in _DENIED:
        key = os.environ.get("AWS_ACCESS_KEY_ID")
        who = f"the credentials of AWS_ACCESS_KEY_ID={key}" if key else "the credentials found (~/.aws, or a role)"
        fix = f"check {who}, what they may do in bucket '{bucket}', and its name"
        text = f"access denied ({label}): {detail}; {fix}"
    return PermissionError(text)
