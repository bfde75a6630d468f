"""One training with context, histories, and features of items together: it resumes, exports, and runs on servers."""

from pathlib import Path

import numpy as np
import pytest
from cluster_data import write_job
from command_here import crossfade_here
from finished_runs import quality, same_bits, vectors
from preparing import write_parquet
from running_command import crossfade, succeeded

from crossfade.deploy.capacity.plan import plan_capacity
from crossfade.deploy.capacity.plan_inputs import read_inputs
from crossfade.trainer.config.loading import load_job

pytestmark = pytest.mark.slow

CUSTOMERS, TRACKS, GENRES, PLAYS = 240, 99, 3, 24
MODEL = {
    "dim": 16,
    "query_features": ["customer", "device", "history"],
    "history": {"length": 4, "half_life": 2},
    "item_features": ["track", "genre"],
}
CHECKPOINT = {"interval_steps": 20, "interval_seconds": None}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare plays of the genre of a device, which one in twenty lacks, and a job that uses all that is known."""
    folder, random = tmp_path_factory.mktemp("towers"), np.random.default_rng(3)
    device_N = random.integers(GENRES, size=CUSTOMERS * PLAYS)
    write_parquet(
        folder / "plays.parquet",
        customer=[f"c{row}" for row in np.repeat(np.arange(CUSTOMERS), PLAYS)],
        track=random.integers(TRACKS // GENRES, size=len(device_N)) * GENRES + device_N,
        at=np.tile(np.arange(PLAYS), CUSTOMERS) * 100 + random.integers(100, size=len(device_N)),
        device=[None if random.random() < 0.05 else f"d{device}" for device in device_N],
    )
    write_parquet(folder / "genres.parquet", id=np.arange(TRACKS), genre=np.arange(TRACKS) % GENRES)
    columns = ("--item", "track", "--timestamp", "at", "--context", "device=device")
    features = ("--features", "track=genres.parquet:id:genre")
    hold_outs = ("--hold-out-test", "after:2100", "--hold-out-valid", "none", "--out", "data")
    succeeded(crossfade_here("prepare", "--events", "plays.parquet", *columns, *features, *hold_outs, cwd=folder))
    train = {"batch_size": 256, "epochs": 6}
    write_job(folder / "job.yaml", folder / "data", model=MODEL, train=train, checkpoint=CHECKPOINT)
    return folder


def train(workspace: Path, run: str, *options: object) -> Path:
    words = ("train", "job.yaml", "--run-dir", run, "--set", "metrics.port=null", *options)
    succeeded(crossfade_here(*words, cwd=workspace))
    return workspace / run


@pytest.fixture(scope="module")
def trained(workspace: Path) -> Path:
    return train(workspace, "trained")


def test_resumed_run_gives_the_same_bits(workspace: Path, trained: Path) -> None:
    train(workspace, "resumed", "--set", "train.max_steps=33")
    assert same_bits(train(workspace, "resumed", "--resume") / "embeddings", trained / "embeddings")


def test_export_has_the_vectors_of_all_tables(workspace: Path, trained: Path) -> None:
    succeeded(crossfade_here("export", trained, "--out", workspace / "exported"))
    assert same_bits(workspace / "exported", trained / "embeddings")


def test_plan_counts_features_and_histories(workspace: Path) -> None:
    [process] = plan_capacity(read_inputs(load_job(workspace / "job.yaml"))).processes
    held = {part.what: part.bytes for part in process.parts}
    assert held["genre of each track"] == 4 * (TRACKS + 1) + 4 * TRACKS
    assert sum(size for what, size in held.items() if "latest history" in what) > 0


@pytest.mark.cluster
def test_two_workers_on_servers_equal_one_process(workspace: Path, trained: Path) -> None:
    words = ("train", "job.yaml", "--run-dir", "servers", "--servers", 2, "--workers", 2)
    succeeded(crossfade(*words, cwd=workspace))
    found, expected = vectors(workspace / "servers" / "embeddings"), vectors(trained / "embeddings")
    assert found.keys() == expected.keys()
    for name, vectors_ND in expected.items():
        # AdaGrad's first steps divide a gradient by its own size, which amplifies rounding in gradients near 0.
        np.testing.assert_allclose(found[name], vectors_ND, atol=1e-3, err_msg=name)
    assert quality(workspace / "servers") == pytest.approx(quality(trained), abs=0.02)
