"""Determine from its folder what state a run is in, and what is wrong with it.

state, message = find_state(run, time.time())   # as its command writes it, or ``lost`` if that no longer runs
alerts = find_alerts(run, summary, time.time())  # by the limits of ``docker/prometheus/rules.yml``
"""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator
from typing import Any

import psutil

from crossfade.base.formatting import duration, size
from crossfade.base.processes import started_at
from crossfade.base.text import error_line
from crossfade.deploy.cluster.state_writer import IN_PROCESS
from crossfade.deploy.dashboard.alert import Alert
from crossfade.deploy.dashboard.figures import ENDED, Summary
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

SILENT_SECONDS = 15.0
"""A command writes its state every second; after this time without a new state, it counts as lost."""
GONE_SECONDS = 3.0
"""After this time without a new state, the command's process is looked for on this host."""
_LEVELS = ("critical", "warning", "info")


def find_state(run: RunReader, now: float) -> tuple[str, str]:
    """Return the state of ``run`` at the Unix time ``now``, and a message if it has ended."""
    if run.state is None:
        return _state_from_events(run, now)
    state, silent_seconds = run.state.state, now - run.state.time
    if state in ENDED:
        return state, run.state.message
    if silent_seconds > GONE_SECONDS and _is_gone(run.state.command):
        return "lost", "the process of its command no longer exists: it was killed, or its machine restarted"
    if silent_seconds > SILENT_SECONDS:
        return "lost", f"its command has not updated the state for {duration(silent_seconds)}"
    return state, ""


def _state_from_events(run: RunReader, now: float) -> tuple[str, str]:
    """Return the state of a run without a state file, as after a full disk."""
    training = run.training
    if run.report is not None:
        return "done", ""
    if training.stopped is not None:
        return "stopped", f"at step {training.stopped.step:,}"
    is_silent = training.last_time is None or now - training.last_time >= SILENT_SECONDS
    if run.is_behind or not is_silent:
        return "running", ""
    return "unknown", "no file in the folder has its state"


def _is_gone(command: dict[str, Any]) -> bool:
    """Return whether the command ran on this host and no longer does."""
    if command.get("host") != socket.gethostname():
        return False
    try:
        # A process of the same number with another start time is not the command.
        return abs(started_at(int(command["pid"])) - float(command["pid_started"])) > 1.0
    except psutil.NoSuchProcess:
        return True
    except (KeyError, TypeError, ValueError, OverflowError, psutil.Error):
        return False


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
    interval, since = run.setting("checkpoint", "interval_seconds"), summary.checkpoints["last_time"]
    age = now - (since or run.training.first_time or now)
    is_overdue = isinstance(interval, int | float) and age > OVERDUE_CHECKPOINTS * interval + OVERDUE_SECONDS
    if is_overdue and not run.is_behind:
        yield Alert("warning", f"the last checkpoint is {duration(age)} old; the interval is {interval:g} s")
    recent = [each for each in summary.restarts if now - each.time < RECENT_RESTART_SECONDS]
    if recent:
        more = f" (and {len(recent) - 1} more within {duration(RECENT_RESTART_SECONDS)})" if len(recent) > 1 else ""
        yield Alert("warning", f"restarted {duration(now - recent[-1].time)} ago: {recent[-1].describe()}{more}")


def _processes(summary: Summary) -> Iterator[Alert]:
    for process in summary.processes:
        if process.state == "missing" and summary.state in ROLE_ALERT_STATES:
            yield Alert("critical", f"{process.name} is missing")
        free, limit = process.memory_available_bytes, process.memory_limit_bytes
        if free is not None and limit and free < MIN_FREE_MEMORY_RATIO * limit:
            yield Alert("warning", f"{process.name}: only {size(free)} of {size(limit)} memory are free")
