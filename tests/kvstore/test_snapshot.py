"""A snapshot is written behind the back of whoever changes the arrays, or says why not; and nothing of it stays."""

import errno
import io
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from saved_ranges import WRITE_SECONDS, Arrays, cut, random_table, saved, written
from waiting import wait_until

from kvstore.arrays import IntArray
from kvstore.checkpoint.format import TableShard
from kvstore.checkpoint.snapshot import Snapshot, compile_kernels
from kvstore.checkpoint.writer import write_part
from kvstore.errors import CheckpointError
from kvstore.io.folder import Folder
from kvstore.local import LocalStore
from kvstore.optimizers import OptimizerKind, OptimizerSpec
from kvstore.store import RowGradient, TableSpec

DIM = 64
LARGE = (64 << 20) // (4 * DIM)
"""Rows of 64 MB: a new process needs longer to start than an array of that size takes to be overwritten."""


@pytest.fixture(autouse=True)
def _nothing_left_to_compile() -> None:
    compile_kernels()


def ones(rows: int, table: str = "track") -> TableShard:
    return TableShard(table, rows, 0, 1, {"weights": np.ones((rows, DIM), np.float32)})


def weights_file(folder: Path, table: str = "track") -> Path:
    return folder / table / "weights.00000-of-00001.npy"


@contextmanager
def snapshot_of(*ranges: TableShard, to: Path | str) -> Iterator[tuple[Snapshot, psutil.Process]]:
    """A snapshot under way and the process that writes it, nothing of which is left at the end."""
    assert psutil.Process().children() == []
    with closing(Snapshot(str(to), 0, 1, ranges)) as snapshot:
        [writer] = psutil.Process().children()
        yield snapshot, writer
    assert not writer.is_running()
    assert psutil.Process().children() == []
    assert not any(thread.name == "snapshot" for thread in threading.enumerate())


def change(snapshot: Snapshot, held: TableShard, rows_A: IntArray | None = None) -> None:
    """Have training change rows of ``held``, by default all of them."""
    rows_A = np.arange(len(held.arrays["weights"])) if rows_A is None else rows_A
    snapshot.before_update(held.table, held.number, rows_A)
    for values in held.arrays.values():
        values[rows_A] += 1


def failure(snapshot: Snapshot) -> str:
    with pytest.raises(CheckpointError) as caught:
        written(snapshot)
    assert caught.value.checkpoint is None
    with pytest.raises(CheckpointError):
        snapshot.poll()
    return str(caught.value)


def test_what_is_written_is_the_state_at_the_call_though_all_of_it_changes_at_once(tmp_path: Path) -> None:
    held = ones(LARGE)
    with snapshot_of(held, to=tmp_path) as (snapshot, writer):
        writer.suspend()
        change(snapshot, held)
        assert snapshot.poll() is None
        writer.resume()
        result = written(snapshot)
        assert snapshot.poll() is result
    assert (np.load(weights_file(tmp_path)) == 1.0).all()
    assert (held.arrays["weights"] == 2.0).all()
    assert result.bytes == sum(path.stat().st_size for path in tmp_path.rglob("*.*"))


