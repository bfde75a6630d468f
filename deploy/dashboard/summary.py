"""How a run is, in figures: what 'crossfade status' prints and the page shows, computed from what its folder says."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil

from deploy.dashboard import formatting
from deploy.dashboard.alerts import Alert, find_alerts
from deploy.dashboard.process_history import RATE_SECONDS
from deploy.dashboard.run_reader import RunReader
from deploy.dashboard.runs import Runs
from kvstore.store import VALUE_BYTES
from trainer.runs.events import CheckpointSaved, RestartEvent

SILENT_SECONDS = 15.0
"""A command that tells its state every second, and has not for so long, is taken for dead or cut off."""
GONE_SECONDS = 3.0
"""After so long, its process is looked for on this host."""
OVER = ("done", "failed", "stopped", "lost", "unknown")
"""States in which nothing goes on. ``lost``: the command has gone without a word. ``unknown``: nothing tells."""


@dataclass
class ProcessRow:
    """One process of a run. What is not known, or does not exist there, is None."""

    name: str
    state: str
    host: str | None = None
    metrics: str | None = None
    resident_bytes: int | None = None
    memory_limit_bytes: int | None = None
    memory_available_bytes: int | None = None
    cpu: float | None = None
    rows: int | None = None
    held_bytes: int | None = None
    updated: int | None = None
    updated_per_second: float | None = None
    update_share: float | None = None
    examples_per_second: float | None = None


@dataclass
class Summary:
    """One run. Times are Unix times in seconds."""

    name: str
    path: str
    state: str
    message: str
    phase: str
    generation: int
    started: float | None
    updated: float | None
    elapsed_seconds: float | None
    step: int
    planned_steps: int | None
    epoch: int | None
    planned_epochs: int | None
    remaining_seconds: float | None
    examples_per_second: float | None
    steps_per_second: float | None
    loss: float | None
    best_metric: str
    eval_metric: float | None
    best_value: float | None
    best_epoch: int | None
    metrics: dict[str, dict[str, float]]
    traffic: dict[str, int]
    phase_seconds: dict[str, float]
    checkpoints: dict[str, Any]
    restarts: list[dict[str, Any]]
    processes: list[ProcessRow]
    alerts: list[Alert] = field(default_factory=list)

    @property
    def live(self) -> bool:
        """Whether something goes on."""
        return self.state not in OVER

    @property
    def progress(self) -> float:
        """The share of the planned steps that is behind; 1 once done, also where it stopped early."""
        if self.state == "done":
            return 1.0
        return min(1.0, self.step / self.planned_steps) if self.planned_steps else 0.0

    @property
    def dense_ratio(self) -> float | None:
        """How many times as much would have been pushed if gradients were dense."""
        pushed = self.traffic.get("bytes_pushed")
        return self.traffic["bytes_pushed_if_dense"] / pushed if pushed else None

    def to_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {**asdict(self), "progress": self.progress, "dense_ratio": self.dense_ratio}


def summarize(run: RunReader, now: float | None = None) -> Summary:
    """How ``run`` is at ``now``, as it was last read. Hold its ``lock``."""
    now = time.time() if now is None else now
    training, report = run.training, run.report
    state, message = _state(run, now)
    # A report of an earlier start says nothing of a run that was taken up.
    report = report if state == "done" else {}
    best_metric = str(run.setting("evaluate", "best_metric") or "ndcg@10")
    best = training.best(best_metric)
    evaluated = [epoch for epoch in training.epochs if epoch["valid"]]
    updated = max((value for value in (run.state.get("time"), training.last_time) if value is not None), default=None)
    started = min(
        (value for value in (training.first_time, run.state.get("started")) if value is not None), default=None
    )
    live = state not in OVER
    summary = Summary(
        name=run.name,
        path=str(run.path),
        state=state,
        message=message,
        phase=training.phase if live else "",
        generation=int(run.state.get("generation", 0)),
        started=started,
        updated=updated,
        elapsed_seconds=(now if live else updated or now) - started if started is not None else None,
        step=training.step,
        planned_steps=training.planned_steps,
        epoch=_whole(training.steps.last("epoch")) or (int(training.epochs[-1]["epoch"]) if training.epochs else None),
        planned_epochs=_whole(run.setting("train", "epochs")),
        remaining_seconds=None,
        examples_per_second=report.get("examples_per_second") or training.examples_per_second(),
        steps_per_second=training.steps_per_second(),
        loss=training.epochs[-1]["loss"] if training.epochs else training.steps.last("loss"),
        best_metric=best_metric,
        eval_metric=evaluated[-1]["valid"].get(best_metric) if evaluated else None,
        best_value=best[0] if best else None,
        best_epoch=best[1] if best else None,
        metrics=report.get("metrics") or ({"valid": evaluated[-1]["valid"]} if evaluated else {}),
        traffic=_traffic(run, report),
        phase_seconds=report.get("seconds_by_phase") or _phase_seconds(run),
        checkpoints=_checkpoints(run),
        restarts=_restarts(run),
        processes=_processes(run, now, live),
    )
    if live and summary.steps_per_second and summary.planned_steps:
        summary.remaining_seconds = (summary.planned_steps - summary.step) / summary.steps_per_second
    summary.alerts = find_alerts(run, summary, now)
    return summary


def read_summaries(runs: Runs) -> list[Summary]:
    """How all of ``runs`` are, read just now."""
    found = []
    for run in runs.readers():
        with run.lock:
            run.refresh()
            found.append(summarize(run))
    return found


def latest_first(summaries: Sequence[Summary]) -> list[Summary]:
    """Those that go on, then the others, each by when they began."""
    return sorted(summaries, key=lambda summary: (not summary.live, -(summary.started or 0.0), summary.name))


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _state(run: RunReader, now: float) -> tuple[str, str]:
    """The state of a run, and why it is over."""
    told = run.state
    if not told:
        return _guess(run, now)
    state, silent = told["state"], now - told["time"]
    if run.told_at is not None:  # by our own clock, where another host's may differ
        silent = min(silent, now - run.told_at)
    if state in OVER:
        return state, str(told.get("message", ""))
    if silent > GONE_SECONDS and _has_gone(told["command"]):
        return "lost", "the command that ran it has gone without a word: it was killed, or its machine stopped"
    if silent > SILENT_SECONDS:
        return "lost", f"no word of the command that runs it for {formatting.duration(silent)}"
    return state, ""


def _guess(run: RunReader, now: float) -> tuple[str, str]:
    """The same of roles that were started by hand, which have no command that tells how they are."""
    training = run.training
    if run.report:
        return "done", ""
    if training.stopped is not None:
        return "stopped", f"at step {training.stopped.step:,}"
    if training.last_time is not None and now - training.last_time < SILENT_SECONDS:
        return "running", ""
    return "unknown", "nothing in the folder says how it ended"


def _has_gone(command: dict[str, Any]) -> bool:
    """Whether the command ran on this host, and does not run any more."""
    if command.get("host") != socket.gethostname():
        return False
    try:
        return abs(psutil.Process(int(command["pid"])).create_time() - float(command["pid_started"])) > 1.0
    except psutil.NoSuchProcess:
        return True
    except (KeyError, TypeError, ValueError, psutil.Error):
        return False


def _traffic(run: RunReader, report: dict[str, Any]) -> dict[str, int]:
    traffic = run.training.traffic()
    return {name: int(report.get(name, value)) for name, value in traffic.items()} or {
        name: int(report[name]) for name in ("bytes_pulled", "bytes_pushed", "bytes_pushed_if_dense") if name in report
    }


def _phase_seconds(run: RunReader) -> dict[str, float]:
    """The first worker's seconds of training by phase: all phases if its process tells them, or those of steps."""
    for name in ("worker-0", "in-process"):
        if seconds := run.processes.loads.get(name, {}).get("phase_seconds"):
            return dict(seconds)
    return run.training.phase_seconds()


