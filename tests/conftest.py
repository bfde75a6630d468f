"""Order of the tests, what they skip, and what tests need that is started once: Docker, S3, a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import psutil
import pytest
from docker_engine import Engine, missing, running_engine
from late_tests import run_order
from needs import GPU
from skip_summary import pytest_sessionfinish  # noqa: F401  # a hook

if TYPE_CHECKING:
    from object_store import ObjectStore


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the fast tests first; among those of one place the order stays as collected."""
    items.sort(key=run_order)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that needs a GPU where there is none. Only such tests look for one."""
    if item.get_closest_marker("gpu"):
        from gpu_machine import usable_gpus

        usable, reason = usable_gpus()
        if not usable:
            pytest.skip(f"{GPU} ({reason})")


@pytest.fixture
def gpu_device() -> str:
    """Return the first GPU that PyTorch can use, as ``train.device`` names it. For tests with the marker gpu."""
    from gpu_machine import usable_gpus

    return usable_gpus()[0][0]


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return a function that shifts when this machine started, as the kernel reports it once its clock was set."""
    started = psutil.boot_time()

    def shift(seconds: float) -> None:
        monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: started + seconds)

    return shift


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """Start a server of S3."""
    from object_store import running_object_store

    with running_object_store(tmp_path_factory.mktemp("object-store")) as server:
        yield server


@pytest.fixture
def s3(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """Point this process and its children at the server of S3, and return it."""
    for name, value in object_store.variables.items():
        monkeypatch.setenv(name, value)
    return object_store


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Start a Docker engine with the images of docker-compose.yml."""
    if lack := missing():
        pytest.fail(lack, pytrace=False)
    with running_engine(tmp_path_factory.mktemp("docker")) as engine:
        engine.build_images()
        yield engine
