"""Datasets and jobs of the capacity tests."""

from pathlib import Path

import pytest
from cluster_data import write_job, write_planted

from crossfade.trainer.prepare.options import SyntheticSpec
from crossfade.trainer.prepare.synthetic import write_synthetic


@pytest.fixture(scope="module")
def zipf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a dataset with popular and rare rows."""
    folder = tmp_path_factory.mktemp("zipf") / "data"
    write_synthetic(folder, SyntheticSpec(queries=4_000, items=3_000, interactions=60_000), seed=3)
    return folder


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """Write a job, ``job.yaml``, on a small dataset."""
    return write_job(tmp_path / "job.yaml", write_planted(tmp_path / "data"))
