"""A snapshot that cannot be written is an error that leaves no thread, no part and no full disk."""

import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from needs import root
from saved_shards import wait_for_save, wait_for_snapshot
from snapshots import DIM, LARGE, change_rows, failure_of, running_snapshot, shard_of_ones

from crossfade.base.errors import CheckpointError
from crossfade.kvstore.checkpoint.snapshot import compile_kernels
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
    monkeypatch.setattr("crossfade.kvstore.checkpoint.snapshot._END_SECONDS", 0.1)
    with running_snapshot(shard, folder=tmp_path, pieces=0) as (snapshot, _):
        snapshot.pause_seconds = 1.8
        change_rows(snapshot, shard)
        assert snapshot.pause_seconds < 3.0
        expected = "could not be written: rows change faster than they can be written: updates waited for 2 s in total"
        assert expected in failure_of(snapshot)
    assert (shard.arrays["weights"] == 2.0).all()


def test_stalled_storage_fails_the_snapshot_without_waiting_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossfade.kvstore.checkpoint.snapshot._END_SECONDS", 0.1)
    with running_snapshot(shard_of_ones(LARGE), folder=tmp_path, pieces=2) as (snapshot, _):
        assert snapshot.poll() is None
        monkeypatch.setattr("crossfade.kvstore.checkpoint.snapshot.MAX_STANDSTILL_SECONDS", 0.1)
        assert "could not be written: writing made no progress for 0 s" in failure_of(snapshot)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_second_save_is_rejected_while_one_is_in_progress(tmp_path: Path) -> None:
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
