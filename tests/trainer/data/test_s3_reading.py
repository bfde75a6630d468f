"""Reading from S3 with faults: a real server behind a proxy that stalls, throttles, resets, truncates or denies."""

import re
import sys
from collections.abc import Iterator
from contextlib import closing, suppress

import numpy as np
import pytest
from botocore.exceptions import ClientError
from flaky_proxy import Fault, Proxy, flaky_proxy
from object_store import BUCKET, FOREIGN_CREDENTIALS, ObjectStore, running_object_store

from crossfade.base.errors import MissingExtraError
from crossfade.base.io.folder import Folder
from crossfade.base.io.s3 import PART_BYTES, ChangedError, NoBucketError, S3Files, translate_s3_errors

DATA = np.random.default_rng(1).bytes(300_000)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with running_object_store(tmp_path_factory.mktemp("object-store")) as server:
        with server.client().open_output_stream(f"{BUCKET}/music/x.bin") as file:
            file.write(DATA)
        yield server


@pytest.fixture
def proxy(server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Run a proxy through which this process reaches the server."""
    with flaky_proxy(server.endpoint) as proxy:
        for name, value in {**server.variables, "AWS_ENDPOINT_URL": proxy.endpoint}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("CROSSFADE_S3_TIMEOUT_SECONDS", "1")
        yield proxy


@pytest.fixture
def folder(server: ObjectStore, proxy: Proxy) -> Folder:
    return Folder(server.uri("music"))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["reset", "throttle", "busy", "fail", "cut", "stall"])
def test_transient_error_is_retried(folder: Folder, proxy: Proxy, fault: Fault) -> None:
    times = 1 if fault == "stall" else 4
    proxy.inject(fault, times)
    with closing(folder.open_random("x.bin")) as file:
        assert proxy.left == 0 or fault == "cut"  # HEAD has no body to cut, but counts
        assert file.size() == len(DATA)
        for offset, length in ((0, len(DATA)), (100_000, 7), (len(DATA) - 5, 5)):
            proxy.inject(fault, times)
            assert file.read_at(offset, length) == DATA[offset : offset + length]
            assert proxy.left == 0
    proxy.inject(fault, times)
    assert folder.names() == ["x.bin"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("reset", r"cannot be reached \(NETWORK_CONNECTION\)"),
        ("throttle", r"did not answer correctly, after all retries \(503 SlowDown\)"),
        ("cut", r"\(NETWORK_CONNECTION\)"),
    ],
)
def test_persistent_error_is_raised_after_all_attempts(
    folder: Folder, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, fault: Fault, expected: str
) -> None:
    monkeypatch.setenv("CROSSFADE_S3_ATTEMPTS", "3")
    with closing(folder.open_random("x.bin")) as file:
        proxy.inject_every(fault, 1)
        before = proxy.requests
        with pytest.raises(ConnectionError, match=expected):
            file.read_at(0, 1000)
        assert proxy.requests - before == 3
    proxy.inject_every(fault, 0)


@pytest.mark.slow
def test_replaced_file_has_another_version(folder: Folder) -> None:
    versions = set()
    for content in (b"one", b"two", b"two"):
        folder.write("replaced.bin", content)
        with closing(folder.open_random("replaced.bin")) as file:
            versions.add(file.version)
    assert len(versions) >= 2


@pytest.mark.slow
def test_denied_access_is_explained_without_retries(
    folder: Folder, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in FOREIGN_CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    for request in (lambda: folder.read("x.bin"), folder.names, folder.sizes):
        before = proxy.requests
        with pytest.raises(PermissionError, match=r"access denied \(403 AccessDenied\)") as caught:
            request()
        assert str(caught.value).startswith(folder.uri)
        assert "\n" not in str(caught.value)
        assert proxy.requests - before <= 2


def test_retry_pauses_double_with_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSFADE_S3_ATTEMPTS", "6")
    files = S3Files("s3://music/x")
    pauses: list[float] = []
    monkeypatch.setattr(files._interrupted, "wait", pauses.append)

    def fail(_client: object) -> None:
        raise ConnectionError("busy")

    for _ in range(20):
        with pytest.raises(ConnectionError):
            files.retry(fail)
    pauses_TR = np.array(pauses).reshape(20, 5)
    maximum_R = 0.025 * 2.0 ** np.arange(5)
    assert (pauses_TR <= maximum_R).all()
    assert (pauses_TR >= maximum_R / 2).all()
    assert (pauses_TR.std(axis=0) > maximum_R / 20).all()


@pytest.mark.parametrize(
    ("status", "code", "kind", "expected"),
    [
        (503, "SlowDown", ConnectionError, "(503 SlowDown)"),
        (429, "429", ConnectionError, "(429)"),
        (409, "ConditionalRequestConflict", ConnectionError, "(409 ConditionalRequestConflict)"),
        (400, "ExpiredToken", PermissionError, "access denied (400 ExpiredToken): tea; check"),
        (403, "AccessDenied", PermissionError, "access denied (403 AccessDenied): tea; check"),
        (412, "PreconditionFailed", ChangedError, "was changed by another process"),
        (404, "NoSuchKey", FileNotFoundError, "there is no such object (404 NoSuchKey)"),
        (404, "NoSuchBucket", NoBucketError, "there is no bucket 'music' at "),
        (418, "418", PermissionError, "rejected the request (418): tea"),
        (200, "Odd", OSError, "tea (200 Odd)"),
    ],
)
def test_client_errors_are_explained_in_one_line(status: int, code: str, kind: type[OSError], expected: str) -> None:
    answer = {"Error": {"Code": code, "Message": "tea"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    with pytest.raises(OSError, match=re.escape(expected)) as caught, translate_s3_errors("music"):
        raise ClientError(answer, "GetObject")  # type: ignore[arg-type]
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


def test_missing_boto3_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("boto3", "botocore", "botocore.config", "botocore.session"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"'crossfade\[aws\]'"):
        Folder("s3://music/x").names()


@pytest.mark.slow
def test_failed_upload_leaves_no_object_and_later_requests_are_retried(
    server: ObjectStore, folder: Folder, proxy: Proxy
) -> None:
    with suppress(EOFError), folder.open_output("part.bin") as file:
        file.write(bytes(PART_BYTES + 1))
        raise EOFError
    proxy.inject("reset", 2)
    assert "part.bin" not in folder.names()
    assert proxy.left == 0
