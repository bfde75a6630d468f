"""Measure what a step costs a worker that holds a shard of the tables, more than one that holds them alone.

    NUMBA_NUM_THREADS=1 .venv/bin/python benchmarks/rank_costs.py [--repeats 60]

Ranks, processes of one host with a thread each, pull and push the same number of random rows. The processor time of
each step is compared with that of a store in process; of all steps the fastest fifth counts, since other work on the
machine makes the others slower. The differences are fitted, like those of step_costs.py, to a step, an active row, a
peer, and a value that travels; with the costs in process they are ``SHARDED`` of deploy/capacity/step_time.py.

Shapes: A rows, M measurements, F factors of costs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
from step_costs import TABLE_ROWS, fit

from crossfade.base.arrays import FloatArray
from crossfade.deploy.capacity.step_time import IN_PROCESS, Costs
from crossfade.kvstore.local import LocalStore
from crossfade.kvstore.optimizer_spec import OptimizerSpec
from crossfade.kvstore.sharded.ranks import Ranks
from crossfade.kvstore.sharded.store import ShardedStore
from crossfade.kvstore.store import RowGradient, RowStore, TableSpec

RANKS = (2, 4, 8)
SIZES = ((2_000, 64), (12_000, 16), (12_000, 64), (12_000, 256), (40_000, 64))
"""Rows of a rank in a step, and columns."""
COUNTED = 0.2


class FolderMeeting:
    """Where ranks of one machine find each other: files in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, key: str, value: bytes) -> None:
        """Store a value."""
        (self._folder / f"{key}.part").write_bytes(value)
        (self._folder / f"{key}.part").rename(self._folder / key)

    def get(self, key: str) -> bytes:
        """Return a value once there is one."""
        while not (self._folder / key).exists():
            time.sleep(0.01)
        return (self._folder / key).read_bytes()


def step_times(store: RowStore, rank: int, rows: int, dim: int, repeats: int) -> list[float]:
    """Return the processor seconds of each of ``repeats`` steps of ``store``."""
    tables = [TableSpec(f"table-{number}", count, dim, 0.1) for number, count in enumerate(TABLE_ROWS)]
    store.create(tables, OptimizerSpec(kind="rowwise_adagrad", learning_rate=0.05), seed=1)
    draw, found = np.random.default_rng(rank), []
    for _ in range(repeats):
        asked = {table.name: np.unique(draw.integers(0, table.rows, rows // 2)) for table in tables}
        gradients = {name: np.full((len(rows_A), dim), 1e-3, np.float32) for name, rows_A in asked.items()}
        begin = time.process_time()
        store.pull(asked)
        store.push({name: RowGradient(rows_A, gradients[name]) for name, rows_A in asked.items()})
        found.append(time.process_time() - begin)
    return found


def _run_rank(folder: Path, rank: int, num_ranks: int, size: tuple[int, int], repeats: int) -> None:
    store = ShardedStore(Ranks.meet(FolderMeeting(folder), "secret", rank, num_ranks, "127.0.0.1", 60.0))
    np.save(folder / f"times-{rank}.npy", step_times(store, rank, *size, repeats))
    store.close()


def measure(num_ranks: int, size: tuple[int, int], repeats: int) -> float:
    """Return the processor seconds of a step of a rank; of one rank, in process."""
    if num_ranks == 1:
        return _fastest(np.array([step_times(LocalStore(0, 1), 0, *size, repeats)]))
    with tempfile.TemporaryDirectory() as folder:
        started = [
            multiprocessing.get_context("spawn").Process(
                target=_run_rank, args=(Path(folder), rank, num_ranks, size, repeats)
            )
            for rank in range(num_ranks)
        ]
        for process in started:
            process.start()
        for process in started:
            process.join()
        return _fastest(np.array([np.load(Path(folder) / f"times-{rank}.npy") for rank in range(num_ranks)]))


def _fastest(seconds_RN: FloatArray) -> float:
    return float(np.quantile(seconds_RN[:, 2:], COUNTED / 2))


def main() -> int:
    """Measure, fit, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=60, metavar="N", help="steps of a size (default: %(default)s)")
    repeats = parser.parse_args().repeats
    factors, seconds = [], []
    for size in SIZES:
        alone = measure(1, size, repeats)
        for ranks in RANKS:
            found = measure(ranks, size, repeats)
            rows, dim = size
            print(
                f"{rows:,} rows x {dim}, {ranks} ranks: {1e3 * found:.2f} ms, {1e3 * alone:.2f} in process", flush=True
            )
            factors.append([1.0, rows, 0.0, ranks - 1, rows * dim * (ranks - 1) / ranks, 0.0, 0.0])
            seconds.append(found - alone)
    more = Costs(*fit(np.array(factors), np.array(seconds)))
    costs = replace(IN_PROCESS, step=IN_PROCESS.step + more.step, row=IN_PROCESS.row + more.row)
    costs = replace(costs, key=more.key, merge=more.merge)
    print(f"SHARDED = {Costs(*(float(f'{cost:.3g}') for cost in astuple(costs)))}")
    for factors_F, second in zip(factors, seconds, strict=True):
        print(f"measured {1e3 * second:.2f} ms more, fitted {1e3 * float(np.dot(factors_F, astuple(more))):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
