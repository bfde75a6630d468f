"""Compile the kernels of usual runs when the package is installed, as portable code (``kvstore/portable_kernels.py``).

    python -m crossfade.precompile [defaults]

It trains on a few random events, in one process and as a worker that holds tables, so that kernels are compiled for the
types that runs have, and writes the code beside the modules of the package; with ``defaults``, only those of a job of
defaults. ``make`` and the image run it. Without it, the first run compiles these kernels from Python.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from crossfade.api.fit import fit
from crossfade.kvstore import portable_kernels
from crossfade.kvstore.jit import KERNELS
from crossfade.kvstore.sharded.kernels import gather_rows, scatter_rows
from crossfade.kvstore.sharded.ranks import Ranks
from crossfade.kvstore.sharded.store import ShardedStore
from crossfade.terminal import print_line
from crossfade.trainer.model.pool_kernels import add_to
from crossfade.trainer.runs.run_folder import RunFolder
from crossfade.trainer.training.run import run_training

_EVENTS, _QUERIES, _ITEMS, _DIM = 40_000, 2_000, 3_000, 16
_PER_EXAMPLE = {"negatives.kind": "per_example", "negatives.count": 1}
JOBS: tuple[Mapping[str, Any], ...] = (
    {},
    {"negatives.kind": "in_batch"},
    {"loss": "bpr", "negatives.count": 64},
    {"loss": "bpr", **_PER_EXAMPLE},
    {"loss": "bpr", **_PER_EXAMPLE, "optimizer.kind": "rowwise_adagrad"},
)
"""Keys of jobs beside their defaults: those of the first steps in the documentation."""


def _train(events: pa.Table, settings: Mapping[str, Any]) -> None:
    """Train, evaluate, and recommend; then train as the only worker that holds tables."""
    model = fit(
        events,
        query="query",
        item="item",
        test="random:0.1",
        dim=_DIM,
        epochs=1,
        settings=settings,
        progress=False,
    )
    model.recommend(["0"], k=10, diversity=0.5)
    model.similar(["0"])
    folder = RunFolder(Path(model.source).with_name("worker"))
    with folder.open_run(model.job):
        run_training(model.job, folder, servers=ShardedStore(Ranks(0, {})))


def _call_others() -> None:
    """Call the kernels of several workers that one worker, or a small training, does not call."""
    rows_1D, positions_1 = np.zeros((1, _DIM), np.float32), np.zeros(1, np.int64)
    gather_rows(rows_1D, rows_1D, positions_1)
    gather_rows(rows_1D, rows_1D, positions_1.astype(np.uint32))
    scatter_rows(rows_1D, positions_1, rows_1D)
    add_to(rows_1D, rows_1D)


def main(arguments: Sequence[str]) -> int:
    """Write the file; return 0."""
    jobs = JOBS[:1] if "defaults" in arguments else JOBS
    random = np.random.default_rng(1)
    columns = {"query": random.integers(_QUERIES, size=_EVENTS), "item": random.integers(_ITEMS, size=_EVENTS)}
    events = pa.table({name: pa.array(ids).cast(pa.string()) for name, ids in columns.items()})
    with portable_kernels.compiling_anew():
        for settings in jobs:
            _train(events, settings)
        _call_others()
    print_line(f"{portable_kernels.install(KERNELS)} kernels: {portable_kernels.FILE}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
