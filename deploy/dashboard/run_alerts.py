"""What is wrong with a run, by the limits of ``docker/prometheus/rules.yml``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from crossfade.base.formatting import duration, size
from crossfade.base.text import error_line
from crossfade.deploy.cluster.state_writer import IN_PROCESS
from crossfade.deploy.dashboard.alert import Alert
from crossfade.deploy.dashboard.run_reader import RunReader
from crossfade.trainer.monitoring.thresholds import (
    MIN_FREE_MEMORY_RATIO,
    OVERDUE_CHECKPOINTS,
    OVERDUE_SECONDS,
    RECENT_RESTART_SECONDS,
    ROLE_ALERT_STATES,
    STALLED_SECONDS,
)
from crossfade.trainer.runs.events import CheckpointFailed

if TYPE_CHECKING:
    from crossfade.deploy.dashboard.summary import Summary

_LEVELS = ("critical", "warning", "info")


def find_alerts(run: RunReader, summary: Summary, now: float) -> list[Alert]:
    """Return the alerts of ``run`` at the Unix time ``now``, the most severe first."""
    found = [*_ended(summary), *_training(run)]
    if summary.live:
        found += _liveness(run, summary, now)
        found += _processes(summary)
    found += [Alert("warning", problem) for problem in run.problems()]
    return sorted(found, key=lambda alert: _LEVELS.index(alert.level))


def _ended(summary: Summary) -> Iterator[Alert]:
    if summary.state in {"failed", "lost"}:
        yield Alert("critical", _cause(summary))
    elif summary.state == "stopped":
        yield Alert("info", f"stopped {summary.message}".strip())
    elif summary.state == "unknown":
        yield Alert("warning", summary.message)


def _cause(summary: Summary) -> str:
    """Return why the run ended, in a line: without the end of a log, which the last failure names."""
    failure = None if summary.failure is None else summary.failure.event
    if summary.state == "lost" or failure is None or not failure.ends_run:
        return error_line(summary.message) or "the run has failed"
    if failure.role == IN_PROCESS and failure.error:
        return failure.error
    return f"{failure.describe()}: {failure.error}" if failure.error else failure.describe()


def _training(run: RunReader) -> Iterator[Alert]:
    losses = [run.training.steps.last("loss"), *(epoch.loss for epoch in run.training.epochs[-1:])]
    if any(loss is not None and not math.isfinite(loss) for loss in losses):
        yield Alert("critical", "the loss is not finite: lower optimizer.learning_rate or raise model.temperature")
    saves = run.training.saves
    if saves and isinstance(last := saves[-1].event, CheckpointFailed):
        yield Alert("warning", f"the checkpoint of step {last.step:,} was not written: {last.message}")


def _liveness(run: RunReader, summary: Summary, now: float) -> Iterator[Alert]:
    last = run.training.last_time
    if last is not None and now - last > STALLED_SECONDS and not run.is_behind:
        yield Alert("critical", f"no step, evaluation or checkpoint for {duration(now - last)}")
    interval, since = run.setting("checkpoint", "interval_seconds"), run.training.first_time
    since = summary.checkpoints["last_time"] or since
    is_known = isinstance(interval, int | float) and since and not run.is_behind
    if is_known and now - since > OVERDUE_CHECKPOINTS * interval + OVERDUE_SECONDS:
        yield Alert("warning", f"the last checkpoint is {duration(now - since)} old; the interval is {interval:g} s")
    recent = [each for each in summary.restarts if now - each.time < RECENT_RESTART_SECONDS]
    if recent:
        more = f" (and {len(recent) - 1} more within {duration(RECENT_RESTART_SECONDS)})" if len(recent) > 1 else ""
        yield Alert("warning", f"restarted {duration(now - recent[-1].time)} ago: {recent[-1].describe()}{more}")
    for warning in run.state.warnings if run.state else []:
        yield Alert("warning", warning)


def _processes(summary: Summary) -> Iterator[Alert]:
    for process in summary.processes:
        if process.state == "missing" and summary.state in ROLE_ALERT_STATES:
            yield Alert("critical", f"{process.name} is missing")
        free, limit = process.memory_available_bytes, process.memory_limit_bytes
        if free is not None and limit and free < MIN_FREE_MEMORY_RATIO * limit:
            yield Alert("warning", f"{process.name}: only {size(free)} of {size(limit)} memory are free")
