"""A snapshot that cannot be written is an error that leaves no process, no part and no full disk."""

import errno
import io
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from needs import root
from saved_shards import wait_for_save, wait_for_snapshot
from snapshots import DIM, LARGE, change_rows, failure_of, running_snapshot, shard_of_ones, weights_file
from waiting import wait_until

from crossfade.base.errors import CheckpointError
from crossfade.base.io.folder import Folder
from crossfade.kvstore.checkpoint.snapshot import compile_kernels
from crossfade.kvstore.checkpoint.writer import write_part
from crossfade.kvstore.local import LocalStore
from crossfade.kvstore.optimizer_spec import OptimizerSpec
from crossfade.kvstore.store import TableSpec

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _compiled_kernels() -> None:
    compile_kernels()


def test_total_wait_of_updates_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crossfade.kvstore.checkpoint.snapshot.MAX_WAIT_SECONDS", 2.0)
    monkeypatch.setattr("crossfade.kvstore.checkpoint.snapshot.COPY_FRACTION", 64)
    monkeypatch.setattr("crossfade.kvstore.checkpoint.snapshot.MIN_COPY_BYTES", 0)
    shard = shard_of_ones(LARGE)
    with running_snapshot(shard, folder=tmp_path) as (snapshot, writer):
        writer.suspend()
        snapshot.pause_seconds = 1.8
        change_rows(snapshot, shard)
        assert snapshot.pause_seconds < 3.0
        expected = "could not be written: rows change faster than they can be written: updates waited for 2 s in total"
        assert expected in failure_of(snapshot)
    assert (shard.arrays["weights"] == 2.0).all()


def test_stalled_writer_fails_the_snapshot_without_waiting_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_snapshot(shard_of_ones(LARGE), folder=tmp_path) as (snapshot, writer):
        writer.suspend()
        assert snapshot.poll() is None
        monkeypatch.setattr("crossfade.kvstore.checkpoint.snapshot.MAX_STANDSTILL_SECONDS", 0.1)
        assert "could not be written: writing made no progress for 0 s" in failure_of(snapshot)


def test_second_save_is_rejected_while_one_is_in_progress(tmp_path: Path) -> None:
    before = psutil.Process().children()
    with closing(LocalStore()) as store:
        store.create([TableSpec("track", 100, DIM, 0.1)], OptimizerSpec("sgd"), seed=1)
        store.save(str(tmp_path / "one"))
        with pytest.raises(
            CheckpointError, match="two: cannot be written while the previous checkpoint is being written"
        ):
            store.save(str(tmp_path / "two"))
        wait_for_save(store)
        store.save(str(tmp_path / "two"))
        wait_for_save(store)
        store.save(str(tmp_path / "three"))
    assert psutil.Process().children() == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_death_of_the_writer_is_an_error(tmp_path: Path, number: signal.Signals) -> None:
    with running_snapshot(shard_of_ones(LARGE), folder=tmp_path) as (snapshot, writer):
        writer.send_signal(number)
        assert (
            failure_of(snapshot) == f"{tmp_path}: could not be written: the writing process was killed by {number.name}"
        )


def test_failure_to_send_rows_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_descriptor: int, _data: object) -> int:
        raise OSError(errno.EIO, "disk error")

    monkeypatch.setattr("crossfade.kvstore.checkpoint.snapshot.os.write", fail)
    with running_snapshot(shard_of_ones(10), folder=tmp_path) as (snapshot, _):
        assert "could not be written: its rows could not be sent: OSError: [Errno 5] disk error" in failure_of(snapshot)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


PIECES = [
    b'{"path": "track/weights.npy", "bytes": 4, "file_bytes": 8}\n1234',
    b'{"path": "few.npy", "bytes": 2, "file_bytes": 2}\nab',
    b'{"path": "track/weights.npy", "bytes": 4, "file_bytes": 8}\n5678',
    b'{"end": true}\n',
]
FRAMES = b"".join(PIECES)


@pytest.mark.parametrize(
    "frames",
    [*(FRAMES[:length] for length in (0, 10, 40, 60, 75, -14, -1)), PIECES[0] + PIECES[-1]],
)
def test_truncated_snapshot_commits_no_part(tmp_path: Path, frames: bytes) -> None:
    with pytest.raises(CheckpointError):
        write_part(Folder(str(tmp_path)), 0, 1, io.BytesIO(frames))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert write_part(Folder(str(tmp_path)), 0, 1, io.BytesIO(FRAMES))["total_bytes"] > 10
    assert (tmp_path / "track" / "weights.npy").read_bytes() == b"12345678"
    assert (tmp_path / "few.npy").read_bytes() == b"ab"


def test_close_ends_a_stalled_writer_at_once(tmp_path: Path) -> None:
    with running_snapshot(shard_of_ones(LARGE), folder=tmp_path) as (snapshot, writer):
        writer.suspend()
        snapshot.close()
        assert not writer.is_running()
        with pytest.raises(CheckpointError, match="was abandoned"):
            snapshot.poll()
    assert not list(tmp_path.glob("part-*"))


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a process that takes a snapshot into ``tmp_path``."""
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


def test_writer_dies_with_its_parent(driver: subprocess.Popen[str], tmp_path: Path) -> None:
    assert driver.stdout is not None
    writer = psutil.Process(json.loads(driver.stdout.readline()))
    wait_until(weights_file(tmp_path).exists, "the writer to start")
    try:
        writer.suspend()
        driver.kill()
        wait_until(lambda: not writer.is_running(), "the end of the writer")
    finally:
        with suppress(psutil.NoSuchProcess):
            writer.kill()
    assert not list(tmp_path.glob("part-*"))


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """Mount a small file system."""
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "crossfade-tests", str(folder)], check=False)
    if mount.returncode:
        pytest.skip(root("mounting a file system"))
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_read_only_file_system_is_an_error(tmp_path: Path) -> None:
    with (
        mounted(tmp_path / "mount", "ro") as folder,
        running_snapshot(shard_of_ones(10), folder=folder / "step") as (snapshot, _),
    ):
        assert "could not be written: [Errno 30] Read-only file system: " in failure_of(snapshot)


@pytest.mark.parametrize("megabytes", [1, 70], ids=["at the first file", "at the second"])
def test_full_disk_is_an_error_and_partial_files_are_deleted(tmp_path: Path, megabytes: int) -> None:
    shard = [shard_of_ones(LARGE, "customer"), shard_of_ones(LARGE, "track")]
    with mounted(tmp_path / "mount", f"size={megabytes}m") as folder:
        with running_snapshot(*shard, folder=folder / "step") as (snapshot, _):
            message = failure_of(snapshot)
        assert "could not be written: [Errno 28] No space left on device: " in message
        assert str(folder / "step" / "track" if megabytes > 64 else folder / "step" / "customer") in message
        assert [path for path in folder.rglob("*") if path.is_file()] == []
        with running_snapshot(shard_of_ones(10), folder=folder / "next") as (snapshot, _):
            wait_for_snapshot(snapshot)
    for table in shard:
        assert (table.arrays["weights"] == 1.0).all()
