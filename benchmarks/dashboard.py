"""Measure the cost of reading a run of 400,000 events for the dashboard, and of writing its state while it trains.

.venv/bin/python benchmarks/dashboard.py
"""

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

from crossfade.deploy.cluster.process_metrics import process_metrics
from crossfade.deploy.cluster.state_writer import StateWriter
from crossfade.deploy.dashboard import charts, run_reader
from crossfade.deploy.dashboard.charts import COLORS, RunView
from crossfade.deploy.dashboard.run_reader import RunReader
from crossfade.deploy.dashboard.summary import summarize
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.config.loading import check_job
from crossfade.trainer.config.schema import DatasetSize, resolve
from crossfade.trainer.runs.run_folder import RunFolder
from crossfade.trainer.training.worker_metrics import TrainingMetrics

LINES = 400_000
REPEATS = 200
PHASES = ("data", "sample", "pull", "gradients", "push")


def step(number: int) -> bytes:
    event = {
        "time": 1.7e9 + number,
        "event": "step",
        "epoch": 1 + number // 5000,
        "step": number * 20,
        "steps": LINES * 20,
        "examples": number * 20 * 16384,
        "loss": 1.0 / (1 + number),
        "learning_rate": 0.1,
        "local_examples": 16384,
        "rows": {"customer": 15000, "track": 12000},
        "seconds": dict.fromkeys(PHASES, number * 0.01),
    }
    return json.dumps(event).encode() + b"\n"


def write(folder: Path) -> int:
    (folder / "job.yaml").write_text("name: long\nevaluate: {best_metric: ndcg@10}\n")
    with (folder / "events.jsonl").open("wb") as file:
        file.writelines(step(number) for number in range(1, LINES + 1))
        return file.tell()


def timed(label: str, call: object) -> None:
    begin, used = time.perf_counter(), time.process_time()
    call()  # type: ignore[operator]
    seconds, used = time.perf_counter() - begin, time.process_time() - used
    print(f"{label:<34}{seconds:>8.3f} s, {used:.3f} CPU s")


def print_state_cost(folder: Path) -> None:
    """Print what each process spends on its load snapshot, and 'crossfade train' on the state of the run."""
    metrics = process_metrics("long", "in-process")
    tables = [TableSpec("customer", 100, 8, 0.1), TableSpec("track", 50, 8, 0.1)]
    size = DatasetSize(queries=100, items=50, interactions=1_000, is_grouped=False)
    job = resolve(check_job({"name": "long", "data": {"path": "nowhere"}}, "here"), size)
    metrics.register("training", TrainingMetrics(job, tables, 0))
    own = {"state": "running", "host": "here", "metrics": None}
    with StateWriter(RunFolder(folder)) as state:
        state.watch(
            lambda: {"state": "running", "generation": 1, "processes": {"one": {**own, "load": metrics.snapshot()}}}
        )
        for label, call in (("a load, every 2 s", metrics.snapshot), ("a state, every second", state._write)):
            used = time.process_time()
            for _ in range(REPEATS):
                call()
            print(f"{label:<34}{1000 * (time.process_time() - used) / REPEATS:>8.2f} CPU ms")


def main() -> None:
    run_reader.REFRESH_SECONDS = 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        written = write(path)
        print(f"{os.cpu_count()} cores; {LINES:,} lines, {written / 1e6:,.0f} MB")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        run = RunReader(path, "long")
        timed("read all", run.refresh)
        with (path / "events.jsonl").open("ab") as file:
            file.writelines(step(number) for number in range(LINES + 1, LINES + 3))
        timed("read two more lines", run.refresh)
        shown = [RunView(run, summarize(run), COLORS[0])]
        timed("summarize", lambda: summarize(run))
        timed("draw", lambda: [draw(shown, "step") for draw in (charts.loss, charts.eval_metric, charts.throughput)])
        print_state_cost(path)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"{'memory':<34}{(after - before) / 1024:>8.0f} MiB")


if __name__ == "__main__":
    sys.exit(main())
