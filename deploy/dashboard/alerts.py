"""What of a run wants somebody's attention, by the same limits as ``docker/prometheus/rules.yml``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from deploy.dashboard import formatting as text
from deploy.dashboard.run_reader import RunReader

if TYPE_CHECKING:
    from deploy.dashboard.summary import Summary

STALLED_SECONDS = 600.0
RECENT_SECONDS = 600.0
"""How long a restart is worth an alert."""
_OVERDUE_CHECKPOINTS, _MORE_SECONDS = 3, 60.0
_MAX_SKEW, _SKEW_AFTER_SECONDS = 1.5, 60.0
_LEAST_MEMORY_LEFT = 0.1
_OWN_PHASES = ("data", "sample", "gradients")

Level = Literal["critical", "warning", "info"]


@dataclass(frozen=True)
class Alert:
    """One thing to look at."""

    level: Level
    text: str


def find_alerts(run: RunReader, summary: Summary, now: float) -> list[Alert]:
    """What there is to look at, the worst first."""
    found = [*_ended(summary), *_training(run, summary)]
    if summary.live:
        found += [*_living(run, summary, now), *_skew(run)]
    found += [Alert("warning", problem) for problem in run.problems()]
    order = {"critical": 0, "warning": 1, "info": 2}
    return sorted(found, key=lambda alert: order[alert.level])


def _ended(summary: Summary) -> Iterator[Alert]:
    if summary.state in {"failed", "lost"}:
        yield Alert("critical", summary.message or "the run has failed")
    elif summary.state == "stopped":
        yield Alert("info", f"stopped {summary.message}".strip())
    elif summary.state == "unknown":
        yield Alert("warning", summary.message)


def _training(run: RunReader, summary: Summary) -> Iterator[Alert]:
    losses = [run.training.steps.last("loss"), run.training.epochs[-1]["loss"] if run.training.epochs else None]
    if any(loss is not None and not math.isfinite(loss) for loss in losses):
        yield Alert("critical", "the loss is not finite: lower optimizer.learning_rate, or raise model.temperature")
    saves = run.training.saves
    if saves and saves[-1]["event"] == "save_failed":
        last = saves[-1]
        yield Alert("warning", f"the checkpoint of step {last.get('step', 0):,} was not written: {last.get('message')}")


def _living(run: RunReader, summary: Summary, now: float) -> Iterator[Alert]:
    last = run.training.last_time
    if last is not None and now - last > STALLED_SECONDS:
        yield Alert("critical", f"no step, evaluation or checkpoint for {text.duration(now - last)}")
    if summary.state in {"running", "backing_off", "waiting"}:
        for process in summary.processes:
            if process.state == "missing":
                yield Alert("critical", f"{process.name} is missing{_why(run, process.name)}")
    recent = [each for each in summary.restarts if now - (each.get("time") or 0.0) < RECENT_SECONDS]
    if recent:
        more = f" (and {len(recent) - 1} more in {text.duration(RECENT_SECONDS)})" if len(recent) > 1 else ""
        ago = text.duration(now - recent[-1]["time"])
        yield Alert("warning", f"restarted {ago} ago: {recent[-1].get('cause')}{more}")
    every = run.setting("checkpoint", "interval_seconds")
    since = summary.checkpoints["last_time"] or run.training.first_time
    if isinstance(every, int | float) and since and now - since > _OVERDUE_CHECKPOINTS * every + _MORE_SECONDS:
        yield Alert("warning", f"the last checkpoint is {text.duration(now - since)} old; one is due every {every:g} s")
    for row in summary.processes:
        left, limit = row.memory_available_bytes, row.memory_limit_bytes
        if left is not None and limit and left < _LEAST_MEMORY_LEFT * limit:
            yield Alert("warning", f"{row.name}: {text.size(left)} of {text.size(limit)} memory are left there")


def _why(run: RunReader, process: str) -> str:
    """Why a process is missing, if the last restart was because of it."""
    events = [event for event in run.processes.events if event["event"] in {"restart", "back_off"}]
    cause: Any = events[-1].get("cause") if events else None
    return f": {cause}" if isinstance(cause, str) and cause.startswith(process) else ""


def _skew(run: RunReader) -> Iterator[Alert]:
    own = {
        name: sum(load["phase_seconds"].get(phase, 0.0) for phase in _OWN_PHASES)
        for name, load in run.processes.loads.items()
        if name.startswith("worker-") and "phase_seconds" in load
    }
    if len(own) < 2 or max(own.values()) < _SKEW_AFTER_SECONDS:
        return
    slowest = max(own, key=lambda name: own[name])
    ratio = own[slowest] / (sum(own.values()) / len(own))
    if ratio > _MAX_SKEW:
        yield Alert("warning", f"{slowest} works {ratio:.1f} times as long as the average: the others wait for it")
