"""Write run folders with the contents that a test chooses."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PHASES = ("data", "sample", "pull", "gradients", "push")
BEGAN = 1_700_000_000.0
JOB = """\
name: plays
model: {dim: 8}
evaluate: {best_metric: ndcg@10}
train: {epochs: 4}
checkpoint: {interval_seconds: 300}
"""


def step(number: int, *, at: float, loss: float = 0.5, examples: int | None = None, steps: int = 100) -> dict[str, Any]:
    return {
        "time": BEGAN + at,
        "event": "step",
        "epoch": 1 + number // 25,
        "step": number,
        "steps": steps,
        "examples": number * 10 if examples is None else examples,
        "loss": loss,
        "learning_rate": 0.1,
        "local_examples": 10,
        "rows": {"customer": 4, "track": 7},
        "seconds": {phase: at * (index + 1) / 100 for index, phase in enumerate(PHASES)},
    }


def epoch(number: int, *, at: float, step: int, quality: float | None = None, loss: float = 0.4) -> dict[str, Any]:
    valid = {} if quality is None else {"valid": {"ndcg@10": quality, "queries": 3}}
    return {"time": BEGAN + at, "event": "epoch", "epoch": number, "step": step, "loss": loss, **valid}


def totals(step: int, *, at: float, pushed: int, dense: int) -> dict[str, Any]:
    rows = {"rows_pulled": 10, "rows_pushed": 10}
    moved = {"bytes_pulled": pushed, "bytes_pushed": pushed, "dense_equivalent_bytes_pushed": dense}
    return {"time": BEGAN + at, "event": "totals", "step": step, **rows, **moved}


def training_from(step: int, *, at: float) -> dict[str, Any]:
    return {"time": BEGAN + at, "event": "phase", "name": "training", "step": step, "rows_from": None}


def load(*, pid: int = 7, cpu: float = 1.0, updated: int | None = None, **more: Any) -> dict[str, Any]:
    rows = (
        {}
        if updated is None
        else {
            "updates": {"track": {"updated": updated, "seconds": updated / 1000}},
            "held_bytes": {"track": {"weights": 320, "first": 320}},
        }
    )
    memory = {"memory_limit_bytes": 1000, "memory_available_bytes": 500}
    return {"pid": pid, "resident_bytes": 100, "cpu_seconds": cpu, **memory, **rows, **more}


def state(kind: str, *, at: float, generation: int = 1, message: str = "", **processes: Any) -> dict[str, Any]:
    """Return the contents of state.json; each process is given by its state and load."""
    states = {
        name.replace("_", "-"): {"state": role_state, "host": "here", "metrics": None, "load": role_load}
        for name, (role_state, role_load) in processes.items()
    }
    command = {"host": "another host", "pid": 1, "pid_started": 0.0}
    return {
        "time": BEGAN + at,
        "started": BEGAN,
        "state": kind,
        "message": message,
        "generation": generation,
        "command": command,
        "processes": states,
    }


def write_run(folder: Path, *, metrics: Iterable[dict[str, Any]] = (), job: str = JOB, **files: Any) -> Path:
    """Write a run folder; ``files`` are ``state``, ``report``, ``restarts`` or ``processes``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.yaml").write_text(job)
    (folder / "run.json").write_text('{"id": "1", "name": "plays"}\n')
    add(folder / "events.jsonl", *metrics)
    add(folder / "processes.jsonl", *files.pop("processes", ()))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def add(path: Path, *events: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)
