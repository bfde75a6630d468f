"""An account and a job to submit to EC2."""

from pathlib import Path

import pytest
from aws_server import AwsServer
from cluster_data import write_job
from submitting_ec2 import BUCKET, empty_account


@pytest.fixture
def aws(server: AwsServer, monkeypatch: pytest.MonkeyPatch) -> AwsServer:
    return empty_account(server, monkeypatch)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return write_job(tmp_path / "job.yaml", f"s3://{BUCKET}/data")
