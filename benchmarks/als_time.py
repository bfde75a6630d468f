"""Compare the time to a ranking quality with that of implicit's ALS, on MovieLens-1M, in turns.

    .venv/bin/python benchmarks/als_time.py --data FOLDER         installs implicit into build/peers/

FOLDER, or CROSSFADE_DATA, has movielens_1m/ with train.tsv and test.tsv (columns user_procid and item_procid, numbered
from 0): 80 % and 20 % of the interactions of customers and items with ten or more. ALS has the settings that were best
on test (64 factors, alpha 3, regularization 40); Crossfade has its defaults, and --epochs. Times are of training alone,
on as many threads as there are cores, without the compilation of kernels and without evaluation. Both are ranked on
test: all items but those of train, ndcg@20.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow import csv
from suite.environments import ensure_environment
from suite.processes import ROOT, run_module

FOLDER = ROOT / "build" / "als"
ITERATIONS = (5, 10, 15, 20, 25, 30)
TIMEOUT = 600.0


def prepare(data: Path) -> dict[str, Any]:
    """Prepare the dataset and the IDs that ALS reads, unless they exist; return what ALS needs of them."""
    sizes = [0, 0]
    FOLDER.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        table = csv.read_csv(data / f"{split}.tsv", parse_options=csv.ParseOptions(delimiter="\t"))
        for side, (name, column) in enumerate((("customer", "user_procid"), ("item", "item_procid"))):
            ids_N = table[column].to_numpy()
            np.save(FOLDER / f"{split}-{name}.npy", ids_N)
            sizes[side] = max(sizes[side], int(ids_N.max()) + 1)
    if not (FOLDER / "data" / "manifest.json").exists():
        splits = ("--train", data / "train.tsv", "--valid", data / "test.tsv")
        columns = ("--query", "customer=user_procid", "--item", "item=item_procid")
        crossfade("prepare", *splits, *columns, "--out", FOLDER / "data")
    return {"ids": str(FOLDER), "customers": sizes[0], "items": sizes[1], "threads": os.cpu_count()}


def crossfade(*arguments: object) -> None:
    """Run a ``crossfade`` command; its output is shown if it fails."""
    command = [sys.executable, "-m", "crossfade", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout)


def train(epochs: int) -> tuple[float, float]:
    """Train by the defaults; return the seconds of training without evaluation, and ndcg@20."""
    job = FOLDER / "job.yaml"
    job.write_text(
        f"name: als\ndata: {{path: {FOLDER / 'data'}, query: customer, item: item}}\n"
        "evaluate: {k: [20], best_metric: ndcg@20, exclude_splits: [train], max_queries: all}\nmetrics: {port: null}\n"
        f"train: {{epochs: {epochs}, eval_every_epochs: {epochs}}}\n",
        encoding="utf-8",
    )
    crossfade("train", job, "--run-dir", FOLDER / "run", "--overwrite")
    report = json.loads((FOLDER / "run" / "report.json").read_text(encoding="utf-8"))
    phases = report["seconds_by_phase"]
    return sum(phases.values()) - phases["evaluate"] - phases["save"], report["metrics"]["valid"]["ndcg@20"]


def main() -> None:
    """Measure both in turns, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("CROSSFADE_DATA"), help="folder of movielens_1m/")
    parser.add_argument("--epochs", type=int, nargs="+", default=[12, 16, 40], help="epochs of Crossfade's trainings")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; the medians are printed (default: 3)")
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("name the folder of movielens_1m/ with --data or CROSSFADE_DATA")
    task = prepare(Path(arguments.data) / "movielens_1m")
    task |= {"factors": 64, "alpha": 3.0, "regularization": 40.0, "iterations": ITERATIONS}
    python = ensure_environment("implicit", install=True)
    results: dict[str, list[tuple[float, float]]] = {}
    train(1)  # compiles the kernels
    for _ in range(arguments.rounds):
        reached = run_module(python, "peers.implicit_als", task, TIMEOUT)["reached"]
        for iterations, result in zip(ITERATIONS, reached, strict=True):
            results.setdefault(f"implicit ALS, {iterations} iterations", []).append(tuple(result))
        for epochs in arguments.epochs:
            results.setdefault(f"Crossfade, {epochs} epochs", []).append(train(epochs))
    for name, measured in results.items():
        seconds, values = zip(*measured, strict=True)
        print(f"{name:28} {statistics.median(seconds):7.2f} s  ndcg@20 {statistics.median(values):.4f}")


if __name__ == "__main__":
    main()
