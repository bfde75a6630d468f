"""A snapshot has the state at its start, whatever changes while it is written."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from saved_shards import random_table, split_table, wait_for_snapshot
from snapshots import DIM, LARGE, change_rows, running_snapshot, shard_of_ones, weights_file
from touched_pages import ACTIVE_ROWS
from waiting import wait_until

from crossfade.kvstore.checkpoint.snapshot import compile_kernels
from crossfade.kvstore.optimizer_spec import OptimizerKind, OptimizerSpec
from crossfade.kvstore.store import TableSpec

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _compiled_kernels() -> None:
    compile_kernels()


def test_snapshot_has_the_state_at_its_start_although_all_rows_change(tmp_path: Path) -> None:
    shard = shard_of_ones(LARGE)
    with running_snapshot(shard, folder=tmp_path, pieces=0) as (snapshot, gate):
        change_rows(snapshot, shard)
        assert snapshot.poll() is None
        gate.open()
        result = wait_for_snapshot(snapshot)
        assert snapshot.poll() is result
    assert (np.load(weights_file(tmp_path)) == 1.0).all()
    assert (shard.arrays["weights"] == 2.0).all()
    assert result.bytes == sum(path.stat().st_size for path in tmp_path.rglob("*.*"))


@pytest.mark.parametrize("kind", ["sgd", "adagrad", "rowwise_adagrad", "adam"])
def test_rows_that_change_repeatedly_are_written_as_of_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: OptimizerKind
) -> None:
    monkeypatch.setattr("crossfade.kvstore.checkpoint.snapshot._PIECE_BYTES", 1 << 16)
    spec, generator = OptimizerSpec(kind), np.random.default_rng(1)
    tables = [TableSpec("customer", 100_003, 12, 0.1), TableSpec("track", 5_001, 12, 0.1), TableSpec("few", 2, 3, 0.1)]
    arrays = {table.name: random_table(table, spec) for table in tables}
    shards = [shard for table in tables for shard in split_table(table, arrays[table.name], 3)]
    with running_snapshot(*shards, folder=tmp_path, pieces=5) as (snapshot, gate):
        changes = 0
        while snapshot.poll() is None:
            for shard in shards:
                count = len(shard.arrays["weights"])
                change_rows(snapshot, shard, np.unique(generator.integers(0, count, max(1, count // 20))))
            changes += 1
            if changes == 2:
                gate.open()
        assert changes >= 2
    for table in tables:
        for name, values in arrays[table.name].items():
            for number in range(3):
                written = np.load(tmp_path / table.name / f"{name}.{number:05d}-of-00003.npy")
                np.testing.assert_array_equal(written, values[number::3])


def test_updates_wait_for_free_slots_and_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crossfade.kvstore.checkpoint.snapshot.COPY_FRACTION", 64)
    monkeypatch.setattr("crossfade.kvstore.checkpoint.snapshot.MIN_COPY_BYTES", 0)
    shard = shard_of_ones(LARGE)
    with running_snapshot(shard, folder=tmp_path) as (snapshot, _):
        pause_at_start = snapshot.pause_seconds
        change_rows(snapshot, shard)
        assert snapshot.pause_seconds > pause_at_start
        wait_for_snapshot(snapshot)
    assert (np.load(weights_file(tmp_path)) == 1.0).all()
    assert (shard.arrays["weights"] == 2.0).all()


def test_server_saves_the_state_at_the_command_and_touches_active_rows_only(tmp_path: Path) -> None:
    script = Path(__file__).resolve().parents[2] / "tests" / "support" / "drive_row_server.py"
    command = [sys.executable, script, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "expected.npz") as expected:
        assert len(expected.files) == 4
        for name in expected.files:
            path = tmp_path / "saved" / "track" / f"{name}.00000-of-00001.npy"
            np.testing.assert_array_equal(np.load(path), expected[name], err_msg=name)
    counted = json.loads(done.stdout)
    assert len(counted) == 4
    assert all(0 < pages <= 2 * ACTIVE_ROWS for pages in counted.values()), counted


def test_snapshot_takes_memory_for_changed_rows_that_were_not_written_only(tmp_path: Path) -> None:
    shard, piece = shard_of_ones(LARGE), (4 << 20) // (4 * DIM)
    before = used_bytes()
    with running_snapshot(shard, folder=tmp_path, pieces=1) as (snapshot, _):
        wait_until(lambda: snapshot._shards["track", 0].written >= piece, "the first piece to be written")
        assert used_bytes() - before < shard.arrays["weights"].nbytes // 4
        before = used_bytes()
        snapshot.before_update("track", 0, np.arange(piece))
        assert used_bytes() - before < piece * 4 * DIM // 2
        snapshot.before_update("track", 0, np.arange(LARGE // 2, LARGE))
        assert used_bytes() - before > shard.arrays["weights"].nbytes // 4
        assert snapshot.poll() is None


def used_bytes() -> int:
    """Return the memory that only this process has."""
    return int(psutil.Process().memory_full_info().uss)
