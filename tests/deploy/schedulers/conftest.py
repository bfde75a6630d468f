"""The dataset of the tests of schedulers."""

from pathlib import Path

import pytest
from cluster_data import write_planted


@pytest.fixture(scope="session")
def planted_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_planted(tmp_path_factory.mktemp("planted") / "data")
