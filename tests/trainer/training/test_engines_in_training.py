"""Runs by PyTorch, with tables on the host or on a device, equal those of the CPU engine, and resume."""

from collections.abc import Mapping
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster_data import train_rows, write_job, write_planted
from command_here import crossfade_here
from needs import TORCH
from run_results import ENTITIES, assert_same_bits, checkpoint_arrays, report_of, vectors
from running_command import succeeded

pytestmark = pytest.mark.slow

BATCH = 256
EPOCH_STEPS = -(-train_rows() // BATCH)
ON_HOST = ("train.engine=torch", "train.tables=host")
ON_DEVICE = ("train.engine=torch", "train.device=cpu", "train.tables=device")
RUNS = {"tables on the host": ON_HOST, "tables on the device": ON_DEVICE}
"""Keys of a run."""
JOBS: dict[str, Mapping[str, Any]] = {
    "softmax over all items": {"loss": "softmax", "negatives": {"kind": "all"}},
    "softmax over in-batch negatives with logQ correction": {
        "loss": "softmax",
        "negatives": {"kind": "in_batch", "logq_correction": True},
    },
    "bpr with negatives of each example": {"loss": "bpr", "negatives": {"kind": "per_example", "count": 3}},
}


def each_run(first: int) -> pytest.MarkDecorator:
    """Return a run for each job, another one for each ``first``: the contract suites of engines have the matrix."""
    pairs = list(zip(JOBS, islice(cycle(RUNS.items()), first, None), strict=False))
    return pytest.mark.parametrize(
        ("name", "settings"),
        [(name, settings) for name, (_, settings) in pairs],
        ids=[f"{name} by {run}" for name, (run, _) in pairs],
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch", reason=TORCH)
    return write_planted(tmp_path_factory.mktemp("engines") / "data")


def train(folder: Path, run: str, *settings: str, resume: bool = False) -> dict[str, Any]:
    """Train the job of ``folder`` into ``run``, and return the report."""
    words = [word for setting in ("metrics.port=null", *settings) for word in ("--set", setting)]
    options = ["--resume"] if resume else []
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", run, *words, *options, cwd=folder))
    return report_of(folder / run)


@each_run(0)
def test_pytorch_reaches_the_rows_and_metrics_of_the_cpu_engine(
    data: Path, tmp_path: Path, name: str, settings: tuple[str, ...]
) -> None:
    write_job(tmp_path / "job.yaml", data, **JOBS[name], train={"epochs": 1, "batch_size": BATCH})
    expected, found = train(tmp_path, "cpu", "train.engine=cpu"), train(tmp_path, "torch", *settings)
    assert (expected["engine"], expected["devices"], expected["store"]) == ("cpu", ["cpu"], "LocalStore")
    store = "LocalStore" if settings == ON_HOST else "DeviceStore"
    assert (found["engine"], found["devices"], found["store"]) == ("torch", ["cpu"], store)
    for entity in ENTITIES:
        rows_RD = vectors(tmp_path / "cpu", entity)
        assert np.abs(rows_RD).max() > 0.1
        np.testing.assert_allclose(vectors(tmp_path / "torch", entity), rows_RD, atol=1e-4)
    for split, metrics in expected["metrics"].items():
        # A row that differs in the last bits may change places with its neighbour in a ranking.
        assert found["metrics"][split] == pytest.approx(metrics, abs=2e-3)


@each_run(1)
def test_run_by_pytorch_resumes_to_the_bits_of_an_uninterrupted_one(
    data: Path, tmp_path: Path, name: str, settings: tuple[str, ...]
) -> None:
    write_job(tmp_path / "job.yaml", data, **JOBS[name], train={"epochs": 2, "batch_size": BATCH})
    complete = train(tmp_path, "complete", *settings)
    train(tmp_path, "stopped", *settings, f"train.max_steps={EPOCH_STEPS + 3}")
    resumed = train(tmp_path, "stopped", *settings, resume=True)
    assert resumed["steps"] == 2 * EPOCH_STEPS
    assert resumed["metrics"] == complete["metrics"]
    assert_same_bits(tmp_path / "stopped", tmp_path / "complete")
    for entity in ENTITIES:
        found, expected = (checkpoint_arrays(tmp_path / run, entity) for run in ("stopped", "complete"))
        for array, values in expected.items():
            assert found[array].tobytes() == values.tobytes(), (entity, array)
