"""Track a run: record its events in MLflow from a background thread, which neither delays nor ends the training.

    tracker = open_tracker(job, folder, log)
    tracker.take(event)                   # for each event; returns at once
    tracker.end("done", report)           # returns when everything is sent, after seconds at most

A server that does not answer is tried again, after 1, 2, 4 … 30 seconds, while up to ``MAX_WAITING`` points wait. What
could not be sent when the run ends is counted in a warning.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from queue import SimpleQueue
from typing import Any

from crossfade.base.errors import MissingExtraError
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.runs.events import Event
from crossfade.trainer.runs.run_folder import RunFolder
from crossfade.trainer.tracking.mlflow_run import MlflowRun, TrackingError
from crossfade.trainer.tracking.records import EventRecords, Point

MAX_WAITING = 10_000
"""Points that wait for the server; 2.8 hours of steps. Later ones are dropped."""
BATCH_POINTS = 200
GATHER_SECONDS = 2.0
"""Time in which points gather before they are sent together."""
END_SECONDS = 30.0
"""Maximum time that a run waits at its end for the server."""
_MAX_PAUSE_SECONDS = 30.0


class RunTracker:
    """Sends the events of a run to ``destination``, if there is one; ``log`` receives a line when that fails."""

    def __init__(self, destination: MlflowRun | None, log: Callable[[str], None]) -> None:
        self._destination, self._log = destination, log
        self._records = EventRecords()
        self._waiting: SimpleQueue[Point] = SimpleQueue()
        self._taken, self._sent, self._is_finished = 0, 0, False
        self._error = "it has not answered"
        self._has_ended, self._is_abandoned = threading.Event(), threading.Event()
        self._end: tuple[str, Mapping[str, Any] | None] | None = None
        if destination is not None:
            self._thread = threading.Thread(target=self._run, args=(destination,), name="tracking", daemon=True)
            self._thread.start()

    def take(self, event: Event) -> None:
        """Send what is to be recorded of ``event``; this returns at once."""
        if self._destination is not None and (point := self._records.of(event, time.time())) is not None:
            self._taken += 1
            if self._waiting.qsize() < MAX_WAITING:
                self._waiting.put(point)

    def end(self, state: str, report: Mapping[str, Any] | None = None) -> None:
        """Send what waits and the end of the run, which is ``done``, ``stopped`` or ``failed``; log what was not sent.

        ``report`` is that of a run that is done.
        """
        if self._destination is None:
            return
        self._end = state, report
        self._has_ended.set()
        self._thread.join(END_SECONDS)
        self._is_abandoned.set()
        if (lost := self._taken - self._sent) or not self._is_finished:
            end = "" if self._is_finished else ", and not the end of the run"
            unsent = f"{lost:,} of {self._taken:,} records were not sent{end}"
            self._log(f"{self._destination.name}: {unsent}: {self._error}")

    def _run(self, destination: MlflowRun) -> None:
        if not self._attempt(destination.name, destination.start):
            return
        while not (self._has_ended.wait(GATHER_SECONDS) and self._waiting.empty()):
            points = [self._waiting.get() for _ in range(min(self._waiting.qsize(), BATCH_POINTS))]
            if points and self._attempt(destination.name, partial(destination.write, points)):
                self._sent += len(points)
        assert self._end is not None
        self._is_finished = self._attempt(destination.name, partial(destination.finish, *self._end))

    def _attempt(self, name: str, action: Callable[[], None]) -> bool:
        """Call ``action`` until it succeeds; return False once it is rejected or the run no longer waits."""
        pause = 1.0
        while not self._is_abandoned.is_set():
            try:
                action()
                return True
            except TrackingError as error:
                self._error, is_rejected = str(error), not error.temporary
            except Exception as error:  # a defect of a tracking package must not end the training
                self._error, is_rejected = f"{type(error).__name__}: {error}", True
            if is_rejected:
                self._log(f"{name}: {self._error}; training goes on without it")
                return False
            if pause == 1.0:
                self._log(f"{name}: {self._error}; training goes on, and it is tried again")
            self._is_abandoned.wait(pause)
            pause = min(2 * pause, _MAX_PAUSE_SECONDS)
        return False


def check_tracking(job: JobConfig) -> None:
    """Check that what the tracking of ``job`` needs is installed.

    Raises:
        MissingExtraError: a package is missing.
    """
    if job.tracking.mlflow is not None and find_spec("mlflow") is None:
        raise MissingExtraError("mlflow-skinny", extra="mlflow", purpose="tracking.mlflow")


def open_tracker(job: JobConfig, folder: RunFolder, log: Callable[[str], None]) -> RunTracker:
    """Open the tracker of a run of ``job`` in ``folder``; ``log`` receives a line when the server fails."""
    return RunTracker(None if job.tracking.mlflow is None else MlflowRun(job, folder), log)
