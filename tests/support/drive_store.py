"""Run every role of the jobs of ``test_dist_store.py``: workers push random gradients, and store what they pull.

drive_store.py KIND MAX_KEY_BYTES FOLDER
"""

import sys
from pathlib import Path

import numpy as np
from dist_roles import play_role

from crossfade.base.arrays import FloatArray
from crossfade.base.errors import StoreError
from crossfade.kvstore.mxnet.client import MXNetStore
from crossfade.kvstore.optimizer_spec import OptimizerKind, OptimizerSpec
from crossfade.kvstore.store import MAX_ALL_REDUCE_LENGTH, RowGradient, TableSpec

TABLES = [TableSpec("customer", rows=700, dim=8, init_std=0.1), TableSpec("track", rows=37, dim=3, init_std=0.5)]
SEED = 11
STEPS = 8
ALL_REDUCES = 1500
EMPTY_STEP, HALF_EMPTY_STEP = 3, 5


def optimizer(kind: OptimizerKind) -> OptimizerSpec:
    """Return the optimizer of all jobs, of the given kind."""
    return OptimizerSpec(kind, learning_rate=0.3, weight_decay=0.01, max_norm=0.8)


def lr_factor(step: int) -> float:
    """Return the LR factor of a step: it changes twice during the run."""
    return (1.0, 0.25, 0.5)[step * 3 // STEPS]


def gradient(step: int, rank: int, table: TableSpec) -> RowGradient:
    """Return what worker ``rank`` pushes: half of the table's rows, so two workers share many of them; or no rows."""
    random = np.random.default_rng((step, rank, table.rows))
    count = table.rows // 2
    if step == EMPTY_STEP or (step == HALF_EMPTY_STEP and rank == 0):
        count = 0
    rows_A = np.sort(random.choice(table.rows, count, replace=False)).astype(np.int64)
    return RowGradient(rows_A, random.normal(size=(count, table.dim)).astype(np.float32))


def addends(step: int, rank: int) -> FloatArray:
    """Return the values of worker ``rank`` in all-reduce ``step``: neither one float32 nor two can hold them."""
    index_N = np.arange(MAX_ALL_REDUCE_LENGTH, dtype=np.float64) + step
    values_N = np.where(index_N % 2 == 0, 1e15 + index_N, -index_N / 3) * (1 + rank)
    values_N[0] = step
    return values_N


def all_rows(store: MXNetStore) -> dict[str, FloatArray]:
    """Pull every row of every table."""
    return store.pull({table.name: np.arange(table.rows, dtype=np.int64) for table in TABLES})


def rejection(store: MXNetStore, rows: list[int], *, push: bool) -> str:
    """Return the store's error for a request for ``rows`` of the second table."""
    rows_A = np.array(rows, dtype=np.int64)
    name, dim = TABLES[1].name, TABLES[1].dim
    try:
        if push:
            store.push({name: RowGradient(rows_A, np.ones((len(rows), dim), np.float32))})
        else:
            store.pull({name: rows_A})
    except StoreError as error:
        return str(error)
    return ""


def work(store: MXNetStore) -> None:
    """Do everything that the tests check, in one job."""
    store.create(TABLES, optimizer(sys.argv[1]), SEED)  # type: ignore[arg-type]
    pulled = {f"{name}/start": block_AD for name, block_AD in all_rows(store).items()}
    for step in range(STEPS):
        store.set_lr_factor(lr_factor(step))
        store.push({table.name: gradient(step, store.rank, table) for table in TABLES})
        for name, block_AD in all_rows(store).items():
            pulled[f"{name}/{step}"] = block_AD
    rejections = [
        rejection(store, rows, push=push) for rows in ([0, TABLES[1].rows], [-1, 3]) for push in (False, True)
    ]
    sums = [store.all_reduce(addends(step, store.rank)) for step in range(ALL_REDUCES)]
    pulled |= {f"{name}/end": block_AD for name, block_AD in all_rows(store).items()}
    np.savez(Path(sys.argv[3]) / f"rank-{store.rank}.npz", rejections=rejections, sums=sums, **pulled)


if __name__ == "__main__":
    play_role(work, key_bytes=int(sys.argv[2]))
