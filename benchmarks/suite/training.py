"""Measure ``crossfade train`` itself: reading Parquet, sampling, pulling, gradients, and pushing.

    result = train(job, run_dir, servers=2, workers=2)
    result["triples_per_second"], result["step_ms"]

The rate is that of the steps after the warm-up, between two step events of the run: reading and everything else that
happens meanwhile is part of it, setup and writing are not.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

from suite.processes import MeasurementError, run_command

BATCH = 16_384
WARM_SECONDS = 1.0
TIMEOUT_SECONDS = 900.0


def bpr_job(dataset: Path, *, steps: int, batch: int = BATCH, dim: int = 64, negatives: int = 1) -> dict[str, Any]:
    """Return a job of ``steps`` steps on BPR triples: dot products, row-wise AdaGrad, every interaction alike."""
    return {
        "name": "bench",
        "data": {"path": str(dataset)},
        "model": {"dim": dim, "score": "dot", "temperature": 1.0},
        "loss": "bpr",
        "negatives": {"kind": "per_example", "count": negatives},
        "optimizer": {"kind": "rowwise_adagrad", "learning_rate": 0.05, "schedule": "constant", "weight_decay": 0.0},
        "train": {
            "batch_size": batch,
            "epochs": steps,  # more than enough, however small the data
            "max_steps": steps,
            "patience": None,
            "query_frequency_power": 0.0,
            "item_frequency_power": 0.0,
            "save_embeddings": "none",
        },
    }


def softmax_job(dataset: Path, *, steps: int, batch: int, dim: int, partitions: int) -> dict[str, Any]:
    """Return the same job with a softmax over the tracks of the batch, each of ``partitions`` by itself."""
    job = bpr_job(dataset, steps=steps, batch=batch, dim=dim)
    job["data"]["partitions"] = partitions
    return job | {"loss": "softmax", "negatives": {"kind": "in_batch"}}


def train(job: dict[str, Any], run_dir: Path, *, servers: int = 0, workers: int = 0) -> dict[str, Any]:
    """Run the job once; return its rate, the time of a step, and the rows it moved per second.

    Without servers, several workers hold the tables, and one, or 0, is one process that trains.

    Raises:
        MeasurementError: it failed.
    """
    run_command(train_command(job, run_dir, servers, workers), TIMEOUT_SECONDS)
    return summarize(read_report(run_dir), read_events(run_dir, "step"))


def train_command(job: dict[str, Any], run_dir: Path, servers: int = 0, workers: int = 0) -> list[str]:
    """Write the job next to ``run_dir``, without an earlier run, and return the command that trains it."""
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(run_dir, ignore_errors=True)
    file = run_dir.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(job), encoding="utf-8")
    command = [sys.executable, "-m", "crossfade", "train", str(file), "--run-dir", str(run_dir), "--overwrite"]
    if servers or workers > 1:
        command += ["--servers", str(servers), "--workers", str(workers)]
        # Not ``auto``, which takes another store where MXNet is not installed.
        command += ["--set", f"cluster.store={'mxnet' if servers else 'sharded'}"]
    return command


def read_report(run_dir: Path) -> dict[str, Any]:
    """Return the report of a run that has ended."""
    report: dict[str, Any] = json.loads((run_dir / "report.json").read_text(encoding="utf-8"))
    return report


def read_events(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    """Return the events of a kind that a run has written so far; of steps, about one per second."""
    file = run_dir / "events.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
    events = [json.loads(line) for line in lines if line.endswith("\n")]
    return [event for event in events if event["event"] == kind]


def summarize(report: dict[str, Any], steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Compute the result from the report and the step events of a run.

    Its ``seconds`` are those after the warm-up; 0 where the run was too short, and the rate is that of all its steps.
    """
    warm = [event for event in steps if event["time"] >= steps[0]["time"] + WARM_SECONDS] if steps else []
    if len(warm) >= 2:
        first, last = warm[0], warm[-1]
        seconds, taken = last["time"] - first["time"], last["step"] - first["step"]
        examples = last["examples"] - first["examples"]
    elif report["steps"]:
        seconds, taken, examples = report["train_seconds"], report["steps"], report["examples"]
    else:
        raise MeasurementError("the run took no step")
    rate = examples / seconds
    return {
        "triples_per_second": rate,
        "rows_per_second": rate * report["rows_pulled"] / report["examples"],
        "step_ms": 1e3 * seconds / taken,
        "seconds": seconds if len(warm) >= 2 else 0.0,
    }
