"""Summarize a run in figures, for 'crossfade status' and for the page.

for summary in latest_first(read_summaries(Runs([Path("runs")]))):
    print(summary.name, summary.state, summary.loss)
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from crossfade.deploy.dashboard.alerts import find_alerts
from crossfade.deploy.dashboard.last_failure import find_failure
from crossfade.deploy.dashboard.process_rows import process_rows
from crossfade.deploy.dashboard.run_figures import Summary
from crossfade.deploy.dashboard.run_reader import ReportFile, RunReader
from crossfade.deploy.dashboard.run_state import ENDED, find_state
from crossfade.deploy.dashboard.runs import Runs
from crossfade.trainer.runs.events import CheckpointSaved, RestartEvent

DEFAULT_METRIC = "ndcg@10"
_TRAFFIC_BYTES = ("bytes_pulled", "bytes_pushed", "dense_equivalent_bytes_pushed")


def summarize(run: RunReader, now: float | None = None) -> Summary:
    """Summarize ``run`` as it was last read, at the Unix time ``now``. Hold its ``lock``."""
    now = time.time() if now is None else now
    training = run.training
    state, message = find_state(run, now)
    live = state not in ENDED
    report = _report(run, state)
    best_metric = str(run.setting("evaluate", "best_metric") or DEFAULT_METRIC)
    best_value, best_epoch = training.best(best_metric) or (None, None)
    valid = training.evaluated[-1].valid if training.evaluated else {}
    started, updated = _time_range(run)
    steps_per_second = training.steps_per_second()
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
        remaining_seconds=_remaining_seconds(run, steps_per_second) if live else None,
        examples_per_second=report.examples_per_second or training.examples_per_second(),
        steps_per_second=steps_per_second,
        loss=training.epochs[-1].loss if training.epochs else training.steps.last("loss"),
        best_metric=best_metric,
        eval_metric=valid.get(best_metric),
        best_value=best_value,
        best_epoch=best_epoch,
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
        failure=find_failure(run, state, message),
        processes=process_rows(run, live=live),
        run_id=run.identity.id,
    )
    summary.alerts = find_alerts(run, summary, now)
    return summary


def _report(run: RunReader, state: str) -> ReportFile:
    """Return the report of a finished run: that of an earlier start does not describe a run that was resumed."""
    return run.report if state == "done" and run.report is not None else ReportFile()


def read_summaries(runs: Runs) -> list[Summary]:
    """Refresh all of ``runs`` and summarize them."""
    found = []
    for run in runs.readers():
        with run.lock:
            run.refresh()
            found.append(summarize(run))
    return found


def latest_first(summaries: Sequence[Summary]) -> list[Summary]:
    """Sort live runs before the others, and each group by its start, the latest first."""
    return sorted(summaries, key=lambda summary: (not summary.live, -(summary.started or 0.0), summary.name))


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


def _remaining_seconds(run: RunReader, steps_per_second: float | None) -> float | None:
    planned = run.training.planned_steps
    return (planned - run.training.step) / steps_per_second if planned and steps_per_second else None


def _traffic(run: RunReader, *, done: bool) -> dict[str, int]:
    """Return the totals of all workers. The report's bytes include what was moved after the last event."""
    traffic = run.training.traffic()
    if done and run.report is not None:
        traffic |= {name: getattr(run.report, name) for name in _TRAFFIC_BYTES}
    return traffic


def _phase_seconds(run: RunReader) -> dict[str, float]:
    """Return the first worker's seconds by phase: all phases if its process reports them, else those of steps."""
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
    """Return the restarts, each with its Unix time if it is known."""
    logged = [(time, event) for time, event in run.processes.events if isinstance(event, RestartEvent)]
    times: dict[tuple[Any, Any], float] = {(event.generation, event.cause): time for time, event in logged}
    restarts = run.restarts or [
        {"generation": event.generation, "cause": event.cause, "step": event.step + (event.lost_steps or 0)}
        | {"lost_steps": event.lost_steps, "lost_seconds": event.lost_seconds}
        for _, event in logged
    ]
    return [{**each, "time": times.get((each.get("generation"), each.get("cause")))} for each in restarts]
