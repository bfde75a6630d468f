"""Pushes to moto's S3 Vectors: what indexes hold, changes, resumption, throttling, and rejections."""

import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from aws_server import AwsServer, Call, running_aws
from botocore.loaders import create_loader
from builders import ITEM, QUERY
from command_here import crossfade_here
from error_table import documented
from object_store import free_ports
from running_command import started, succeeded
from written_runs import CUSTOMER_IDS, TRACK_IDS, TRACK_NAMES, TRAINED, WrittenRun, write_run, write_vectors

from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import data_fingerprint, read_manifest
from crossfade.trainer.formats import exported_model, s3_vectors

pytestmark = pytest.mark.slow

BUCKET = "music-vectors"
PUT = "POST /PutVectors"
INDEX = {"vectorBucketName": BUCKET, "indexName": f"planted-{ITEM}"}
NEW_INDEX: dict[str, Any] = {**INDEX, "dataType": "float32", "dimension": 4, "distanceMetric": "cosine"}


@pytest.fixture(scope="module")
def started_server() -> Iterator[AwsServer]:
    with running_aws() as server, mock.patch("botocore.session.create_loader", cache(create_loader)):
        yield server


@pytest.fixture
def server(started_server: AwsServer, monkeypatch: pytest.MonkeyPatch) -> AwsServer:
    """Return an empty server, to which commands go; two vectors are put in a request."""
    started_server.reset()
    for name, value in started_server.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(s3_vectors, "_MAX_VECTORS", 2)
    monkeypatch.setattr(s3_vectors, "_TAGGED_REQUESTS", 1)
    monkeypatch.setattr(s3_vectors, "_AT_ONCE", 2)
    monkeypatch.setattr(exported_model, "GROUP_ROWS", 3)
    return started_server


def push(run: WrittenRun, *options: object, bucket: str = BUCKET) -> Any:
    return crossfade_here("export", run.path, "--to", "s3-vectors", "--push", bucket, *options)


def later_run(folder: Path, before: WrittenRun) -> WrittenRun:
    """Write a run in which a customer and a track have other vectors, track 5 is trained since, and track 6 no more."""
    later = write_run(folder, untrained=[3, 6])
    manifest = read_manifest(Folder(later.data))
    lineage = [data_fingerprint(Folder(before.data))]
    manifest.model_copy(update={"lineage": lineage}).write(Folder(later.data))
    later.vectors[QUERY][2] += 1
    later.vectors[ITEM][0] -= 1
    shutil.rmtree(later.path / "embeddings")
    write_vectors(later.path / "embeddings", later.data, later.vectors)
    return later


def held(server: AwsServer, entity: str, prefix: str = "planted") -> dict[str, tuple[list[float], Any]]:
    """Return vector and metadata of each key of an index."""
    answer = server.client("s3vectors").list_vectors(
        vectorBucketName=BUCKET, indexName=f"{prefix}-{entity}", returnData=True, returnMetadata=True
    )
    return {each["key"]: (each["data"]["float32"], each["metadata"]) for each in answer["vectors"]}


def expected(run: WrittenRun, entity: str, rows: list[int]) -> dict[str, tuple[list[float], Any]]:
    ids = CUSTOMER_IDS if entity == QUERY else TRACK_IDS
    named = {row: {"name": TRACK_NAMES[row]} for row in rows if entity == ITEM and TRACK_NAMES[row] is not None}
    return {str(ids[row]): (run.vectors[entity][row].tolist(), named.get(row, {})) for row in rows}


def assert_holds(
    server: AwsServer, run: WrittenRun, tracks: list[int], entities: Sequence[str] = (QUERY, ITEM)
) -> None:
    """Assert that the indexes hold the vectors and names of ``run``, and of tracks those in ``tracks``."""
    for entity in entities:
        rows = tracks if entity == ITEM else list(range(len(CUSTOMER_IDS)))
        found, wanted = held(server, entity), expected(run, entity, rows)
        assert {key: metadata for key, (_, metadata) in found.items()} == {key: each[1] for key, each in wanted.items()}
        for key, (values, _) in wanted.items():
            np.testing.assert_array_equal(np.array(found[key][0], np.float32), np.array(values, np.float32))


def state(server: AwsServer, entity: str) -> str:
    client = server.client("s3vectors")
    arn = client.get_index(vectorBucketName=BUCKET, indexName=f"planted-{entity}")["index"]["indexArn"]
    return str(client.list_tags_for_resource(resourceArn=arn)["tags"][s3_vectors.TAG])


