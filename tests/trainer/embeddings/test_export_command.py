"""The export command: embeddings of trained runs, its memory, and its interruption."""

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from builders import write_data_set
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from exporting import OPTIMIZER, training_on, vectors
from running_command import crossfade, started, succeeded
from saved_shards import random_table, save_shards, split_table
from waiting import wait_until

from crossfade.base.arrays import FloatArray
from crossfade.kvstore.checkpoint.lifecycle import latest_checkpoint
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.embeddings import files as embeddings

ENTITIES = ["customer", "track"]


def weights_of_newest(run: Path, entity: str) -> FloatArray:
    """Read the rows of ``entity`` from the newest checkpoint of a run with numpy only."""
    checkpoint, _ = latest_checkpoint(str(run / "checkpoints"))
    assert checkpoint is not None
    weights_ND = np.empty((checkpoint.rows(entity), 8), np.float32)
    files = sorted(Path(checkpoint.uri, entity).glob("weights.*.npy"))
    for number, path in enumerate(files):
        weights_ND[number :: len(files)] = np.load(path)
    return weights_ND


def train(workspace: Path, run: str, *options: object, **sections: Any) -> Path:
    """Train on planted data, and return the run folder."""
    if not (workspace / "data").exists():
        write_planted(workspace / "data", named=True, held_out=False)
    write_job(workspace / f"{run}.yaml", workspace / "data", **sections)
    run_command = crossfade if "--servers" in options else crossfade_here
    succeeded(run_command("train", f"{run}.yaml", "--run-dir", run, *options, cwd=workspace))
    return workspace / run


@pytest.mark.slow
def test_exported_embeddings_are_found_by_similar_and_evaluate(tmp_path: Path) -> None:
    write_planted(tmp_path / "data", named=True)
    run = train(tmp_path, "run", train={"save_embeddings": "none"})
    assert not (run / "embeddings").exists()
    succeeded(crossfade_here("export", "run", cwd=tmp_path))
    for entity in ENTITIES:
        np.testing.assert_array_equal(vectors(run / "embeddings", entity), weights_of_newest(run, entity))
    assert "Genre" in succeeded(crossfade_here("similar", "run", "Genre 0 Song 0", cwd=tmp_path)).stdout
    assert re.search(r"recall +0\.\d+", succeeded(crossfade_here("evaluate", "run", cwd=tmp_path)).stdout)


LARGE = 250_000
PEAK = """
import sys
from pathlib import Path
from crossfade.cli.main import main
code = main(sys.argv[1:])
print(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")))
sys.exit(code)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a checkpoint with a table of 64 MB, and one of a single row group."""
    folder = tmp_path_factory.mktemp("large")
    write_data_set(folder / "data", {}, queries=LARGE, items=embeddings.GROUP_ROWS)
    tables = [TableSpec("customer", LARGE, 64, 0.1), TableSpec("track", embeddings.GROUP_ROWS, 64, 0.1)]
    parts = [part for table in tables for part in split_table(table, random_table(table, OPTIMIZER), num_shards=2)]
    save_shards(str(folder / "checkpoints"), 1, tables, OPTIMIZER, [parts], training_on(folder / "data", 64))
    return folder


def export_peak_bytes(large: Path, to: str, entity: str, out: Path) -> int:
    """Return the peak memory of an export in bytes."""
    command = ["export", str(large / "checkpoints"), "--to", to, "--out", str(out), "--entity", entity]
    result = subprocess.run(
        [sys.executable, "-c", PEAK, *command], capture_output=True, text=True, timeout=240, check=True
    )
    return int(result.stdout.split()[-1]) * 1024


@pytest.mark.slow
def test_export_memory_does_not_grow_with_the_table(large: Path, tmp_path: Path) -> None:
    small_peak = export_peak_bytes(large, "numpy", "track", tmp_path / "track")
    large_peak = export_peak_bytes(large, "numpy", "customer", tmp_path / "customer")
    assert pq.read_metadata(tmp_path / "customer" / "customer" / "rows.parquet").num_rows == LARGE
    assert large_peak - small_peak < LARGE * 64 * 4 * 3 / 4


@pytest.mark.slow
def test_interrupted_export_leaves_nothing(large: Path, tmp_path: Path) -> None:
    with started("export", large / "checkpoints", "--out", "out", cwd=tmp_path) as command:
        wait_until(lambda: list(tmp_path.glob(".out.partial-*/customer/*")), "a file of embeddings")
        command.process.send_signal(signal.SIGTERM)
        result = command.finish()
    assert result.returncode == 128 + signal.SIGTERM, result.stderr
    assert list(tmp_path.iterdir()) == []
