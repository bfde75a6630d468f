"""moto's AWS, one server for all tests of a process."""

from collections.abc import Iterator

import pytest
from aws_server import AwsServer, running_aws


@pytest.fixture(scope="session")
def server() -> Iterator[AwsServer]:
    with running_aws() as server:
        yield server