def nth(number: int, do: Callable[[], object]) -> Callable[[Call], None]:
    """Return what calls ``do`` at the call with this number, from 1."""
    seen, lock = [0], threading.Lock()

    def count(_: Call) -> None:
        with lock:
            seen[0] += 1
            if seen[0] == number:
                do()

    return count


def test_indexes_hold_the_model_and_then_a_later_one(server: AwsServer, tmp_path: Path) -> None:
    run = write_run(tmp_path / "before")
    result = succeeded(push(run))
    assert f"track                 8 x 4      {BUCKET}/planted-track, 2 untrained" in result.stdout
    assert_holds(server, run, TRAINED)
    index = server.client("s3vectors").get_index(**INDEX)["index"]
    assert (index["dimension"], index["distanceMetric"], index["dataType"]) == (4, "cosine", "float32")
    later = write_run(tmp_path / "later", seed=5, untrained=[3, 6])
    server.client("s3vectors").put_vectors(**INDEX, vectors=[{"key": "007", "data": {"float32": [1, 2, 3, 4]}}])
    succeeded(push(later))
    assert_holds(server, later, [0, 1, 2, 4, 5, 7, 8, 9])
    before = len(server.calls_of(PUT))
    succeeded(push(later))
    assert len(server.calls_of(PUT)) == before, "indexes that hold the model are left as they are"


def test_changes_replace_and_delete_what_has_changed(server: AwsServer, tmp_path: Path) -> None:
    before = write_run(tmp_path / "before")
    later = later_run(tmp_path / "later", before)
    changes = ("--since", before.path)
    rejected("--since of what an index does not hold", push(later, *changes))
    succeeded(push(before))
    # An unchanged vector that another process has replaced shows that it is not put again.
    untouched = {"key": str(TRACK_IDS[1]), "data": {"float32": [9.0, 9.0, 9.0, 9.0]}}
    server.client("s3vectors").put_vectors(**INDEX, vectors=[untouched])
    result = succeeded(push(later, *changes))
    assert "2 x 4" in result.stdout
    assert "1 deleted" in result.stdout
    tracks = held(server, ITEM)
    assert tracks.pop(str(TRACK_IDS[1]))[0] == [9.0, 9.0, 9.0, 9.0]
    assert tracks.keys() == {str(TRACK_IDS[row]) for row in (0, 2, 4, 5, 7, 8, 9)}
    for row in (0, 5):
        np.testing.assert_array_equal(np.float32(tracks[str(TRACK_IDS[row])][0]), later.vectors[ITEM][row])
    assert state(server, ITEM).startswith("holds ")
    other = write_run(tmp_path / "other", seed=9)
    rejected("--since of what an index does not hold", push(before, "--since", other.path))


def test_interrupted_push_goes_on_where_it_was(server: AwsServer, tmp_path: Path) -> None:
    run = write_run(tmp_path / "before")
    # The eight tracks are in six requests: two, one, two, and one of a block.
    server.before(PUT, nth(3, lambda: server.fail(PUT, "AccessDeniedException", "no more")))
    rejected("--push without a permission of S3 Vectors", push(run, "--entity", ITEM))
    assert re.fullmatch(r"[0-9a-f]{8}/[0-9a-f]{16} at 3", state(server, ITEM))
    before = len(server.calls_of(PUT))
    succeeded(push(run, "--entity", ITEM))
    assert len(server.calls_of(PUT)) == before + 3
    assert_holds(server, run, TRAINED, [ITEM])
    later, changes = later_run(tmp_path / "later", run), ("--entity", ITEM, "--since", run.path)
    server.before(PUT, nth(1, lambda: server.fail(PUT, "AccessDeniedException", "no more")))
    assert push(later, *changes).returncode == 2
    assert re.fullmatch(r"[0-9a-f]{8}/[0-9a-f]{16} since [0-9a-f]{8}/[0-9a-f]{16} at 1", state(server, ITEM))
    before = len(server.calls_of(PUT))
    succeeded(push(later, *changes))
    assert len(server.calls_of(PUT)) == before + 1
    assert_holds(server, later, [0, 1, 2, 4, 5, 7, 8, 9], [ITEM])


