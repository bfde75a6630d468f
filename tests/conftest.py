"""Order of the tests, and a Docker engine for those that need one."""

from collections.abc import Iterator

import pytest
from docker_engine import Engine, missing, running_engine
from late_tests import run_order


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the fast tests first; among those of one place the order stays as collected."""
    items.sort(key=run_order)


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Start a Docker engine with the images of docker-compose.yml."""
    if lack := missing():
        pytest.fail(lack, pytrace=False)
    with running_engine(tmp_path_factory.mktemp("docker")) as engine:
        engine.build_images()
        yield engine
