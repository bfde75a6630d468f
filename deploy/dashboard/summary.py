"""Summarize a run in figures and alerts, for 'crossfade status' and for the page.

    for summary in latest_first(read_summaries(Runs([Path("runs")]))):
        print(summary.name, summary.state, summary.loss, summary.alerts)

Alerts have the same limits as ``docker/prometheus/rules.yml``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from crossfade.base.formatting import duration, lost, size
from crossfade.base.text import error_line
from crossfade.deploy.cluster.state_writer import IN_PROCESS
from crossfade.deploy.dashboard.alert import Alert
from crossfade.deploy.dashboard.processes import ProcessRow, process_rows
from crossfade.deploy.dashboard.run_reader import ReportFile, RunReader, Runs
from crossfade.deploy.dashboard.run_state import ENDED, LastFailure, find_failure, find_state
from crossfade.trainer.monitoring.thresholds import (
    LOCAL_PHASES,
    MAX_WORKER_SKEW,
    MIN_FREE_MEMORY_RATIO,
    OVERDUE_CHECKPOINTS,
    OVERDUE_SECONDS,
    RECENT_RESTART_SECONDS,
    ROLE_ALERT_STATES,
    STALLED_SECONDS,
)
from crossfade.trainer.runs.events import BackoffEvent, CheckpointFailed, CheckpointSaved, RestartEvent

DEFAULT_METRIC = "ndcg@10"
_TRAFFIC_BYTES = ("bytes_pulled", "bytes_pushed", "dense_equivalent_bytes_pushed")
_MIN_SKEW_SECONDS = 60.0
"""Local work of the slowest worker below which skew is not judged."""


@dataclass
class Summary:
    """One run. Times are Unix times in seconds; figures that are unknown are None."""

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
    """The metric that selects the best epoch."""
    eval_metric: float | None
    """Its last value on the valid split."""
    best_value: float | None
    best_error: float | None
    """Its standard error."""
    best_epoch: int | None
    stopped_early: bool
    """Whether the last evaluations had no gain in that metric beyond its standard error (``train.patience``)."""
    advice: str | None
    """What to change where it may have ended too early."""
    metrics: dict[str, dict[str, float]]
    """The metrics of the last evaluation, by split."""
    baselines: dict[str, dict[str, dict[str, float]]]
    """Metrics of baselines, by split and name."""
    baseline_notes: list[str]
    """Why some are missing, in words."""
    task: str
    """What these metrics count as held out, ``new`` or ``repeat``; empty if the job does not say."""
    traffic: dict[str, int]
    phase_seconds: dict[str, float]
    checkpoints: dict[str, Any]
    restarts: list[dict[str, Any]]
    failure: LastFailure | None
    processes: list[ProcessRow]
    alerts: list[Alert] = field(default_factory=list)
    shortfall: str | None = None
    """Which baselines the run is below, and what to change."""
    run_id: str | None = None

    @property
    def live(self) -> bool:
        """Whether the run has not ended."""
        return self.state not in ENDED

    @property
    def progress(self) -> float:
        """The share of planned steps that are done; 1 for a finished run, also if it stopped early."""
        if self.state == "done":
            return 1.0
        return min(1.0, self.step / self.planned_steps) if self.planned_steps else 0.0

    @property
    def position(self) -> str:
        """The step and the epoch that the run has reached, and how many are planned, in words."""
        steps = f" of {self.planned_steps:,}" if self.planned_steps else ""
        epochs = f" of {self.planned_epochs}" if self.planned_epochs else ""
        return f"step {self.step:,}{steps}" + (f", epoch {self.epoch}{epochs}" if self.epoch else "")

    @property
    def dense_ratio(self) -> float | None:
        """Bytes that dense gradients would have taken, as a multiple of the bytes pushed; None without pushes."""
        pushed = self.traffic.get("bytes_pushed")
        return self.traffic["dense_equivalent_bytes_pushed"] / pushed if pushed else None

    def to_json(self) -> dict[str, Any]:
        """Return the fields and derived figures as JSON values."""
        return {**asdict(self), "progress": self.progress, "dense_ratio": self.dense_ratio}


def lost_steps(restart: Mapping[str, Any]) -> str:
    """Describe the steps that one of ``Summary.restarts`` takes again; empty if its record does not have them."""
    steps, reached = restart.get("lost_steps"), restart.get("step")
    if not isinstance(steps, int) or not isinstance(reached, int):
        return ""
    return f"lost {lost(steps, restart.get('lost_seconds'), from_step=reached - steps)}"


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
        best_value=best_value,
        best_error=training.error(best_metric, best_epoch),
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
    summary.shortfall, summary.alerts = report.baselines.shortfall, find_alerts(run, summary, now)
    return summary


def _report(run: RunReader, state: str) -> ReportFile:
    """Return the report of a finished run: that of an earlier start does not describe a run that was resumed."""
    return run.report if state == "done" and run.report is not None else ReportFile()


def read_summaries(runs: Runs, seconds: float = math.inf) -> list[Summary]:
    """Refresh all of ``runs`` and summarize them; further calls read what takes more than ``seconds``."""
    until = time.monotonic() + seconds
    found = []
    for run in runs.readers():
        with run.lock:
            run.refresh(until)
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


def find_alerts(run: RunReader, summary: Summary, now: float) -> list[Alert]:
    """Return the alerts of ``run`` at the Unix time ``now``, the most severe first. Hold the reader's ``lock``."""
    found = [*_ended(summary), *_training(run, summary)]
    if summary.live:
        found += [*_liveness(run, summary, now), *_skew(run)]
    found += [Alert("warning", problem) for problem in run.problems()]
    order = {"critical": 0, "warning": 1, "info": 2}
    return sorted(found, key=lambda alert: order[alert.level])


