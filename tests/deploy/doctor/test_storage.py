"""S3: what the credentials may do, and whether it answers."""

import json
from pathlib import Path

import boto3
import pytest
from aws_server import running_aws
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from object_store import BUCKET, READER, ObjectStore

from crossfade.base.io.folder import Folder
from crossfade.deploy.doctor.examine import check_storage

pytestmark = pytest.mark.slow


def test_rights_are_tried_and_no_object_stays(s3: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, checkpoints = s3.upload(write_planted(tmp_path / "data"), "planted"), s3.uri("checkpoints")
    job = write_job(tmp_path / "job.yaml", data, checkpoint={"path": checkpoints})

    def examined() -> tuple[int, list[str]]:
        result = crossfade_here("doctor", job, "--json", cwd=tmp_path)
        assert result.stderr == ""
        found = [finding for finding in json.loads(result.stdout) if finding["check"] == "storage"]
        return result.returncode, [f"{finding['state']} {finding['message']}" for finding in found]

    listed = f"ok {data}: list succeeds"
    assert examined() == (0, [listed, f"ok {checkpoints}: list, write, read, and delete succeed"])
    assert Folder(checkpoints).names() == []
    for name, value in READER.items():
        monkeypatch.setenv(name, value)
    code, (first, second) = examined()
    assert (code, first) == (1, listed)
    assert second.startswith(f"fix {checkpoints}: write fails: access denied (403")
    monkeypatch.setenv("CROSSFADE_S3_TIMEOUT_SECONDS", "1")
    with s3.paused():
        code, found = examined()
    assert (code, ["cannot be reached" in each for each in found]) == (1, [True, True])


def test_missing_bucket_is_to_be_fixed_and_denied_deletion_is_a_warning(
    s3: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    [found] = check_storage("data", "s3://no-such-bucket/plays")
    assert (found.state, "there is no bucket 'no-such-bucket'" in found.message) == ("fix", True)
    statement = {"Effect": "Deny", "Principal": "*", "Action": "s3:DeleteObject"}
    statement["Resource"] = f"arn:aws:s3:::{BUCKET}/kept/*"
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    boto3.client("s3").put_bucket_policy(Bucket=BUCKET, Policy=policy)
    [found] = check_storage("data", s3.uri("kept"))
    [probe] = Folder(s3.uri("kept")).names()
    assert (found.state, found.message.endswith(f"; delete {s3.uri('kept')}/{probe}")) == ("warning", True)
    with running_aws() as aws:  # whose folders are names of objects, as on AWS
        for name, value in (aws.variables | {"AWS_ENDPOINT_URL": aws.client("s3").meta.endpoint_url}).items():
            monkeypatch.setenv(name, value)
        aws.client("s3").create_bucket(Bucket="music")
        assert [each.state for each in check_storage("data", "s3://music/new/plays")] == ["ok"]
        assert aws.client("s3").list_objects_v2(Bucket="music")["KeyCount"] == 0
