"""The export command: embeddings of trained runs, its memory, and its interruption."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from builders import write_data_set
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from exporting import OPTIMIZER, training_on
from running_command import started, succeeded
from saved_shards import random_table, save_shards, split_table
from waiting import wait_until

from crossfade.kvstore.store import TableSpec
from crossfade.trainer.embeddings import files as embeddings


@pytest.mark.slow
def test_exported_embeddings_are_found_by_similar_and_evaluate(tmp_path: Path) -> None:
    data = write_planted(tmp_path / "data", named=True)
    write_job(tmp_path / "job.yaml", data, train={"save_embeddings": "none"})
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", "run", cwd=tmp_path))
    assert not (tmp_path / "run" / "embeddings").exists()
    succeeded(crossfade_here("export", "run", "--out", "run/embeddings", cwd=tmp_path))
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
