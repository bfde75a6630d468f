"""moto's AWS, one server for all tests of a process."""

from collections.abc import Iterator
from functools import cache
from unittest import mock

import pytest
from aws_server import AwsServer, running_aws
from botocore.loaders import create_loader


@pytest.fixture(scope="session")
def server() -> Iterator[AwsServer]:
    # botocore's service models are loaded once for all commands of this process: it takes a second.
    with running_aws() as server, mock.patch("botocore.session.create_loader", cache(create_loader)):
        yield server