@pytest.mark.parametrize("kind", ["sgd", "adagrad", "rowwise_adagrad", "adam"])
def test_rows_that_change_again_and_again_meanwhile_are_written_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: OptimizerKind
) -> None:
    monkeypatch.setattr("kvstore.checkpoint.snapshot._PIECE_BYTES", 1 << 16)
    spec, generator = OptimizerSpec(kind), np.random.default_rng(1)
    tables = [TableSpec("customer", 100_003, 12, 0.1), TableSpec("track", 5_001, 12, 0.1), TableSpec("few", 2, 3, 0.1)]
    arrays = {table.name: random_table(table, spec) for table in tables}
    ranges = [held for table in tables for held in cut(table, arrays[table.name], 3)]
    with snapshot_of(*ranges, to=tmp_path) as (snapshot, _):
        changes = 0
        while snapshot.poll() is None:
            for held in ranges:
                count = len(held.arrays["weights"])
                change(snapshot, held, np.unique(generator.integers(0, count, max(1, count // 20))))
            changes += 1
        assert changes > 1
    for table in tables:
        for name, values in arrays[table.name].items():
            for number in range(3):
                held = np.load(tmp_path / table.name / f"{name}.{number:05d}-of-00003.npy")
                np.testing.assert_array_equal(held, values[number::3])


def test_changes_wait_for_room_where_there_is_little_and_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvstore.checkpoint.snapshot.COPY_FRACTION", 64)
    monkeypatch.setattr("kvstore.checkpoint.snapshot.MIN_COPY_BYTES", 0)
    held = ones(LARGE)
    with snapshot_of(held, to=tmp_path) as (snapshot, _):
        begun = snapshot.pause_seconds
        change(snapshot, held)
        assert snapshot.pause_seconds > begun
        written(snapshot)
    assert (np.load(weights_file(tmp_path)) == 1.0).all()
    assert (held.arrays["weights"] == 2.0).all()


def test_changes_do_not_wait_for_ever_for_a_writer_that_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvstore.checkpoint.snapshot.COPY_FRACTION", 64)
    monkeypatch.setattr("kvstore.checkpoint.snapshot.MIN_COPY_BYTES", 0)
    monkeypatch.setattr("kvstore.checkpoint.snapshot.MAX_WAIT_SECONDS", 0.2)
    held = ones(LARGE)
    with snapshot_of(held, to=tmp_path) as (snapshot, writer):
        writer.suspend()
        change(snapshot, held)
        assert "could not be written: rows change faster than they can be written" in failure(snapshot)
    assert (held.arrays["weights"] == 2.0).all()


def test_updates_wait_no_longer_than_that_in_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvstore.checkpoint.snapshot.MAX_WAIT_SECONDS", 2.0)
    monkeypatch.setattr("kvstore.checkpoint.snapshot.COPY_FRACTION", 64)
    monkeypatch.setattr("kvstore.checkpoint.snapshot.MIN_COPY_BYTES", 0)
    held = ones(LARGE)
    with snapshot_of(held, to=tmp_path) as (snapshot, writer):
        writer.suspend()
        snapshot.pause_seconds = 1.8
        change(snapshot, held)
        assert snapshot.pause_seconds < 3.0
        assert "updates waited for 2 s" in failure(snapshot)


def test_a_writer_that_stands_still_is_given_up_though_no_update_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with snapshot_of(ones(LARGE), to=tmp_path) as (snapshot, writer):
        writer.suspend()
        assert snapshot.poll() is None
        monkeypatch.setattr("kvstore.checkpoint.snapshot.MAX_STANDSTILL_SECONDS", 0.1)
        assert "could not be written: writing made no progress for 0 s" in failure(snapshot)


def test_changes_after_the_end_of_a_snapshot_are_nothing_to_it(tmp_path: Path) -> None:
    held = ones(100)
    with snapshot_of(held, to=tmp_path) as (snapshot, _):
        written(snapshot)
        change(snapshot, held)
        change(snapshot, ones(10, "another table"))
    assert (np.load(weights_file(tmp_path)) == 1.0).all()


@pytest.mark.slow
def test_training_goes_on_while_a_store_in_process_saves(tmp_path: Path) -> None:
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
@pytest.mark.parametrize("kind", ["rowwise_adagrad", "adam"])
def test_what_a_server_saves_is_the_state_at_the_command_though_rows_change_before_they_are_sent(
    tmp_path: Path, kind: str
) -> None:
    script = Path(__file__).resolve().parents[2] / "tests" / "support" / "drive_row_server.py"
    command = [sys.executable, script, kind, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "expected.npz") as expected:
        assert len(expected.files) == (2 if kind == "rowwise_adagrad" else 4)
        for name in expected.files:
            path = tmp_path / "saved" / "track" / f"{name}.00000-of-00001.npy"
            np.testing.assert_array_equal(np.load(path), expected[name], err_msg=name)


@pytest.mark.slow
def test_snapshots_are_taken_amid_threads_that_compute_and_allocate(tmp_path: Path) -> None:
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
                saved(store)
                np.testing.assert_array_equal(np.load(weights_file(tmp_path / str(number))), expected)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_store_saves_one_checkpoint_at_a_time(tmp_path: Path) -> None:
    with closing(LocalStore()) as store:
        store.create([TableSpec("track", 100, DIM, 0.1)], OptimizerSpec("sgd"), seed=1)
        store.save(str(tmp_path / "one"))
        with pytest.raises(
            CheckpointError, match="two: cannot be written while the previous checkpoint is being written"
        ):
            store.save(str(tmp_path / "two"))
        saved(store)
        store.save(str(tmp_path / "two"))
        saved(store)
        store.save(str(tmp_path / "three"))
    assert psutil.Process().children() == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_the_death_of_the_writer_is_an_error(tmp_path: Path, number: signal.Signals) -> None:
    with snapshot_of(ones(LARGE), to=tmp_path) as (snapshot, writer):
        writer.send_signal(number)
        assert failure(snapshot) == f"{tmp_path}: could not be written: the writing process was killed by {number.name}"


def test_rows_that_cannot_be_sent_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_descriptor: int, _data: object) -> int:
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr("kvstore.checkpoint.snapshot.os.write", refuse)
    with snapshot_of(ones(10), to=tmp_path) as (snapshot, _):
        assert "could not be written: its rows could not be sent: OSError: [Errno 5] no" in failure(snapshot)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("length", [0, 10, 40, 60, 75, -14, -1])
def test_a_snapshot_that_ends_anywhere_before_its_end_makes_no_part(tmp_path: Path, length: int) -> None:
    first, second = (
        {"path": "track/weights.npy", "bytes": 4, "file_bytes": 8},
        {"path": "few.npy", "bytes": 2, "file_bytes": 2},
    )
    frames = b"".join(
        json.dumps(frame).encode() + b"\n" + values
        for frame, values in ((first, b"1234"), (second, b"ab"), (first, b"5678"))
    )
    frames += b'{"end": true}\n'
    with pytest.raises(CheckpointError):
        write_part(Folder(str(tmp_path)), 0, 1, io.BytesIO(frames[:length]))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert write_part(Folder(str(tmp_path)), 0, 1, io.BytesIO(frames))["total_bytes"] > 10
    assert (tmp_path / "track" / "weights.npy").read_bytes() == b"12345678"
    assert (tmp_path / "few.npy").read_bytes() == b"ab"


def test_a_snapshot_that_leaves_out_the_end_of_a_file_makes_no_part(tmp_path: Path) -> None:
    frames = b'{"path": "track/weights.npy", "bytes": 4, "file_bytes": 8}\n1234{"end": true}\n'
    with pytest.raises(CheckpointError):
        write_part(Folder(str(tmp_path)), 0, 1, io.BytesIO(frames))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_closing_ends_the_writing_at_once_whatever_it_waits_for(tmp_path: Path) -> None:
    with snapshot_of(ones(LARGE), to=tmp_path) as (snapshot, writer):
        writer.suspend()
        snapshot.close()
        assert not writer.is_running()
        with pytest.raises(CheckpointError, match="was abandoned"):
            snapshot.poll()
    assert not list(tmp_path.glob("part-*"))


def test_the_writer_gets_no_signals_of_the_group_of_processes_and_none_of_their_pipes(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    with snapshot_of(ones(LARGE), to=tmp_path) as (snapshot, writer):
        assert os.getpgid(writer.pid) != os.getpgid(0)
        writer.suspend()
        os.close(theirs)
        assert select.select([ours], [], [], 10)[0] == [ours]
        assert os.read(ours, 1) == b""
        writer.resume()
        written(snapshot)
    os.close(ours)


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process of its own that takes a snapshot into ``tmp_path``."""
    with subprocess.Popen(
        [
            sys.executable,
            Path(__file__).resolve().parents[2] / "tests" / "support" / "drive_snapshot.py",
            str(tmp_path),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


@pytest.mark.slow
def test_the_writer_dies_with_the_process_that_it_writes_for(driver: subprocess.Popen[str], tmp_path: Path) -> None:
    assert driver.stdout is not None
    writer = psutil.Process(json.loads(driver.stdout.readline()))
    wait_until(weights_file(tmp_path).exists, WRITE_SECONDS, "the writer to start")
    try:
        writer.suspend()
        driver.kill()
        wait_until(lambda: not writer.is_running(), 10, "the end of the writer")
    finally:
        with suppress(psutil.NoSuchProcess):
            writer.kill()
    assert not list(tmp_path.glob("part-*"))


@pytest.mark.slow
def test_rows_that_were_sent_already_take_no_memory_when_they_change(tmp_path: Path) -> None:
    sent, waiting = ones(LARGE // 2, "sent"), ones(LARGE, "waiting")
    # The writer waits for a reader of this pipe, so the snapshot goes on, with all of the first table sent.
    (tmp_path / "waiting").mkdir()
    os.mkfifo(weights_file(tmp_path, "waiting"))
    with snapshot_of(sent, waiting, to=tmp_path) as (snapshot, writer):
        size = sent.arrays["weights"].nbytes
        wait_until(lambda: read_by(writer) > size, WRITE_SECONDS, "the first table to be sent")
        before = psutil.Process().memory_full_info().uss
        snapshot.before_update("sent", 0, np.arange(LARGE // 2))
        assert psutil.Process().memory_full_info().uss - before < size // 16
        snapshot.before_update("waiting", 0, np.arange(LARGE // 2, LARGE))
        assert psutil.Process().memory_full_info().uss - before > size // 2
        assert snapshot.poll() is None


@pytest.mark.slow
def test_a_snapshot_takes_no_memory_when_it_begins(tmp_path: Path) -> None:
    held = ones(LARGE)
    (tmp_path / "track").mkdir()
    os.mkfifo(weights_file(tmp_path))
    before = psutil.Process().memory_full_info().uss
    with snapshot_of(held, to=tmp_path) as (snapshot, writer):
        wait_until(lambda: read_by(writer) > 1 << 20, WRITE_SECONDS, "the first rows to be sent")
        assert psutil.Process().memory_full_info().uss - before < held.arrays["weights"].nbytes // 4
        assert snapshot.poll() is None


def read_by(process: psutil.Process) -> int:
    """Bytes that a process has read, from files and pipes."""
    return int(process.io_counters().read_chars)


def intact(held: TableShard, before: Arrays) -> None:
    for name, values in before.items():
        np.testing.assert_array_equal(held.arrays[name], values)


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    held = ones(LARGE)
    with snapshot_of(held, to=tmp_path / "file" / "step-000000001") as (snapshot, _):
        message = failure(snapshot)
    assert message.startswith(f"{tmp_path}/file/step-000000001: could not be written: [Errno 17] File exists: ")
    assert message.endswith(f"'{tmp_path}/file'")
    assert (held.arrays["weights"] == 1.0).all()


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small file system of its own."""
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "crossfade-tests", str(folder)], check=False)
    if mount.returncode:
        pytest.skip("mounting a file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_file_system_that_is_only_read_is_an_error(tmp_path: Path) -> None:
    with mounted(tmp_path / "mount", "ro") as folder, snapshot_of(ones(10), to=folder / "step") as (snapshot, _):
        assert "could not be written: [Errno 30] Read-only file system: " in failure(snapshot)


@pytest.mark.parametrize("megabytes", [1, 70], ids=["at the first file", "at the second"])
def test_a_full_disk_is_an_error_that_leaves_the_disk_no_fuller(tmp_path: Path, megabytes: int) -> None:
    held = [ones(LARGE, "customer"), ones(LARGE, "track")]
    with mounted(tmp_path / "mount", f"size={megabytes}m") as folder:
        with snapshot_of(*held, to=folder / "step") as (snapshot, _):
            message = failure(snapshot)
        assert "could not be written: [Errno 28] No space left on device: " in message
        assert str(folder / "step" / "track" if megabytes > 64 else folder / "step" / "customer") in message
        assert [path for path in folder.rglob("*") if path.is_file()] == []
        with snapshot_of(ones(10), to=folder / "next") as (snapshot, _):
            written(snapshot)
    for table in held:
        assert (table.arrays["weights"] == 1.0).all()
