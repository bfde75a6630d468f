"""Order of the tests, what they skip, where their files are, and what is started once: Docker, S3, a GPU."""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from docker_engine import Engine, missing, running_engine
from late_tests import mark_long, run_order
from needs import GPU
from skip_summary import pytest_sessionfinish  # noqa: F401  # a hook

import crossfade  # noqa: F401  # chooses matrix kernels, which it can do before numpy is imported

if TYPE_CHECKING:
    from object_store import ObjectStore


_MEMORY, _ROOT_VARIABLE = Path("/dev/shm"), "PYTEST_DEBUG_TEMPROOT"
_NEEDED_BYTES = 8 << 30
"""Free memory that is enough for the files of all tests and their processes."""


def pytest_configure(config: pytest.Config) -> None:
    """Find commands as in an activated environment, and keep files in memory where it has room.

    Each training flushes files to a disk dozens of times, and waits. An engine of Docker would keep its images there.
    """
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    if "not docker" not in config.option.markexpr or not _MEMORY.is_dir():
        return
    if min(shutil.disk_usage(_MEMORY).free, psutil.virtual_memory().available) > _NEEDED_BYTES:
        os.environ.setdefault(_ROOT_VARIABLE, str(_MEMORY))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Free the memory, unless a test failed whose files one may look at; the third run from then frees it."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or os.environ.get(_ROOT_VARIABLE) != str(_MEMORY):
        return  # of a process of pytest-xdist, whose folder is in that of the first
    if not reporter.stats.get("failed") and not reporter.stats.get("error"):
        shutil.rmtree(config._tmp_path_factory.getbasetemp(), ignore_errors=True)  # type: ignore[attr-defined]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that shows whether a test depends on the files before its own."""
    parser.addoption("--shuffle-files", type=int, metavar="SEED", help="run the test files in a random order")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the fast tests first, then the longest files, or shuffle the files; the order within a file stays.

    This comes first, so that ``-m`` sees which tests are long.
    """
    mark_long(items)
    seed = config.getoption("--shuffle-files")
    if seed is None:
        items.sort(key=run_order)
    else:
        places = {path: place for place, path in enumerate(sorted({item.path for item in items}))}
        random.Random(seed).shuffle(shuffled := list(range(len(places))))
        items.sort(key=lambda item: shuffled[places[item.path]])


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
