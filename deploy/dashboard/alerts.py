"""Alerts on a run, computed from its folder by the same limits as ``docker/prometheus/rules.yml``."""

from __future__ import annotations

import math
from collections.abc import Iterator

from crossfade.base.formatting import duration, size
from crossfade.deploy.cluster.role_events import error_line
from crossfade.deploy.cluster.state_writer import IN_PROCESS
from crossfade.deploy.dashboard.run_figures import Alert, Summary, lost_steps
from crossfade.deploy.dashboard.run_reader import RunReader
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
from crossfade.trainer.runs.events import BackoffEvent, CheckpointFailed, RestartEvent

_MIN_SKEW_SECONDS = 60.0
"""Local work of the slowest worker below which skew is not judged."""


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
    last = run.training.last_time
    if last is not None and now - last > STALLED_SECONDS:
        yield Alert("critical", f"no step, evaluation or checkpoint for {duration(now - last)}")
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
    interval = run.setting("checkpoint", "interval_seconds")
    since = summary.checkpoints["last_time"] or run.training.first_time
    if isinstance(interval, int | float) and since and now - since > OVERDUE_CHECKPOINTS * interval + OVERDUE_SECONDS:
        yield Alert("warning", f"the last checkpoint is {duration(now - since)} old; the interval is {interval:g} s")
    for process in summary.processes:
        free, limit = process.memory_available_bytes, process.memory_limit_bytes
        if free is not None and limit and free < MIN_FREE_MEMORY_RATIO * limit:
            yield Alert("warning", f"{process.name}: only {size(free)} of {size(limit)} memory are free")


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
