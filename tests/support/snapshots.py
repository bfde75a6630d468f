"""Take snapshots of arrays that change, and see that nothing of them remains."""

import math
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from saved_shards import wait_for_snapshot

from crossfade.base.arrays import IntArray
from crossfade.base.errors import CheckpointError
from crossfade.kvstore.checkpoint.format import TableShard
from crossfade.kvstore.checkpoint.snapshot import Snapshot

DIM = 64
LARGE = (64 << 20) // (4 * DIM)
"""Rows of 64 MB, which are written in sixteen pieces."""


def shard_of_ones(rows: int, table: str = "track") -> TableShard:
    """Return a table of ones as one shard."""
    return TableShard(table, rows, 0, 1, {"weights": np.ones((rows, DIM), np.float32)})


def weights_file(folder: Path, table: str = "track") -> Path:
    """Return the file with the weights of a table that is one shard."""
    return folder / table / "weights.00000-of-00001.npy"


class Gate:
    """Lets the threads of snapshots write pieces: all of them, or only ``left`` more."""

    def __init__(self) -> None:
        self.left = math.inf
        self._changed = threading.Condition()

    def close(self, left: float = 0) -> None:
        """Hold up the pieces after the next ``left``."""
        self.left = left

    def open(self) -> None:
        """Let all pieces be written."""
        with self._changed:
            self.left = math.inf
            self._changed.notify_all()

    def wait(self) -> None:
        """Return once a piece may be written."""
        with self._changed:
            self._changed.wait_for(lambda: self.left > 0, 240)
            self.left -= 1


@contextmanager
def gated_pieces() -> Iterator[Gate]:
    """Yield a gate for the pieces of the snapshots that are started meanwhile; open it at the end."""
    gate, write_piece = Gate(), Snapshot._write_piece

    def write_gated_piece(snapshot: Snapshot, *arguments: Any) -> None:
        gate.wait()
        write_piece(snapshot, *arguments)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Snapshot, "_write_piece", write_gated_piece)
        yield gate
        gate.open()


@contextmanager
def running_snapshot(
    *shards: TableShard, folder: Path | str, pieces: float = math.inf
) -> Iterator[tuple[Snapshot, Gate]]:
    """Yield a snapshot whose first ``pieces`` are written, and the gate of the others; check that its thread ends."""
    with gated_pieces() as gate:
        gate.close(pieces)
        with closing(Snapshot(str(folder), 0, 1, shards)) as snapshot:
            yield snapshot, gate
            gate.open()
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
