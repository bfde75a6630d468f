"""Measure training throughput in process and on dist_sync, and the cost of dense updates.

    .venv/bin/python benchmarks/throughput.py [--repeats 3] [--steps 150]

The work: BPR triples (customer, track, one negative) on 1,000,000 customers and 100,000 tracks x 64, row-wise AdaGrad,
a batch of 16,384 over all workers, synthetic listening. The variants take turns within each repeat, so that load from
other processes affects all of them; medians are printed, and ratios to the first line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from kvstore.local import LocalStore
from kvstore.optimizer_spec import OptimizerSpec
from kvstore.optimizers import make_optimizer
from kvstore.store import RowGradient, TableSpec
from trainer.prepare.synthetic import write_synthetic
from trainer.prepare.synthetic_draws import SyntheticSpec

BATCH = 16_384
TABLES = [TableSpec("customer", 1_000_000, 64, 0.1), TableSpec("track", 100_000, 64, 0.1)]
VARIANTS = {
    "in process": [],
    "1 server, 1 worker": ["--servers", "1", "--workers", "1"],
    "2 servers, 2 workers": ["--servers", "2", "--workers", "2"],
}


def throughput_job(data: Path, steps: int) -> dict[str, Any]:
    """Return a job of ``steps`` steps on BPR triples of ``data``."""
    unweighted = {"query_frequency_power": 0.0, "item_frequency_power": 0.0}
    return {
        "name": "throughput",
        "data": {"path": str(data)},
        "model": {"dim": 64, "score": "dot", "temperature": 1.0},
        "loss": "bpr",
        "negatives": {"kind": "per_example", "count": 1},
        "optimizer": {"kind": "rowwise_adagrad", "learning_rate": 0.05, "schedule": "constant", "weight_decay": 0.0},
        "train": {"batch_size": BATCH, "epochs": 10, "max_steps": steps, "patience": None, **unweighted},
    }


def triples_per_second(job: Path, run_dir: Path, options: list[str]) -> float:
    """Run the job once and return its rate over the steps only, without setup and writing of embeddings."""
    command = [sys.executable, "-m", "crossfade", "train", str(job), "--run-dir", str(run_dir), "--overwrite", *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    report = json.loads((run_dir / "report.json").read_text())
    return float(report["examples_per_second"])


def step_seconds(dense: bool, steps: int) -> float:
    """Return the median seconds of pull and push in process, of the active rows or of dense gradients."""
    store, spec = LocalStore(), OptimizerSpec("rowwise_adagrad", learning_rate=0.05)
    store.create(TABLES, spec, seed=1)
    optimizers = {table.name: make_optimizer(spec, table.rows, table.dim) for table in TABLES}
    weights = {table.name: np.zeros((table.rows, table.dim), np.float32) for table in TABLES}
    all_rows = {table.name: np.arange(table.rows) for table in TABLES}
    generator = np.random.default_rng(1)
    seconds = []
    for _ in range(steps):
        uses = {"customer": BATCH, "track": 2 * BATCH}
        active = {t.name: np.unique(generator.integers(0, t.rows, uses[t.name])) for t in TABLES}
        begin = time.perf_counter()
        blocks = store.pull(active)
        if dense:
            for table in TABLES:
                gradient_ND = np.zeros((table.rows, table.dim), np.float32)
                gradient_ND[active[table.name]] = blocks[table.name]
                optimizers[table.name].update(weights[table.name], all_rows[table.name], gradient_ND)
        else:
            store.push({name: RowGradient(rows_A, blocks[name]) for name, rows_A in active.items()})
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data, job = Path(folder) / "data", Path(folder) / "job.yaml"
        spec = SyntheticSpec(queries=1_000_000, items=100_000, interactions=4_000_000, valid=0, test=0)
        write_synthetic(data, spec, seed=1)
        job.write_text(yaml.safe_dump(throughput_job(data, arguments.steps)))
        rates: dict[str, list[float]] = {name: [] for name in VARIANTS}
        for _ in range(arguments.repeats):
            for name, options in VARIANTS.items():
                rates[name].append(triples_per_second(job, Path(folder) / "run", options))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(f"{len(os.sched_getaffinity(0))} cores; medians of {arguments.repeats}")
    for name, rate in medians.items():
        print(f"{name:<22} {rate:>10,.0f} triples/s   {rate / medians['in process']:.2f} x")
    sparse, dense = (1e3 * step_seconds(dense, steps=20) for dense in (False, True))
    print(f"updates alone, in process, ms a step: {sparse:.1f} sparse, {dense:.1f} dense: {dense / sparse:.0f} x")


if __name__ == "__main__":
    main()