def test_push_beside_another_is_stopped_and_repaired(server: AwsServer, tmp_path: Path) -> None:
    run = write_run(tmp_path / "before")
    succeeded(push(run))
    later = later_run(tmp_path / "later", run)
    client = server.client("s3vectors")

    def interfere() -> None:
        client.put_vectors(**INDEX, vectors=[{"key": str(TRACK_IDS[1]), "data": {"float32": [9, 9, 9, 9]}}])
        arn = client.get_index(**INDEX)["index"]["indexArn"]
        client.tag_resource(resourceArn=arn, tags={s3_vectors.TAG: "holds another"})

    server.before(PUT, nth(1, interfere))
    rejected("another --push to an index at the same time", push(later), 1)
    assert state(server, ITEM) == "holds another", "nothing was put into it"
    for number in (3, 5):  # in the midst and at the end
        server.before(PUT, nth(number, interfere))
        rejected("another --push to an index at the same time", push(later, "--entity", ITEM), 1)
        assert state(server, ITEM) == "mixed"
    rejected("--since of what an index does not hold", push(later, "--entity", ITEM, "--since", run.path))
    server.before(PUT, lambda _: None)
    succeeded(push(later))
    assert_holds(server, later, [0, 1, 2, 4, 5, 7, 8, 9])


def test_killed_push_goes_on(server: AwsServer, tmp_path: Path) -> None:
    run = write_run(tmp_path)
    arguments = ("export", run.path, "--to", "s3-vectors", "--push", BUCKET)
    with started(*arguments, cwd=tmp_path) as command:
        server.before(PUT, lambda _: command.process.kill())
        assert command.finish().returncode == -signal.SIGKILL
    assert state(server, QUERY).endswith(" at 0")
    server.before(PUT, lambda _: None)
    succeeded(push(run))
    assert_holds(server, run, TRAINED)


def test_throttled_request_is_repeated_and_at_last_reported(
    server: AwsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path)
    server.fail(PUT, "TooManyRequestsException", "slow down", status=429)
    succeeded(push(run))
    assert_holds(server, run, TRAINED)
    server.reset()
    monkeypatch.setattr(s3_vectors, "_ATTEMPTS", 1)
    server.fail(PUT, "TooManyRequestsException", "slow down", times=0, status=429)
    rejected("--push to S3 Vectors that throttles", push(run), 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    rejected("--push to S3 Vectors that does not answer", push(run), 1)


def test_zero_vectors_are_left_out(server: AwsServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = write_run(tmp_path)
    succeeded(push(run))
    run.vectors[ITEM][1] = 0
    shutil.rmtree(run.path / "embeddings")
    write_vectors(run.path / "embeddings", run.data, run.vectors)
    succeeded(push(run))
    assert_holds(server, run, [row for row in TRAINED if row != 1])
    assert f"{BUCKET}/planted-track: 1 rows have a zero vector, which has no cosine: left out" in caplog.text


def test_what_does_not_fit_is_rejected(server: AwsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run")
    client = server.client("s3vectors")
    client.create_vector_bucket(vectorBucketName=BUCKET)
    client.create_index(**NEW_INDEX | {"distanceMetric": "euclidean"})
    rejected("--push to an index that does not fit", push(run))
    client.delete_index(**INDEX)
    client.create_index(**NEW_INDEX)
    client.put_vectors(**INDEX, vectors=[{"key": "a", "data": {"float32": [1, 2, 3, 4]}}])
    rejected("--push over an index that no export wrote", push(run))
    assert held(server, ITEM).keys() == {"a"}
    client.delete_vectors(**INDEX, keys=["a"])
    succeeded(push(run))
    rejected("--push of dot products to S3 Vectors", push(write_run(tmp_path / "dot", score="dot")))
    rejected("--push to a vector bucket by another name", push(run, bucket="s3://music"))
    rejected("s3-vectors without --push", crossfade_here("export", run.path, "--to", "s3-vectors", "--out", tmp_path))
    monkeypatch.setattr(s3_vectors, "_MAX_KEY_LETTERS", 3)
    server.reset()
    rejected("an ID that is too long for S3 Vectors", push(run, "--entity", ITEM))
    monkeypatch.delenv("AWS_REGION")
    rejected("--push to S3 Vectors without a region", push(run))


def rejected(cause: str, result: Any, exit_code: int = 2) -> str:
    assert result.stdout == ""
    line = result.stderr.splitlines()[-1]
    return documented(cause, line.removeprefix("crossfade: error: "), exit_code)
