"""Take snapshots of arrays that change, and see that nothing of them remains."""

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from saved_shards import wait_for_snapshot

from crossfade.base.arrays import IntArray
from crossfade.base.errors import CheckpointError
from crossfade.kvstore.checkpoint.format import TableShard
from crossfade.kvstore.checkpoint.snapshot import Snapshot

DIM = 64
LARGE = (64 << 20) // (4 * DIM)
"""Rows of 64 MB: starting a process takes longer than overwriting an array of that size."""


def shard_of_ones(rows: int, table: str = "track") -> TableShard:
    """Return a table of ones as one shard."""
    return TableShard(table, rows, 0, 1, {"weights": np.ones((rows, DIM), np.float32)})


def weights_file(folder: Path, table: str = "track") -> Path:
    """Return the file with the weights of a table that is one shard."""
    return folder / table / "weights.00000-of-00001.npy"


@contextmanager
def running_snapshot(*shards: TableShard, folder: Path | str) -> Iterator[tuple[Snapshot, psutil.Process]]:
    """Yield a snapshot in progress and the process that writes it; check that nothing of them remains."""
    before = psutil.Process().children()  # servers that other tests of this process share
    with closing(Snapshot(str(folder), 0, 1, shards)) as snapshot:
        [writer] = set(psutil.Process().children()) - set(before)
        yield snapshot, writer
    assert not writer.is_running()
    assert psutil.Process().children() == before
    assert not any(thread.name == "snapshot" for thread in threading.enumerate())


def change_rows(snapshot: Snapshot, shard: TableShard, rows_A: IntArray | None = None) -> None:
    """Change rows of ``shard`` as training does, by default all of them."""
    rows_A = np.arange(len(shard.arrays["weights"])) if rows_A is None else rows_A
    snapshot.before_update(shard.table, shard.number, rows_A)
    for values in shard.arrays.values():
        values[rows_A] += 1


def failure_of(snapshot: Snapshot) -> str:
    """Wait until a snapshot fails; return the message."""
    with pytest.raises(CheckpointError) as caught:
        wait_for_snapshot(snapshot)
    assert caught.value.checkpoint is None
    with pytest.raises(CheckpointError):
        snapshot.poll()
    return str(caught.value)
