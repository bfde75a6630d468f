"""Determine the state of a run from its folder, and its last failure: what happened, and what was lost.

state, message = find_state(run, time.time())   # as its command writes it, or ``lost`` if that no longer runs
failure = find_failure(run, state, message)
failure.text                                    # server-0 on b2 was killed by SIGKILL
failure.work()                                  # 12 steps since the last checkpoint, 3.0 s
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from crossfade.base.formatting import duration, lost
from crossfade.base.machine import OomKills, is_source
from crossfade.base.processes import started_at
from crossfade.deploy.cluster.state_writer import IN_PROCESS
from crossfade.deploy.dashboard.run_reader import RunReader, StateFile
from crossfade.trainer.runs.events import FailureEvent, RestartEvent

SILENT_SECONDS = 15.0
"""A command writes its state every second; after this time without a new state, it counts as lost."""
GONE_SECONDS = 3.0
"""After this time without a new state, the command's process is looked for on this host."""
ENDED = ("done", "failed", "stopped", "lost", "unknown")
"""States of runs that have ended. ``lost``: the command no longer runs. ``unknown``: no file has the state."""


def find_state(run: RunReader, now: float) -> tuple[str, str]:
    """Return the state of ``run`` at the Unix time ``now``, and a message if it has ended. Hold its ``lock``."""
    if run.state is None:
        return _state_from_events(run, now)
    state, silent_seconds = run.state.state, now - run.state.time
    if run.state_changed_at is not None:  # by this host's clock, since the clock of another host may differ
        silent_seconds = min(silent_seconds, now - run.state_changed_at)
    if state in ENDED:
        return state, run.state.message
    if silent_seconds > GONE_SECONDS and _is_gone(run.state.command):
        return "lost", f"the process of its command no longer exists: {_why_gone(run.state)}"
    if silent_seconds > SILENT_SECONDS:
        return "lost", f"its command has not updated the state for {duration(silent_seconds)}"
    return state, ""


def _state_from_events(run: RunReader, now: float) -> tuple[str, str]:
    """Return the state of roles that were started by hand: no command writes a state file."""
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


def _why_gone(state: StateFile) -> str:
    """Return why a command of this host may have ended: by the kernel's count of kills for lack of memory."""
    kills = state.oom_kills
    if kills is not None and is_source(Path(kills.source)) and OomKills(Path(kills.source), kills.count).have_risen():
        return "the kernel has killed a process for lack of memory since; 'crossfade plan' has what it needs"
    return "it was killed, or its machine restarted"


@dataclass(frozen=True)
class LastFailure:
    """A failure. ``time`` is Unix time; what is not known is None."""

    time: float
    text: str
    """Role, host, and cause in one line."""
    role: str | None
    host: str | None
    cause: str
    error: str | None
    """The last line of the role's error."""
    log: str | None
    """Where the role's log is, on its host."""
    ends_run: bool
    """Whether no generation followed it."""
    step: int
    lost_steps: int
    lost_seconds: float | None
    after_results: bool | None = None
    """Whether all results had been written, so that the run is done."""

    def work(self) -> str:
        """Describe what was lost: ``333 steps since the last checkpoint, 5.6 s``."""
        return lost(self.lost_steps, self.lost_seconds, from_step=self.step - self.lost_steps)


def find_failure(run: RunReader, state: str, message: str) -> LastFailure | None:
    """Return the last failure of ``run``, whose ``state`` is described by ``message``. Hold its ``lock``."""
    if state == "lost" and run.state is not None:
        return _of_lost_command(run, run.state, message)
    found: LastFailure | None = None
    for time, event in run.processes.events:
        if isinstance(event, FailureEvent):
            found = _of_event(time, event)
        elif isinstance(event, RestartEvent) and found is not None and event.lost_steps is not None:
            # Newer checkpoints may not have been usable: then more was lost than the failure has.
            found = replace(found, lost_steps=event.lost_steps, lost_seconds=event.lost_seconds)
    return found


def _of_event(time: float, event: FailureEvent) -> LastFailure:
    values = {name: value for name, value in event if name != "generation"}
    return LastFailure(time=time, text=event.describe(), **values)


def _of_lost_command(run: RunReader, state: StateFile, message: str) -> LastFailure:
    """Return the failure of a command that could not record it, as far as the events of the training have it."""
    work, host = run.training.work, state.command.get("host")
    step = run.training.step  # also of events other than steps, of which the log has a sample
    return LastFailure(
        time=state.time,
        text=message,
        role="coordinator" if run.is_distributed() else IN_PROCESS,
        host=host if isinstance(host, str) else None,
        cause=message,
        error=None,
        log=None,
        ends_run=True,
        step=step,
        lost_steps=max(0, step - work.checkpoint_step),
        lost_seconds=work.since(work.checkpoint_step)[1],
    )
