"""Put the vectors of a model into indexes of Amazon S3 Vectors, and delete those that are gone.

    bucket = push(exported, "music-vectors")

Each table is an index; the bucket and the indexes are created if they are missing. The key of a vector is the ID of its
row as text, and its metadata is the name, if there is one. A zero vector, which has no cosine, is left out.

There are no transactions and no aliases: during a push, searches find vectors of both models. A tag of the index has
what it holds, in one of three forms:

    holds MODEL                     all vectors of MODEL, and no others
    MODEL at N                      N requests have replaced others' vectors by those of MODEL
    MODEL since EARLIER at N        N requests have replaced those that have changed since EARLIER

So a push that is repeated after an interruption goes on where it was, and changes are rejected by an index that does
not hold what they are changes of. Indexes without the tag are only used if they are empty. A push that finds the tag of
another push tags the index as mixed, and ends with an error; a complete push repairs a mixed index. The service has no
conditional writes: two pushes that read the tag before either writes it notice each other at their next tag, if there
is one.

Limits: https://docs.aws.amazon.com/AmazonS3/latest/userguide/s3-vectors-limitations.html
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from crossfade.base.errors import CrossfadeError, InputError, MissingExtraError, Option, OptionError, command
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.config.score import ScoreKind
from crossfade.trainer.formats.exported_model import Block, ExportedModel, identity

MAX_COLUMNS = 4096
MAX_NAME_LETTERS = 63
"""What the name of an index may have, which has no underscore."""
TAG = "crossfade-export"
_METRICS: dict[ScoreKind, str] = {"cosine": "cosine", "euclidean": "euclidean"}
_BUCKET = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
_MAX_VECTORS, _MAX_BYTES, _MAX_KEY_LETTERS = 500, 20 << 20, 1024
"""What a request may have, and a key."""
_VALUE_BYTES, _OTHER_BYTES = 17, 16 << 10
"""What JSON takes at most for a float32, and for the key and the name of a vector."""
_AT_ONCE = 4
"""Requests on their way: an index takes 2,500 vectors in a second."""
_TAGGED_REQUESTS = 100
"""Requests after which the tag is written: at most as many are repeated."""
_KEYS_AT_ONCE = 1 << 20
"""Keys that are looked up in the dataset at a time, which reads all of its IDs."""
_CONNECT_SECONDS, _READ_SECONDS, _ATTEMPTS = 10, 60, 10
_TRANSIENT = {
    "InternalServerException",
    "RequestTimeoutException",
    "ServiceUnavailableException",
    "ThrottlingException",
    "TooManyRequestsException",
}
_MIXED = "mixed"
_AGAIN = "the same command goes on where it was"
_logger = logging.getLogger(__name__)


def check_bucket(bucket: str) -> None:
    """Check that boto3 is installed, and that ``bucket`` is the name of a vector bucket.

    Raises:
        MissingExtraError: boto3 is not installed.
        OptionError: it is not.
    """
    try:
        import boto3  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("boto3", extra="aws", purpose=command("export", push=True)) from error
    if not _BUCKET.fullmatch(bucket):
        expected = "the name of a vector bucket: 3 to 63 lower-case letters, digits, and hyphens"
        raise OptionError("push", found=bucket, expected=expected)


def push(exported: ExportedModel, bucket: str) -> str:
    """Replace the vectors of the indexes, or those that have changed, and return ``bucket``.

    Raises:
        CheckpointError: the checkpoint is corrupt or cannot be read.
        CrossfadeError: AWS did not answer or throttles, after all retries.
        InputError: AWS rejects a request, or an index has other columns or other content.
    """
    score = exported.model.job.model.score
    if score not in _METRICS:
        raise InputError(
            f"{exported.model.uri}: its score is {score}, but S3 Vectors has {' and '.join(_METRICS)} only; export to "
            "another format, or train with another model.score"
        )
    with _translated():
        client = _new_client()
        indexes = [_Index(client, bucket, exported, table) for table in exported.tables]
        for index in indexes:
            index.open(_METRICS[score])
        for index in indexes:
            index.replace()
    return bucket


def _new_client() -> Any:
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_READ_SECONDS,
        # It slows down as long as requests are throttled.
        retries={"mode": "adaptive", "total_max_attempts": _ATTEMPTS},
        max_pool_connections=_AT_ONCE,
        user_agent_extra="crossfade",
    )
    return boto3.Session(region_name=os.environ.get("AWS_REGION")).client("s3vectors", config=config)


@contextmanager
def _translated() -> Iterator[None]:
    """Turn errors of botocore into CrossfadeErrors if a later attempt may succeed, otherwise into OptionErrors."""
    from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError

    try:
        yield
    except ClientError as error:
        code, text = error.response["Error"]["Code"], error.response["Error"].get("Message", "")
        problem = f"AWS rejects {error.operation_name}: {_one_line(text)} ({code})"
        if code in _TRANSIENT:
            raise CrossfadeError(Option("push"), f": {problem}; {_AGAIN}") from error
        raise OptionError("push", problem=problem) from error
    except (ConnectionError, HTTPClientError) as error:
        raise CrossfadeError(Option("push"), f": AWS did not answer: {_one_line(error)}; {_AGAIN}") from error
    except BotoCoreError as error:
        fix = "set AWS_REGION and AWS_PROFILE, or log in with 'aws sso login'"
        raise OptionError("push", problem=_one_line(error).rstrip("."), fix=fix) from error


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


@dataclass
class _Index:
    """The index of one table."""

    client: Any
    bucket: str
    exported: ExportedModel
    table: TableSpec
    requests: int | None = 0
    """Requests that have replaced vectors before; None if all have."""
    state: str | None = None
    """The tag, as this push read it or wrote it last."""
    has_tagged: bool = False
    arn: str = ""
    is_new: bool = False
    """Whether it was empty when this push began."""

    def __post_init__(self) -> None:
        self.model = "/".join(identity(self.exported.model))
        since = self.exported.since
        self.earlier = None if since is None else "/".join(identity(since))
        self.push = self.model if self.earlier is None else f"{self.model} since {self.earlier}"
        self.place = {"vectorBucketName": self.bucket, "indexName": self.exported.names[self.table.name]}

    @property
    def uri(self) -> str:
        """What messages call it."""
        return "/".join(self.place.values())

    def open(self, metric: str) -> None:
        """Find the index or, for a complete export, create it.

        Raises:
            OptionError: it has other columns, another metric, or not the content that can be replaced.
        """
        missing = self.client.exceptions.NotFoundException
        try:
            found = self.client.get_index(**self.place)["index"]
        except missing:
            if self.earlier is not None:
                raise self._not_held() from None
            self._create(metric)
            found = self.client.get_index(**self.place)["index"]
        if (found["dimension"], found["distanceMetric"]) != (self.table.dim, metric):
            problem = (
                f"the index {self.uri} has {found['dimension']} columns and the metric {found['distanceMetric']}, but "
                f"the vectors have {self.table.dim} and need {metric}"
            )
            raise OptionError("push", problem=problem, fix=("delete it, or choose another ", Option("name")))
        self.arn = found["indexArn"]
        self.state = self._read_tag()
        self.requests = self._requests_before(self.state)

    def _create(self, metric: str) -> None:
        conflict, missing = self.client.exceptions.ConflictException, self.client.exceptions.NotFoundException
        request = {
            **self.place,
            "dataType": "float32",
            "dimension": self.table.dim,
            "distanceMetric": metric,
            # Of a name that can be filtered by, 2 KB are allowed.
            "metadataConfiguration": {"nonFilterableMetadataKeys": ["name"]},
            "tags": {TAG: f"{self.push} at 0"},
        }
        try:
            self.client.create_index(**request)
        except missing:
            self.client.create_vector_bucket(vectorBucketName=self.bucket)
            self.client.create_index(**request)
        except conflict:  # another process, or an attempt that was repeated
            return
        self.is_new = True

    def _requests_before(self, state: str | None) -> int | None:
        """Return how many requests of this push an index in ``state`` has had; None for all."""
        if state == f"holds {self.model}":
            return None
        if (done := self._own_requests(state)) is not None:
            return done
        if self.earlier is not None and state != f"holds {self.earlier}":
            raise self._not_held()
        if state is None and self.client.list_vectors(**self.place, maxResults=1)["vectors"]:
            problem = f"the index {self.uri} is not one that {command('export')} wrote"
            raise OptionError("push", problem=problem, fix=("choose another ", Option("name")))
        return 0

    def _own_requests(self, state: str | None) -> int | None:
        found = re.fullmatch(rf"{re.escape(self.push)} at (\d+)", state or "")
        return int(found[1]) if found else None

    def _not_held(self) -> OptionError:
        problem = f"the index {self.uri} does not hold the version that the changes are of"
        return OptionError("push", problem=problem, fix=("export completely, without ", Option("since")))

    def replace(self) -> None:
        """Put the vectors, delete those of other rows, and tag the index; of an index that holds them, only read."""
        done, sent = self.requests, 0
        if done is not None:
            self._tag(f"{self.push} at {done}")
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="s3-vectors") as pool:
            for block in self._blocks():
                batches = [block.part(first, self._batch) for first in range(0, len(block.vectors_ND), self._batch)]
                for first in range(0, len(batches), _AT_ONCE):
                    these = batches[first : first + _AT_ONCE]
                    before, sent = sent, sent + len(these)
                    if done is None or sent <= done:
                        continue
                    list(pool.map(self._put, these))
                    if before // _TAGGED_REQUESTS != sent // _TAGGED_REQUESTS:
                        self._tag(f"{self.push} at {sent}")
        if done is not None:
            if self.earlier is None and not self.is_new:
                self._delete_absent(self._keys())
            self._tag(f"holds {self.model}")

    @property
    def _batch(self) -> int:
        return min(_MAX_VECTORS, _MAX_BYTES // (_VALUE_BYTES * self.table.dim + _OTHER_BYTES))

    def _blocks(self) -> Iterator[Block]:
        """Yield the rows to put; the others that a search must not find are deleted on the way."""
        if self.earlier is None:
            blocks: Iterable[Block] = self.exported.trained_blocks(self.table)
        else:
            blocks = self._changed_blocks()
        zeros = 0
        for block in blocks:
            kept_N = block.vectors_ND.any(axis=1)
            if kept_N.all() or self.exported.model.job.model.score != "cosine":
                yield block
                continue
            zeros += int(np.count_nonzero(~kept_N))
            self._delete(map(str, block.take(~kept_N).rows.column("id").to_pylist()))
            yield block.take(kept_N)
        if zeros:
            _logger.warning("%s: %s rows have a zero vector, which has no cosine: left out", self.uri, f"{zeros:,}")

    def _changed_blocks(self) -> Iterator[Block]:
        gone: list[str] = []
        for changes in self.exported.changes(self.table, complete=False):
            yield changes.block
            gone += map(str, changes.deleted.to_pylist())
            if len(gone) >= _KEYS_AT_ONCE:
                self._delete_absent(iter(gone))
                gone = []
        self._delete_absent(iter(gone))

    def _put(self, block: Block) -> None:
        vectors = []
        for row_id, name, text in block.records():
            if not 0 < len(key := str(row_id)) <= _MAX_KEY_LETTERS:
                raise InputError(
                    f"{self.exported.model.data.uri}: the ID '{key[:40]}…' of '{self.table.name}' has {len(key):,} "
                    f"characters, but S3 Vectors allows 1 to {_MAX_KEY_LETTERS:,}; export to another format, or "
                    "prepare the data with other IDs"
                )
            # By way of its text a value has as many digits as a float32 needs, instead of those of a float64.
            metadata = {} if name is None else {"metadata": {"name": name}}
            vectors.append({"key": key, "data": {"float32": json.loads(text)}, **metadata})
        self.client.put_vectors(**self.place, vectors=vectors)

    def _keys(self) -> Iterator[str]:
        """Yield the keys of all vectors in the index."""
        for page in self.client.get_paginator("list_vectors").paginate(**self.place):
            yield from (vector["key"] for vector in page["vectors"])

    def _delete_absent(self, keys: Iterator[str]) -> None:
        """Delete the vectors with those of ``keys`` that are no IDs of trained rows."""
        trained_R = self.exported.trained_rows(self.table)
        vocabulary = self.exported.model.vocabulary(self.table.name)
        is_text = self.exported.model.manifest.entities[self.table.name].id_type == "string"
        while some := list(islice(keys, _KEYS_AT_ONCE)):
            ids = pa.array(some, pa.string()) if is_text else pa.array(_integers(some), pa.int64())
            found = vocabulary.find(ids)
            kept = found.column("id").filter(pa.array(trained_R[found.column("row").to_numpy()]))
            present = set(map(str, kept.to_pylist()))
            self._delete(key for key in some if key not in present)

    def _delete(self, keys: Iterable[str]) -> None:
        left = iter(keys) if self.requests is not None else iter(())
        while some := list(islice(left, _MAX_VECTORS)):
            self.client.delete_vectors(**self.place, keys=some)

    def _read_tag(self) -> str | None:
        found: str | None = self.client.list_tags_for_resource(resourceArn=self.arn)["tags"].get(TAG)
        return found

    def _tag(self, state: str) -> None:
        """Write the tag, unless another push has written its own since.

        Raises:
            CrossfadeError: one has.
        """
        found = self._read_tag()
        # Another process may push the same, to the same end.
        is_own = found in (self.state, f"holds {self.model}") or self._own_requests(found) is not None
        if not is_own and self.has_tagged:  # and put vectors since
            self.client.tag_resource(resourceArn=self.arn, tags={TAG: _MIXED})
        if not is_own:
            raise CrossfadeError(
                Option("push"),
                f": another process pushes to the index {self.uri}, too, which may now have "
                "vectors of both; push completely when no other process does",
            )
        self.client.tag_resource(resourceArn=self.arn, tags={TAG: state})
        self.state, self.has_tagged = state, True


def _integers(keys: Iterable[str]) -> list[int]:
    """Return those of ``keys`` that are integers of 64 bits."""
    limits = np.iinfo(np.int64)
    found = (int(key) for key in keys if re.fullmatch(r"-?[0-9]{1,19}", key))
    return [value for value in found if limits.min <= value <= limits.max]
