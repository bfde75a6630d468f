"""One process that trains, and a service with two versions, for all tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from refreshed_service import ServiceFolder, one_process, training_there
from running_command import succeeded

from crossfade.deploy.launch.trial_run import TrialProcess


@pytest.fixture(scope="package")
def process() -> Iterator[TrialProcess]:
    """Start the process that trains the services of these tests."""
    with one_process() as process:
        yield process


@pytest.fixture(autouse=True)
def _trained_there(process: TrialProcess) -> Iterator[None]:
    with training_there(process):
        yield


@pytest.fixture(scope="package")
def history(process: TrialProcess, tmp_path_factory: pytest.TempPathFactory) -> ServiceFolder:
    """Make a service with versions of the days 1 and 2; tests change copies."""
    service = ServiceFolder(tmp_path_factory.mktemp("history"))
    with training_there(process):
        for day in (1, 2):
            service.add(day)
            succeeded(service.command("refresh"))
    return service


@pytest.fixture(scope="package")
def undisturbed(
    process: TrialProcess, history: ServiceFolder, tmp_path_factory: pytest.TempPathFactory
) -> ServiceFolder:
    """Make the same with a version of day 3."""
    service = history.copied(tmp_path_factory.mktemp("undisturbed"))
    service.add(3)
    with training_there(process):
        succeeded(service.command("refresh"))
    return service


@pytest.fixture
def service(history: ServiceFolder, tmp_path: Path) -> ServiceFolder:
    """Return a copy of the service with two versions."""
    return history.copied(tmp_path)
