"""A snapshot is written behind the back of whoever changes the arrays, or says why not; and nothing of it stays."""

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
from saved_ranges import WRITE_SECONDS, Arrays, saved, written
from waiting import wait_until

from kvstore.checkpoint import HEADER_BYTES, RowRange
from kvstore.checkpoint_writer import CutShortError, write_part
from kvstore.errors import CheckpointError
from kvstore.local import LocalStore
from kvstore.optimizers import OptimizerSpec
from kvstore.snapshot import Snapshot
from kvstore.storage import Folder
from kvstore.store import RowGradient, TableSpec

DIM = 64
LARGE = (64 << 20) // (4 * DIM)
"""Rows of 64 MB: a new process needs longer to start than an array of that size takes to be overwritten."""


def ones(rows: int, table: str = "track") -> RowRange:
    return RowRange(table, rows, 0, 1, {"weights": np.ones((rows, DIM), np.float32)})


def weights_file(folder: Path, table: str = "track") -> Path:
    return folder / table / "weights.00000-of-00001.npy"


class Processes:
    """The two processes of the one snapshot that this process is writing."""

    def __init__(self) -> None:
        self.writer, self.copy = self.both = sorted(
            psutil.Process().children(), key=lambda child: "kvstore.checkpoint_writer" not in child.cmdline()
        )

    def gone(self) -> bool:
        return not any(process.is_running() for process in self.both)


@contextmanager
def snapshot_of(*ranges: RowRange, to: Path | str) -> Iterator[tuple[Snapshot, Processes]]:
    """A snapshot under way, of which nothing is left at the end."""
    assert psutil.Process().children() == []
    with closing(Snapshot(str(to), 0, 1, ranges)) as snapshot:
        processes = Processes()
        yield snapshot, processes
    assert processes.gone()
    assert psutil.Process().children() == []


def failure(snapshot: Snapshot) -> str:
    with pytest.raises(CheckpointError) as caught:
        written(snapshot)
    assert caught.value.checkpoint is None
    with pytest.raises(CheckpointError):
        snapshot.poll()
    return str(caught.value)


def test_what_is_written_is_the_state_at_the_call_though_all_of_it_changes_at_once(tmp_path: Path) -> None:
    held = ones(LARGE)
    with snapshot_of(held, to=tmp_path) as (snapshot, _):
        held.arrays["weights"][:] = 2.0
        assert snapshot.poll() is None
        result = written(snapshot)
        assert snapshot.poll() is result
    assert (np.load(weights_file(tmp_path)) == 1.0).all()
    assert (held.arrays["weights"] == 2.0).all()
    assert result.bytes == sum(path.stat().st_size for path in tmp_path.rglob("*.*"))


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
        while (result := store.saved()) is None:
            store.push(step)
            steps += 1
        assert steps > 0
        assert (store.pull({"track": rows_A})["track"] != before[rows_A]).any()
    np.testing.assert_array_equal(np.load(weights_file(tmp_path)), before)
    assert result.bytes > before.nbytes


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
        with pytest.raises(CheckpointError, match="two: cannot be written while the checkpoint before it still is"):
            store.save(str(tmp_path / "two"))
        saved(store)
        store.save(str(tmp_path / "two"))
        saved(store)
        store.save(str(tmp_path / "three"))
    assert psutil.Process().children() == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_the_death_of_the_writer_is_an_error(tmp_path: Path, number: signal.Signals) -> None:
    with snapshot_of(ones(LARGE), to=tmp_path) as (snapshot, processes):
        processes.writer.send_signal(number)
        assert (
            failure(snapshot)
            == f"{tmp_path}: could not be written: the process that wrote it was killed by {number.name}"
        )


def test_the_death_of_the_copy_is_an_error(tmp_path: Path) -> None:
    with snapshot_of(ones(LARGE), to=tmp_path) as (snapshot, processes):
        processes.copy.kill()
        expected = f"{tmp_path}: could not be written: the process that held its snapshot was killed by SIGKILL"
        assert failure(snapshot) == expected
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("length", [0, 10, 40, 45, -14, -1])
def test_a_snapshot_that_ends_anywhere_before_its_end_makes_no_part(tmp_path: Path, length: int) -> None:
    frames = b'{"path": "track/weights.npy", "bytes": 8}\n12345678{"end": true}\n'
    with pytest.raises(CutShortError):
        write_part(Folder(str(tmp_path)), 0, 1, io.BytesIO(frames[:length]))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert write_part(Folder(str(tmp_path)), 0, 1, io.BytesIO(frames))["written"] > 8
    assert (tmp_path / "track" / "weights.npy").read_bytes() == b"12345678"


