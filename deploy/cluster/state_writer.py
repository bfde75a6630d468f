"""What the command that runs a job says of it in the run folder, for whoever watches: 'crossfade status', the page.

    state.json        how the run and each of its processes are, anew every second
    processes.jsonl   the same over time: a sample now and then, restarts, and how each start of the command ended

Both are of no use to the run itself, so a disk that takes neither costs nothing but them.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

import psutil

from trainer.runs.events import (
    BackoffEvent,
    CommandEnded,
    CommandStarted,
    Event,
    HostsMissing,
    LoadSample,
    RestartEvent,
    ResumeEvent,
    WaitingForHosts,
    to_record,
)
from trainer.runs.folder import PROCESSES_FILE, RunFolder

STATE_SECONDS = 1.0
MAX_SAMPLE_SECONDS = 15.0
"""Samples are taken at every turn at first, and at last so seldom: a long run does not need more, nor a disk."""
_SAMPLES_A_RUN = 60
JOB_EVENTS = (RestartEvent, ResumeEvent, BackoffEvent, WaitingForHosts, HostsMissing)
"""What of the events of a run is kept in ``processes.jsonl``: that of the job, not of its training."""

StateSource = Callable[[], dict[str, Any]]
"""Gives ``state``, ``generation`` and ``processes``: by name ``state``, ``host``, ``metrics`` and ``load``."""


class StateWriter:
    """Keeps ``state.json`` true while the context lasts, from a thread of its own."""

    def __init__(self, folder: RunFolder) -> None:
        """Write to ``folder``, which this process holds."""
        self._folder = folder
        self._look: StateSource = lambda: {"state": "starting", "generation": 0, "processes": {}}
        self._started, self._sampled_at = time.time(), float("-inf")
        self._writing, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._keep, name="state", daemon=True)
        own = psutil.Process()
        self._command: dict[str, Any] = {"host": socket.gethostname(), "pid": own.pid, "pid_started": own.create_time()}

    def watch(self, look: StateSource) -> None:
        """From now on tell what ``look`` says."""
        self._look = look

    def take(self, event: Event) -> None:
        """Keep ``event`` if it is one of the job."""
        if isinstance(event, JOB_EVENTS):
            self._append(event)

    def __enter__(self) -> Self:
        """Itself."""
        self._append(CommandStarted(**self._command))
        self._tell()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop telling; ``end`` has said how it ended."""
        self._over.set()
        self._thread.join()

    def end(self, state: str, message: str = "") -> None:
        """Leave it that the run has ended as ``state`` (done, failed or stopped), and why."""
        self._over.set()
        self._thread.join()
        last = self._look()
        for process in last["processes"].values():
            process["state"] = "done" if state == "done" else "ended"
        self._write({**last, "state": state, "message": message, "ended": time.time()})
        self._append(_sample(last))
        self._append(CommandEnded(state=state, message=message))

    def _keep(self) -> None:
        while not self._over.wait(STATE_SECONDS):
            self._tell()

    def _tell(self) -> None:
        now = self._look()
        self._write({**now, "message": ""})
        pause = (time.time() - self._started) / _SAMPLES_A_RUN
        if time.monotonic() - self._sampled_at >= min(pause, MAX_SAMPLE_SECONDS):
            self._sampled_at = time.monotonic()
            self._append(_sample(now))

    def _write(self, state: dict[str, Any]) -> None:
        told = {"time": time.time(), "started": self._started, "command": self._command, **state}
        with suppress(OSError):  # who watches sees that it has grown old
            self._folder.write_state(told)

    def _append(self, event: Event) -> None:
        """Add a line, which begins one of its own whatever a writer that was killed left of the last."""
        line = json.dumps(to_record(event)).encode() + b"\n"
        # Without room on the disk a line is left out, or cut, and passed over by whoever reads it.
        with self._writing, suppress(OSError), (self._folder.path / PROCESSES_FILE).open("ab+", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            file.write(line if file.read(1) in {b"", b"\n"} else b"\n" + line)


def _sample(state: dict[str, Any]) -> LoadSample:
    loads = {name: process["load"] for name, process in state["processes"].items() if process["load"]}
    return LoadSample(generation=state["generation"], processes=loads)