def _checkpoints(run: RunReader) -> dict[str, Any]:
    saved = [(time, save) for time, save in run.training.saves if isinstance(save, CheckpointSaved)]
    last_time, last = saved[-1] if saved else (None, None)
    return {
        "written": len(saved),
        "failed": len(run.training.saves) - len(saved),
        "last_step": last.step if last else None,
        "last_time": last_time,
        "last_bytes": last.bytes if last else None,
        "pause_seconds": sum(save.pause_seconds for _, save in saved),
    }


def _restarts(run: RunReader) -> list[dict[str, Any]]:
    """The restarts, with when they were where that is known."""
    logged = [(time, event) for time, event in run.processes.events if isinstance(event, RestartEvent)]
    times: dict[tuple[Any, Any], float] = {(event.generation, event.cause): time for time, event in logged}
    kept = run.restarts or [
        {"generation": event.generation, "cause": event.cause, "step": event.step} for _, event in logged
    ]
    return [{**each, "time": times.get((each.get("generation"), each.get("cause")))} for each in kept]


def _processes(run: RunReader, now: float, live: bool) -> list[ProcessRow]:
    told_at = run.state.get("time", now)
    dim = run.setting("model", "dim")
    # Of a run that is over, what it did in a second on the whole.
    over = RATE_SECONDS if live else math.inf
    rows = []
    for name, process in run.state.get("processes", {}).items():
        load = process["load"]
        row = ProcessRow(name, process["state"], process["host"], process["metrics"])
        for figure in ("resident_bytes", "memory_limit_bytes", "memory_available_bytes"):
            setattr(row, figure, load.get(figure))
        rates = run.processes.rates(name, told_at, load, over=over)
        row.cpu = rates.get("cpu")
        if held := load.get("held_bytes"):
            row.held_bytes = sum(sum(arrays.values()) for arrays in held.values())
            row.updated = sum(update["updated"] for update in load.get("updates", {}).values())
            row.updated_per_second, row.update_share = rates.get("updated"), rates.get("update_share")
            if isinstance(dim, int) and dim > 0:
                row.rows = sum(arrays.get("weights", 0) for arrays in held.values()) // (dim * VALUE_BYTES)
        if "examples" in load:
            row.examples_per_second = rates.get("examples")
        if not live:
            row.state = "done" if run.state.get("state") == "done" else "ended"
        rows.append(row)
    return rows
