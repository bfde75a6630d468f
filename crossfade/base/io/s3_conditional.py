"""Conditional requests for S3 objects, which pyarrow's client lacks: write or delete one if it has not changed.

Only this module of ``kvstore`` imports boto3. Errors have the form of those of pyarrow's client, for ``s3_errors``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from crossfade.base.errors import MissingExtraError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_CHANGED = "was changed by another process"


class ChangedError(OSError):
    """The file was created, replaced, or deleted by another process."""


class Version(NamedTuple):
    """A small file as it was read: its content, what identifies this version, and its time of writing since 1970."""

    data: bytes
    version: str
    modified: float


class ConditionalClient:
    """Sends conditional requests for objects of ``bucket``, each once: ``S3Files.retry`` repeats them."""

    def __init__(
        self, bucket: str, region: str | None, endpoint: str | None, connect_seconds: float, read_seconds: float
    ) -> None:
        """Create the client.

        Raises:
            MissingExtraError: boto3 is not installed.
        """
        try:
            import boto3
            from botocore.config import Config
        except ImportError as error:
            raise MissingExtraError("boto3", "aws", "writing a dataset to S3, one process at a time,") from error
        config = Config(
            connect_timeout=connect_seconds,
            read_timeout=read_seconds,
            retries={"total_max_attempts": 1},
            # Other servers than AWS: buckets in the path, and no checksums that they may not support.
            s3={"addressing_style": "path" if endpoint else "auto"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            user_agent_extra="crossfade",
        )
        with _translated("the configuration"):
            self._client: S3Client = boto3.Session().client(
                "s3", region_name=region, endpoint_url=endpoint, config=config
            )
        self._bucket = bucket

    def get(self, key: str) -> Version:
        """Read an object."""
        with _translated("GetObject"):
            answer = self._client.get_object(Bucket=self._bucket, Key=key)
            return Version(answer["Body"].read(), answer["ETag"], answer["LastModified"].timestamp())

    def put(self, key: str, data: bytes, version: str | None) -> str:
        """Write an object if ``version`` is that of the present one, or None and there is none; return the new version.

        Raises:
            ChangedError: it is not.
        """
        try:
            with _translated("PutObject"):
                if version is None:
                    answer = self._client.put_object(Bucket=self._bucket, Key=key, Body=data, IfNoneMatch="*")
                else:
                    answer = self._client.put_object(Bucket=self._bucket, Key=key, Body=data, IfMatch=version)
                return answer["ETag"]
        except (ChangedError, FileNotFoundError) as error:
            # An earlier attempt may have succeeded although its answer was lost.
            with suppress(FileNotFoundError):
                found = self.get(key)
                if found.data == data:
                    return found.version
            raise ChangedError(_CHANGED) from error

    def delete(self, key: str, version: str) -> None:
        """Delete an object if ``version`` is that of the present one.

        Raises:
            ChangedError: it is not.
        """
        try:
            with _translated("DeleteObject"):
                self._client.delete_object(Bucket=self._bucket, Key=key, IfMatch=version)
        except FileNotFoundError as error:
            raise ChangedError(_CHANGED) from error


@contextmanager
def _translated(operation: str) -> Iterator[None]:
    """Translate errors of boto3 into ``OSError``, in the form of pyarrow's client."""
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

    try:
        yield
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if code == "PreconditionFailed":
            raise ChangedError(_CHANGED) from error
        if code == "NoSuchKey":
            raise FileNotFoundError("there is no such object (404 NoSuchKey)") from error
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        raise OSError(
            f"AWS Error UNKNOWN (HTTP status {status}) during {operation} operation: Unable to parse ExceptionName: "
            f"{code} Message: {error.response.get('Error', {}).get('Message', '')}"
        ) from error
    except HTTPClientError as error:
        raise OSError(f"AWS Error NETWORK_CONNECTION during {operation} operation: {error}") from error
    except BotoCoreError as error:  # such as missing credentials
        raise PermissionError(f"{operation}: {error}") from error