def test_closing_ends_both_processes_at_once_whatever_they_wait_for(tmp_path: Path) -> None:
    with snapshot_of(ones(LARGE), to=tmp_path) as (snapshot, processes):
        for process in processes.both:
            process.suspend()
        snapshot.close()
        assert processes.gone()
        with pytest.raises(CheckpointError, match="was given up"):
            snapshot.poll()
    assert not list(tmp_path.glob("part-*"))


def test_signals_for_the_whole_group_of_processes_do_not_spoil_a_snapshot(tmp_path: Path) -> None:
    with snapshot_of(ones(LARGE), to=tmp_path) as (snapshot, processes):
        assert os.getpgid(processes.writer.pid) != os.getpgid(0)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            processes.copy.send_signal(number)
        written(snapshot)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) & {signal.SIGINT, signal.SIGTERM} == set()


def test_whoever_waits_for_the_end_of_a_pipe_does_not_wait_for_the_copy(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    with snapshot_of(ones(LARGE), to=tmp_path) as (snapshot, processes):
        wait_until(weights_file(tmp_path).exists, WRITE_SECONDS, "the writer to start")
        processes.copy.suspend()
        os.close(theirs)
        assert select.select([ours], [], [], 10)[0] == [ours]
        assert os.read(ours, 1) == b""
        processes.copy.resume()
        written(snapshot)
    os.close(ours)


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process of its own that takes a snapshot into ``tmp_path``."""
    with subprocess.Popen(
        [sys.executable, Path(__file__).with_name("drive_snapshot.py"), str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


def said(process: subprocess.Popen[str]) -> list[psutil.Process]:
    assert process.stderr is not None
    return [psutil.Process(pid) for pid in json.loads(process.stderr.readline())]


@pytest.mark.slow
def test_the_copy_does_none_of_pythons_tidying(driver: subprocess.Popen[str], tmp_path: Path) -> None:
    said(driver)
    output, errors = driver.communicate("go on\n", timeout=WRITE_SECONDS)
    assert driver.returncode == 0, errors
    assert output.split() == ["kept", "in", "a", "buffer", "tidied", "up"]
    assert errors == ""
    assert (np.load(weights_file(tmp_path)) == 1.0).all()


@pytest.mark.slow
def test_both_processes_die_with_the_one_they_write_for(driver: subprocess.Popen[str], tmp_path: Path) -> None:
    processes = said(driver)
    assert len(processes) == 2
    wait_until(weights_file(tmp_path).exists, WRITE_SECONDS, "the writer to start")
    try:
        for process in processes:
            process.suspend()
        driver.kill()
        wait_until(lambda: not any(process.is_running() for process in processes), 10, "the end of both processes")
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    assert not list(tmp_path.glob("part-*"))


def memory_of(*processes: psutil.Process) -> int:
    """Bytes that processes hold together, pages that they share counted once."""
    return sum(process.memory_full_info().pss for process in processes)


@pytest.mark.slow
def test_pages_that_are_written_already_are_not_copied_when_they_change(tmp_path: Path) -> None:
    sent, waiting = ones(2 * LARGE, "sent"), ones(LARGE // 16, "waiting")
    size = sent.arrays["weights"].nbytes
    # The writer waits for a reader of this pipe, so the copy lives on with all of the first table sent.
    (tmp_path / "waiting").mkdir()
    os.mkfifo(weights_file(tmp_path, "waiting"))
    with snapshot_of(sent, waiting, to=tmp_path) as (snapshot, processes):
        both_heads = 2 * HEADER_BYTES
        wait_until(lambda: writes(processes.copy) > size + both_heads, WRITE_SECONDS, "the first table to be sent")
        before = memory_of(psutil.Process(), processes.copy)
        sent.arrays["weights"][:] = 2.0
        assert memory_of(psutil.Process(), processes.copy) - before < size // 16
        assert snapshot.poll() is None


def writes(process: psutil.Process) -> int:
    """Bytes that a process has written, to files and pipes."""
    return int(process.io_counters().write_chars)


def intact(held: RowRange, before: Arrays) -> None:
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
