"""Summarize a run in figures and alerts, for 'crossfade status' and for the page.

runs = Runs([Path("runs")])
with runs.lock:
    for run, summary in read_summaries(runs):
        print(summary.name, summary.state, summary.loss, summary.alerts)
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from typing import Any

from crossfade.deploy.dashboard.figures import ENDED, LastFailure, ProcessRow, Restart, Summary
from crossfade.deploy.dashboard.run_reader import ProcessState, ReportFile, RunReader, Runs
from crossfade.deploy.dashboard.run_state import find_alerts, find_state
from crossfade.kvstore.store import VALUE_BYTES
from crossfade.trainer.runs.events import CheckpointSaved, FailureEvent, RestartEvent
from crossfade.trainer.runs.shown_metrics import error_of

DEFAULT_METRIC = "ndcg@10"
_TRAFFIC_BYTES = ("bytes_pulled", "bytes_pushed", "dense_equivalent_bytes_pushed")


def summarize(run: RunReader, now: float | None = None) -> Summary:
    """Summarize ``run`` as it was last read, at the Unix time ``now``."""
    now = time.time() if now is None else now
    training = run.training
    state, message = find_state(run, now)
    live = state not in ENDED
    report = _report(run, state)
    best_metric = str(run.setting("evaluate", "best_metric") or DEFAULT_METRIC)
    best = training.best(best_metric)
    valid = training.evaluated[-1].valid if training.evaluated else {}
    started, updated = _time_range(run)
    summary = Summary(
        name=run.name,
        path=str(run.path),
        state=state,
        message=message,
        phase=training.phase if live else "",
        generation=run.state.generation if run.state else 0,
        started=started,
        updated=updated,
        elapsed_seconds=(now if live else updated or now) - started if started is not None else None,
        step=training.step,
        planned_steps=training.planned_steps,
        epoch=_epoch(run),
        planned_epochs=_integer(run.setting("train", "epochs")),
        remaining_seconds=training.remaining_seconds() if live else None,
        examples_per_second=report.examples_per_second or training.examples_per_second(),
        steps_per_second=training.steps_per_second(),
        loss=training.epochs[-1].loss if training.epochs else training.steps.last("loss"),
        best_metric=best_metric,
        eval_metric=valid.get(best_metric),
        best_value=best.valid[best_metric] if best else None,
        best_error=best.valid.get(error_of(best_metric)) if best else None,
        best_epoch=best.epoch if best else None,
        stopped_early=report.stopped_early,
        advice=report.advice,
        metrics=report.metrics or ({"valid": valid} if valid else {}),
        baselines=report.baselines.metrics,
        baseline_notes=report.baselines.notes,
        task=str(run.setting("evaluate", "task") or ""),
        traffic=_traffic(run, done=state == "done"),
        phase_seconds=report.seconds_by_phase or _phase_seconds(run),
        checkpoints=_checkpoints(run),
        restarts=_restarts(run),
        failure=_last_failure(run),
        processes=_processes(run, state, live=live),
        run_id=run.identity.id,
    )
    summary.shortfall, summary.alerts = report.baselines.shortfall, find_alerts(run, summary, now)
    return summary


def _report(run: RunReader, state: str) -> ReportFile:
    """Return the report of a finished run; a run that was resumed still has the report of its earlier start."""
    return run.report if state == "done" and run.report is not None else ReportFile()


def read_summaries(
    runs: Runs, seconds: float = math.inf, shown: Collection[str] = ()
) -> list[tuple[RunReader, Summary]]:
    """Refresh all of ``runs`` and summarize them, the latest first; live runs come before the others.

    The runs ``shown`` are read first, then the latest. Further calls read what takes more than ``seconds``. Hold the
    ``lock`` of ``runs``.
    """
    until = time.monotonic() + seconds
    found = []
    for run in sorted(runs.readers(), key=lambda run: (run.name not in shown, -(run.identity.started or 0.0))):
        run.refresh(until)
        found.append((run, summarize(run)))
    return sorted(found, key=lambda each: (not each[1].live, -(each[1].started or 0.0), each[1].name))


def _time_range(run: RunReader) -> tuple[float | None, float | None]:
    """Return the Unix times of the run's start and its last update; None if unknown."""
    state = run.state
    starts = (run.identity.started, run.training.first_time, state.started if state else None)
    updates = (run.training.last_time, state.time if state else None)
    return (
        min((value for value in starts if value is not None), default=None),
        max((value for value in updates if value is not None), default=None),
    )


def _integer(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _epoch(run: RunReader) -> int | None:
    """Return the latest epoch: of the log's sample of steps, or one that has ended since."""
    steps, epochs = run.training.steps, run.training.epochs
    if epochs and epochs[-1].step >= (steps.last("step") or 0):
        return epochs[-1].epoch
    return _integer(steps.last("epoch"))


def _traffic(run: RunReader, *, done: bool) -> dict[str, int]:
    """Return the totals of all workers. The report's bytes include what was moved after the last event."""
    totals = run.training.totals
    traffic: dict[str, int] = {} if totals is None else totals.model_dump(exclude={"step"})
    if done and run.report is not None:
        traffic |= {name: getattr(run.report, name) for name in _TRAFFIC_BYTES}
    return traffic


def _phase_seconds(run: RunReader) -> dict[str, float]:
    """Return the seconds by phase that the first worker has reported."""
    processes = run.state.processes if run.state else {}
    return next((processes[name].load.phase_seconds for name in ("worker-0", "in-process") if name in processes), {})


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


def _restarts(run: RunReader) -> list[Restart]:
    found = []
    for at, event in run.job_events:
        if isinstance(event, RestartEvent):
            step = event.step + (event.lost_steps or 0)
            found.append(Restart(at, event.generation, event.cause, step, event.lost_steps, event.lost_seconds))
    return found


def _last_failure(run: RunReader) -> LastFailure | None:
    found: LastFailure | None = None
    for at, event in run.job_events:
        if isinstance(event, FailureEvent):
            found = LastFailure(at, event)
        elif isinstance(event, RestartEvent) and found is not None and event.lost_steps is not None:
            # Newer checkpoints may not have been usable: then more was lost than the failure has.
            lost = {"lost_steps": event.lost_steps, "lost_seconds": event.lost_seconds}
            found = LastFailure(found.time, found.event.model_copy(update=lost))
    return found


def _processes(run: RunReader, state: str, *, live: bool) -> list[ProcessRow]:
    """Return the latest figures of each process in the state file."""
    processes = run.state.processes.items() if run.state else ()
    ended = "done" if state == "done" else "ended"
    return [_process(run, name, process, process.state if live else ended) for name, process in processes]


def _process(run: RunReader, name: str, process: ProcessState, state: str) -> ProcessRow:
    load, dim = process.load, run.setting("model", "dim")
    weights = sum(arrays.get("weights", 0) for arrays in load.held_bytes.values())
    return ProcessRow(
        name,
        state,
        process.host,
        process.metrics,
        load.resident_bytes,
        load.memory_limit_bytes,
        load.memory_available_bytes,
        rows=weights // (dim * VALUE_BYTES) if load.held_bytes and isinstance(dim, int) and dim > 0 else None,
        held_bytes=sum(sum(arrays.values()) for arrays in load.held_bytes.values()) if load.held_bytes else None,
        updated=sum(table.updated for table in load.updates.values()) if load.held_bytes else None,
    )
