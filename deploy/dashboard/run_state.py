"""Determine the state of a run from its folder.

state, message = find_state(run, time.time())   # as its command writes it, or ``lost`` if that no longer runs
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import psutil

from crossfade.base.formatting import duration
from crossfade.base.machine import OomKills, is_source
from crossfade.base.processes import started_at
from crossfade.deploy.dashboard.run_reader import RunReader, StateFile

SILENT_SECONDS = 15.0
"""A command writes its state every second; after this time without a new state, it counts as lost."""
GONE_SECONDS = 3.0
"""After this time without a new state, the command's process is looked for on this host."""
ENDED = ("done", "failed", "stopped", "lost", "unknown")
"""States of runs that have ended. ``lost``: the command no longer runs. ``unknown``: no file has the state."""


def find_state(run: RunReader, now: float) -> tuple[str, str]:
    """Return the state of ``run`` at the Unix time ``now``, and a message if it has ended."""
    if run.state is None:
        return _state_from_events(run, now)
    state, silent_seconds = run.state.state, now - run.state.time
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
