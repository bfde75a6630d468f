"""Write the state of a run to its folder, for 'crossfade status' and the dashboard.

    with StateWriter(folder) as state:
        state.watch(lambda: {"state": "running", "generation": 1, "processes": {...}})
        ...
        state.end("done")

    state.json        the state of the run and of each of its processes, rewritten every second
    processes.jsonl   its history: failures, restarts, and the start and end of each command

The run itself reads neither file, so a full disk costs only these records.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

from crossfade.base.errors import CrossfadeError, as_typed
from crossfade.base.processes import started_at
from crossfade.base.text import error_line
from crossfade.trainer.runs.events import (
    BackoffEvent,
    CommandEnded,
    CommandStarted,
    Event,
    EventLog,
    FailureEvent,
    HostsMissing,
    PhaseEvent,
    RestartEvent,
    ResumeEvent,
    WaitingForHosts,
    to_record,
)
from crossfade.trainer.runs.resumption import UnsavedWork
from crossfade.trainer.runs.run_folder import PROCESSES_FILE, RunFolder

IN_PROCESS = "in-process"
"""The name of the only process of a run without servers."""
STATE_SECONDS = 1.0
"""Seconds between two versions of state.json."""
JOB_EVENTS = (
    *(FailureEvent, RestartEvent, ResumeEvent, BackoffEvent),
    *(WaitingForHosts, HostsMissing),
)
"""The events that ``processes.jsonl`` keeps: those of the job and its processes, not of its training."""

StateSource = Callable[[], dict[str, Any]]
"""Returns ``state``, ``generation`` and ``processes``: by name ``state``, ``host``, ``metrics`` and ``load``."""


class StateWriter:
    """Writes the state of a run from a background thread while the context lasts."""

    def __init__(self, folder: RunFolder) -> None:
        """Write to ``folder``, whose lock this process holds."""
        self._folder = folder
        self._source: StateSource = lambda: {"state": "starting", "generation": 0, "processes": {}}
        self._started = time.time()
        self._work = UnsavedWork(0, time.monotonic())
        self._failure: dict[str, Any] | None = None
        """The record of the last failure, of those of this command."""
        self._append_lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="state", daemon=True)
        self._command: dict[str, Any] = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "pid_started": started_at(os.getpid()),
        }

    def watch(self, source: StateSource) -> None:
        """Read the state from ``source`` from now on."""
        self._source = source

    def take(self, event: Event) -> None:
        """Record ``event`` if it is an event of the job; of those of the training, how far it is."""
        now = time.monotonic()
        if isinstance(event, PhaseEvent) and event.name == "training":
            self._work = UnsavedWork(event.step or 0, now)
        self._work.record(event, now)
        if isinstance(event, FailureEvent):
            self._failure = to_record(event)
        if isinstance(event, JOB_EVENTS):
            self._append(event)

    def __enter__(self) -> Self:
        self._log = EventLog(self._folder.path / PROCESSES_FILE, lambda _: None)
        self._append(CommandStarted(**self._command))
        self._write()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._log.close()

    def fail(self, error: BaseException) -> None:
        """Write that the run has ended because of ``error``; write nothing afterwards."""
        if self._failure is None or not self._failure["ends_run"]:
            # Not a failure of a role, which the coordinator records.
            self.take(self._own_failure(error))
        self.end("failed", error.worded(as_typed) if isinstance(error, CrossfadeError) else str(error))

    def _own_failure(self, error: BaseException) -> FailureEvent:
        """Return the record of an error in this process: of a run in process, or of the coordinator."""
        last, (lost_steps, lost_seconds) = self._source(), self._work.since(self._work.checkpoint_step)
        message = error.worded(as_typed) if isinstance(error, CrossfadeError) else f"{type(error).__name__}: {error}"
        return FailureEvent(
            generation=last["generation"],
            role=IN_PROCESS if IN_PROCESS in last["processes"] else "coordinator",
            host=self._command["host"],
            cause=f"ended with exit code {getattr(error, 'exit_code', 1)}",
            error=error_line(message),
            ends_run=True,
            step=self._work.step,
            lost_steps=lost_steps,
            lost_seconds=lost_seconds,
        )

    def end(self, state: str, message: str = "") -> None:
        """Write that the run has ended as ``state`` (done, failed or stopped), and why; write nothing afterwards."""
        self._stop.set()
        self._thread.join()
        last = self._source()
        for process in last["processes"].values():
            process["state"] = "done" if state == "done" else "ended"
        self._write_state({**last, "state": state, "message": message, "ended": time.time()})
        self._append(CommandEnded(state=state, message=message))

    def _run(self) -> None:
        while not self._stop.wait(STATE_SECONDS):
            self._write()

    def _write(self) -> None:
        self._write_state({**self._source(), "message": ""})

    def _write_state(self, state: dict[str, Any]) -> None:
        header = {"time": time.time(), "started": self._started, "command": self._command, "failure": self._failure}
        with suppress(OSError):  # readers detect a stale file by its timestamp
            self._folder.write_state({**header, **state})

    def _append(self, event: Event) -> None:
        with self._append_lock:
            self._log.write(event)