def _ended(summary: Summary) -> Iterator[Alert]:
    if summary.state in {"failed", "lost"}:
        yield Alert("critical", _cause(summary))
    elif summary.state == "stopped":
        yield Alert("info", f"stopped {summary.message}".strip())
    elif summary.state == "unknown":
        yield Alert("warning", summary.message)


def _cause(summary: Summary) -> str:
    """Return why the run ended, in a line: without the end of a log, which the last failure names."""
    failure = summary.failure
    if failure is None or not failure.ends_run:
        return error_line(summary.message) or "the run has failed"
    if failure.role == IN_PROCESS and failure.error:
        return failure.error
    return f"{failure.text}: {failure.error}" if failure.error else failure.text


def _training(run: RunReader, summary: Summary) -> Iterator[Alert]:
    losses = [run.training.steps.last("loss"), run.training.epochs[-1].loss if run.training.epochs else None]
    if any(loss is not None and not math.isfinite(loss) for loss in losses):
        yield Alert("critical", "the loss is not finite: lower optimizer.learning_rate or raise model.temperature")
    saves = run.training.saves
    if saves and isinstance(last := saves[-1].event, CheckpointFailed):
        yield Alert("warning", f"the checkpoint of step {last.step:,} was not written: {last.message}")


def _liveness(run: RunReader, summary: Summary, now: float) -> Iterator[Alert]:
    if not run.is_behind:
        yield from _silence(run, summary, now)
    if summary.state in ROLE_ALERT_STATES:
        for process in summary.processes:
            if process.state == "missing":
                yield Alert("critical", f"{process.name} is missing{_why(run, process.name)}")
    recent = [each for each in summary.restarts if now - (each.get("time") or 0.0) < RECENT_RESTART_SECONDS]
    if recent:
        more = f" (and {len(recent) - 1} more within {duration(RECENT_RESTART_SECONDS)})" if len(recent) > 1 else ""
        ago = duration(now - recent[-1]["time"])
        lost = f"; {steps}" if (steps := lost_steps(recent[-1])) else ""
        yield Alert("warning", f"restarted {ago} ago: {recent[-1].get('cause')}{lost}{more}")
    for warning in run.state.warnings if run.state else []:
        yield Alert("warning", warning)
    for process in summary.processes:
        free, limit = process.memory_available_bytes, process.memory_limit_bytes
        if free is not None and limit and free < MIN_FREE_MEMORY_RATIO * limit:
            yield Alert("warning", f"{process.name}: only {size(free)} of {size(limit)} memory are free")


def _silence(run: RunReader, summary: Summary, now: float) -> Iterator[Alert]:
    last = run.training.last_time
    if last is not None and now - last > STALLED_SECONDS:
        yield Alert("critical", f"no step, evaluation or checkpoint for {duration(now - last)}")
    interval = run.setting("checkpoint", "interval_seconds")
    since = summary.checkpoints["last_time"] or run.training.first_time
    if isinstance(interval, int | float) and since and now - since > OVERDUE_CHECKPOINTS * interval + OVERDUE_SECONDS:
        yield Alert("warning", f"the last checkpoint is {duration(now - since)} old; the interval is {interval:g} s")


def _why(run: RunReader, process: str) -> str:
    """Return the cause of the last restart if it names this process."""
    causes = [event.cause for _, event in run.processes.events if isinstance(event, RestartEvent | BackoffEvent)]
    return f": {causes[-1]}" if causes and causes[-1].startswith(process) else ""


def _skew(run: RunReader) -> Iterator[Alert]:
    local_seconds = {
        name: sum(load["phase_seconds"].get(phase, 0.0) for phase in LOCAL_PHASES)
        for name, load in run.processes.loads.items()
        if name.startswith("worker-") and "phase_seconds" in load
    }
    if len(local_seconds) < 2 or max(local_seconds.values()) < _MIN_SKEW_SECONDS:
        return
    slowest = max(local_seconds, key=lambda name: local_seconds[name])
    ratio = local_seconds[slowest] / (sum(local_seconds.values()) / len(local_seconds))
    if ratio > MAX_WORKER_SKEW:
        yield Alert(
            "warning", f"{slowest} computes {ratio:.1f} times as long as the average worker: the others wait for it"
        )
