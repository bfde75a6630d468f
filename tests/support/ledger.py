"""A ledger of the interactions that each worker of a training trains on, and the check of it.

The training runs with ``ledger_variables``; its workers, or its process, then record each step in a file each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from cluster_data import TRACKS, planted_splits, train_rows

FOLDER_VARIABLE = "CROSSFADE_TEST_LEDGER"
RECORD_STEPS = f"""
import os
import sys
import time

if "worker" in sys.orig_argv or ("train" in sys.orig_argv and "--servers" not in sys.orig_argv):
    from pathlib import Path

    import numpy as np

    from crossfade.trainer.training.loop import TrainLoop

    ledger = Path(os.environ["{FOLDER_VARIABLE}"]) / f"{{time.monotonic_ns()}}-{{os.getpid()}}"
    file = ledger.open("ab", buffering=0)
    unrecorded_step = TrainLoop._step

    def record_step(self, batch, progress):
        query_B = batch.query.rows_A[batch.query.index_N]
        item_B = batch.item.rows_A[batch.item.index_N][: len(batch)]
        pairs_B = query_B * self.model.item.rows + item_B
        head = np.array([progress.step, progress.epoch, len(pairs_B)], dtype=np.int64)
        file.write(np.concatenate([head, pairs_B]).tobytes())
        unrecorded_step(self, batch, progress)

    TrainLoop._step = record_step
"""


def read_ledgers(folder: Path) -> list[dict[int, tuple[int, np.ndarray[Any, Any]]]]:
    """Read each worker's ledger, in the order in which they started: by step, the epoch and the interactions."""
    ledgers = []
    for path in sorted(folder.iterdir(), key=lambda path: int(path.name.split("-")[0])):
        values = np.frombuffer(path.read_bytes()[: path.stat().st_size // 8 * 8], dtype=np.int64)
        entries, position = {}, 0
        while position + 3 <= len(values):
            step, epoch, count = values[position : position + 3]
            entries[int(step)] = (int(epoch), values[position + 3 : position + 3 + count])
            position += 3 + int(count)
        ledgers.append(entries)
    return ledgers


def check_ledger(folder: Path, epochs: int, steps: int, workers: int = 2) -> None:
    """Assert that every interaction was trained on exactly once per epoch.

    A step that was repeated after a restart counts as it was taken last. The workers of a generation start before those
    of the next.
    """
    ledgers = read_ledgers(folder)
    pairs: dict[int, list[np.ndarray[Any, Any]]] = {epoch: [] for epoch in range(epochs)}
    for step in range(steps):
        last = [entries[step] for entries in ledgers if step in entries][-workers:]
        assert len(last) == workers, f"step {step} was recorded by {len(last)} workers"
        assert len({epoch for epoch, _ in last}) == 1, f"step {step} was of epochs {[epoch for epoch, _ in last]}"
        for epoch, interactions in last:
            pairs[epoch].append(interactions)
    query_N, item_N = (column[: train_rows()] for column in planted_splits()["train"])
    expected = np.sort(query_N * TRACKS + item_N)
    for epoch, parts in pairs.items():
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), expected, err_msg=f"epoch {epoch}")
