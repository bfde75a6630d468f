"""Run every role of the job of ``test_dist_store.py`` that loads a checkpoint, and resets and assigns some of its rows.

drive_reset.py MAX_KEY_BYTES CHECKPOINT OUTPUT
"""

import sys

import numpy as np
from dist_roles import play_role
from saved_shards import save_store

from crossfade.kvstore.mxnet.client import MXNetStore
from crossfade.kvstore.mxnet.server_protocol import RESET_ROWS
from crossfade.kvstore.optimizer_spec import OptimizerSpec
from crossfade.kvstore.store import RowGradient, RowStore, TableSpec

TABLES = [
    TableSpec("customer", rows=3 * RESET_ROWS, dim=2, init_std=0.1),
    TableSpec("track", rows=37, dim=3, init_std=0.5),
]
OPTIMIZER = OptimizerSpec("adam", weight_decay=0.01)
SEED = 11
RESETS = {"customer": np.arange(1, 3 * RESET_ROWS - 5, dtype=np.int64), "track": np.array([0, 7, 36])}
"""More rows than one command holds; the last command is not full."""
ASSIGNED = (np.array([2, 5, 5 * RESET_ROWS // 2]), np.array([5, 6]), np.empty(0, np.int64))
"""Rows of the first table that are assigned, in three blocks."""


def assign_and_step(store: RowStore) -> None:
    """Assign rows, and take a step, which must be applied as an update again."""
    table = TABLES[0]
    for rows_A in ASSIGNED:
        store.assign(table.name, rows_A, np.outer(rows_A + 0.5, [1, -2]).astype(np.float32))
    for pushed in TABLES:
        # The random state of other rows lets them diverge.
        rows_A = RESETS[pushed.name][: 0 if store.rank else 4]
        store.push({pushed.name: RowGradient(rows_A, np.full((len(rows_A), pushed.dim), 0.25, np.float32))})


def work(store: MXNetStore) -> None:
    """Create the tables, change them, and save them."""
    store.create(TABLES, OPTIMIZER, SEED, sys.argv[2], RESETS)
    assign_and_step(store)
    if store.rank == 0:
        save_store(store, sys.argv[3], 1, TABLES, OPTIMIZER)
    store.barrier()


if __name__ == "__main__":
    play_role(work, key_bytes=int(sys.argv[1]))
