"""An account and a job to submit to SageMaker."""

from pathlib import Path

import pytest
from aws_server import AwsServer
from cluster_data import write_job
from submitting_sagemaker import account_with_images


@pytest.fixture
def aws(server: AwsServer) -> AwsServer:
    return account_with_images(server)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return write_job(tmp_path / "plays.yaml", "s3://music/plays", name="plays")
