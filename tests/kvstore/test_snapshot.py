"""A snapshot has the state at its start, whatever changes while it is written."""

import os
import select
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pytest
from saved_shards import random_table, split_table, wait_for_save, wait_for_snapshot
from snapshots import DIM, LARGE, change_rows, running_snapshot, shard_of_ones, weights_file
from waiting import wait_until

from crossfade.kvstore.checkpoint.snapshot import compile_kernels
from crossfade.kvstore.local import LocalStore
from crossfade.kvstore.optimizer_spec import OptimizerKind, OptimizerSpec
from crossfade.kvstore.store import RowGradient, TableSpec

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _compiled_kernels() -> None:
    compile_kernels()


def test_snapshot_has_the_state_at_its_start_although_all_rows_change(tmp_path: Path) -> None:
    shard = shard_of_ones(LARGE)
    with running_snapshot(shard, folder=tmp_path) as (snapshot, writer):
        writer.suspend()
        change_rows(snapshot, shard)
        assert snapshot.poll() is None
        writer.resume()
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
    with running_snapshot(*shards, folder=tmp_path) as (snapshot, _):
        changes = 0
        while snapshot.poll() is None:
            for shard in shards:
                count = len(shard.arrays["weights"])
                change_rows(snapshot, shard, np.unique(generator.integers(0, count, max(1, count // 20))))
            changes += 1
        assert changes > 1
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


def test_updates_after_a_snapshot_has_ended_are_ignored(tmp_path: Path) -> None:
    shard = shard_of_ones(100)
    with running_snapshot(shard, folder=tmp_path) as (snapshot, _):
        wait_for_snapshot(snapshot)
        change_rows(snapshot, shard)
        change_rows(snapshot, shard_of_ones(10, "another table"))
    assert (np.load(weights_file(tmp_path)) == 1.0).all()


@pytest.mark.slow
def test_training_continues_while_a_local_store_saves(tmp_path: Path) -> None:
    table = TableSpec("track", LARGE, DIM, 0.1)
    rows_A = np.arange(0, LARGE, 17)
    step = {"track": RowGradient(rows_A, np.ones((len(rows_A), DIM), np.float32))}
    with closing(LocalStore()) as store:
        store.create([table], OptimizerSpec("rowwise_adagrad"), seed=1)
        before = store.pull({"track": np.arange(LARGE)})["track"]
        store.save(str(tmp_path))
        steps = 0
        while (result := store.poll_save()) is None:
            store.push(step)
            steps += 1
        assert steps > 0
        assert (store.pull({"track": rows_A})["track"] != before[rows_A]).any()
    np.testing.assert_array_equal(np.load(weights_file(tmp_path)), before)
    assert result.bytes > before.nbytes


@pytest.mark.slow
def test_server_saves_the_state_at_the_command_although_rows_change(tmp_path: Path) -> None:
    script = Path(__file__).resolve().parents[2] / "tests" / "support" / "drive_row_server.py"
    command = [sys.executable, script, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "expected.npz") as expected:
        assert len(expected.files) == 4
        for name in expected.files:
            path = tmp_path / "saved" / "track" / f"{name}.00000-of-00001.npy"
            np.testing.assert_array_equal(np.load(path), expected[name], err_msg=name)


@pytest.mark.slow
def test_snapshots_are_exact_while_other_threads_compute_and_allocate(tmp_path: Path) -> None:
    table = TableSpec("track", 20_000, DIM, 0.1)
    stop = threading.Event()

    def allocate() -> None:
        while not stop.is_set():
            [np.ones(size) for size in range(1, 20_000, 500)]

    threads = [threading.Thread(target=allocate) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        with closing(LocalStore()) as store:
            store.create([table], OptimizerSpec("adam"), seed=1)
            for number in range(5):
                store.push({"track": RowGradient(np.arange(20_000), np.ones((20_000, DIM), np.float32))})
                expected = store.pull({"track": np.arange(20_000)})["track"]
                store.save(str(tmp_path / str(number)))
                wait_for_save(store)
                np.testing.assert_array_equal(np.load(weights_file(tmp_path / str(number))), expected)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_writer_shares_no_process_group_and_no_pipes(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    with running_snapshot(shard_of_ones(LARGE), folder=tmp_path) as (snapshot, writer):
        assert os.getpgid(writer.pid) != os.getpgid(0)
        writer.suspend()
        os.close(write_end)
        assert select.select([read_end], [], [], 10)[0] == [read_end]
        assert os.read(read_end, 1) == b""
        writer.resume()
        wait_for_snapshot(snapshot)
    os.close(read_end)


@pytest.mark.slow
def test_changes_of_sent_rows_take_no_memory(tmp_path: Path) -> None:
    sent, waiting = shard_of_ones(LARGE // 2, "sent"), shard_of_ones(LARGE, "waiting")
    # The writer blocks until this pipe has a reader: the snapshot stays in progress, with all of the first table sent.
    (tmp_path / "waiting").mkdir()
    os.mkfifo(weights_file(tmp_path, "waiting"))
    with running_snapshot(sent, waiting, folder=tmp_path) as (snapshot, writer):
        size = sent.arrays["weights"].nbytes
        wait_until(lambda: bytes_read_by(writer) > size, "the first table to be sent")
        before = psutil.Process().memory_full_info().uss
        snapshot.before_update("sent", 0, np.arange(LARGE // 2))
        assert psutil.Process().memory_full_info().uss - before < size // 16
        snapshot.before_update("waiting", 0, np.arange(LARGE // 2, LARGE))
        assert psutil.Process().memory_full_info().uss - before > size // 2
        assert snapshot.poll() is None


@pytest.mark.slow
def test_snapshot_takes_no_memory_at_its_start(tmp_path: Path) -> None:
    shard = shard_of_ones(LARGE)
    (tmp_path / "track").mkdir()
    os.mkfifo(weights_file(tmp_path))
    before = psutil.Process().memory_full_info().uss
    with running_snapshot(shard, folder=tmp_path) as (snapshot, writer):
        wait_until(lambda: bytes_read_by(writer) > 1 << 20, "the first rows to be sent")
        assert psutil.Process().memory_full_info().uss - before < shard.arrays["weights"].nbytes // 4
        assert snapshot.poll() is None


def bytes_read_by(process: psutil.Process) -> int:
    """Return the bytes that a process has read, from files and pipes."""
    return int(process.io_counters().read_chars)
