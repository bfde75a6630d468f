"""S3: what the credentials may do, whether it answers, and its clock."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest
from aws_server import running_aws
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from object_store import BUCKET, FOREIGN_CREDENTIALS, READER, ObjectStore

from crossfade.base.io.folder import Folder
from crossfade.deploy.doctor.findings import Check, Finding, run_check
from crossfade.deploy.doctor.run_checks import check_leftovers
from crossfade.deploy.doctor.storage_checks import (
    check_checkpoint_storage,
    check_clock,
    check_dataset_storage,
    short_requests,
)
from crossfade.trainer.config.loading import load_job
from crossfade.trainer.runs.run_folder import RunFolder


def only(check: Check, seconds: float = 60) -> Finding:
    [finding] = run_check("storage", check, seconds)
    return finding


@pytest.mark.slow
def test_rights_are_tried_and_no_object_stays(s3: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = s3.uri("plays")
    Folder(uri).write("manifest.json", b"{}")
    assert only(lambda: check_checkpoint_storage(uri)).message == f"{uri}: list, read, write, and delete succeed"
    assert only(lambda: check_dataset_storage(uri)).message == f"{uri}: list, and conditional write, succeed"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER["AWS_ACCESS_KEY_ID"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READER["AWS_SECRET_ACCESS_KEY"])
    found = only(lambda: check_checkpoint_storage(uri))
    assert (found.state, found.message.startswith(f"{uri}: writing fails: access denied (403")) == ("fix", True), found
    found = only(lambda: check_dataset_storage(uri))
    assert (found.state, found.message.endswith("which only prepare and forget need, is denied")) == ("ok", True)
    assert Folder(uri).names() == ["manifest.json"]
    for name, value in FOREIGN_CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    found = only(lambda: check_dataset_storage(uri))
    assert (found.state, found.message.startswith(f"{uri}: listing fails: access denied (403")) == ("fix", True)


@pytest.mark.slow
def test_server_that_does_not_answer_is_given_up(s3: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSFADE_S3_TIMEOUT_SECONDS", "1")
    with short_requests(), s3.paused():
        found = only(lambda: check_checkpoint_storage(s3.uri("plays")))
        late = only(lambda: check_dataset_storage(s3.uri("plays")), 0.1)
    assert (found.state, "cannot be reached" in found.message) == ("fix", True), found
    assert (late.state, late.message.partition(";")[0]) == ("fix", "did not end within 0.1 s")
    found = only(lambda: check_checkpoint_storage("s3://no-such-bucket/plays"))
    assert (found.state, "there is no bucket 'no-such-bucket'" in found.message) == ("fix", True)
    assert only(check_clock).state == "ok"


@pytest.mark.slow
def test_denied_deletion_is_a_warning_and_a_new_prefix_stays_empty(
    s3: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    statement = {"Effect": "Deny", "Principal": "*", "Action": "s3:DeleteObject"}
    statement["Resource"] = f"arn:aws:s3:::{BUCKET}/kept/*"
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    boto3.client("s3").put_bucket_policy(Bucket=BUCKET, Policy=policy)
    found = only(lambda: check_checkpoint_storage(s3.uri("kept")))
    [probe] = Folder(s3.uri("kept")).names()
    assert (found.state, f"delete {s3.uri('kept')}/{probe}" in found.message) == ("warning", True)
    with running_aws() as aws:  # whose folders are names of objects, as on AWS
        for name, value in (aws.variables | {"AWS_ENDPOINT_URL": aws.client("s3").meta.endpoint_url}).items():
            monkeypatch.setenv(name, value)
        aws.client("s3").create_bucket(Bucket="music")
        for check in (check_checkpoint_storage, check_dataset_storage):
            assert only(partial(check, "s3://music/new/plays")).state == "ok"
            assert aws.client("s3").list_objects_v2(Bucket="music")["KeyCount"] == 0


class OtherServer(ThreadingHTTPServer):
    """A server of S3 that ignores conditions of requests, and whose clock is wrong by ``skew`` seconds."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, skew: float = 0) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.skew = skew
        self.objects: dict[str, bytes] = {}


class Handler(BaseHTTPRequestHandler):
    server: OtherServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if "list-type=2" in self.path:
            self._answer(200, b"<ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>")
        else:
            data = self.server.objects.get(self.path)
            self._answer(404 if data is None else 200, data or b"<Error><Code>NoSuchKey</Code></Error>")

    def do_HEAD(self) -> None:
        self._answer(200)

    def do_PUT(self) -> None:
        self.server.objects[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200)

    def do_DELETE(self) -> None:
        del self.server.objects[self.path]
        self._answer(204)

    def _answer(self, status: int, data: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", self.date_time_string())
        self.end_headers()
        self.wfile.write(data)

    def date_time_string(self, timestamp: float | None = None) -> str:
        return formatdate((timestamp or time.time()) + self.server.skew, usegmt=True)

    def log_message(self, format: str, *arguments: object) -> None: ...


@contextmanager
def serving(http: OtherServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run a server, and have clients use it."""
    variables = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_REGION": "us-east-1"}
    for name, value in (variables | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{http.server_port}"}).items():
        monkeypatch.setenv(name, value)
    with http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            http.shutdown()
            thread.join()


@pytest.mark.slow
def test_server_without_conditional_writes_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    http = OtherServer()
    with serving(http, monkeypatch), short_requests():
        found = only(lambda: check_dataset_storage("s3://music/plays"))
    assert (found.state, "the server ignores conditions of requests" in found.message) == ("warning", True), found
    assert http.objects == {}


@pytest.mark.parametrize(("skew", "state"), [(0, "ok"), (-60, "warning"), (86400, "fix")])
def test_difference_of_clocks_is_reported(skew: float, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(OtherServer(skew), monkeypatch):
        found = only(check_clock)
    assert found.state == state
    if skew:
        assert (" ahead of " if skew < 0 else " behind ") in found.message


def test_clock_of_a_server_that_is_gone_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert only(check_clock).state == "warning"


@pytest.mark.slow
def test_run_whose_credentials_may_only_read_is_to_be_fixed(
    s3: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = s3.upload(write_planted(tmp_path / "data"), "planted")
    job = write_job(tmp_path / "job.yaml", data, checkpoint={"path": s3.uri("checkpoints")})
    for name, value in READER.items():
        monkeypatch.setenv(name, value)
    result = crossfade_here("doctor", job, "--json", cwd=tmp_path)
    found = json.loads(result.stdout)
    assert (result.returncode, result.stderr) == (1, "")
    assert [finding["check"] for finding in found if finding["state"] == "fix"] == ["storage"]
    assert {"clock", "data", "memory", "leftovers"} <= {finding["check"] for finding in found}
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    left = only(partial(check_leftovers, load_job(job), RunFolder(tmp_path / "run")))
    assert (left.state, left.message.startswith("unfinished uploads were not listed: no AWS region")) == (
        "warning",
        True,
    )
