"""One process that trains for the studies of these tests."""

from collections.abc import Iterator

import pytest
from refreshed_service import one_process, training_there


@pytest.fixture(scope="package", autouse=True)
def _trained_there() -> Iterator[None]:
    with one_process() as process, training_there(process):
        yield
