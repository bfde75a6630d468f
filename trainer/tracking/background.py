"""Send records to one destination from a background thread, which neither delays nor ends the training.

A destination that does not answer is tried again, after 1, 2, 4 … 30 seconds, while up to ``MAX_WAITING`` records wait.
What could not be sent when the run ends is counted in a warning.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, Protocol

from crossfade.trainer.tracking.records import Record

MAX_WAITING = 10_000
"""Records that wait for a destination; 2.8 hours of steps. Later ones are dropped."""
BATCH_RECORDS = 200
GATHER_SECONDS = 2.0
"""Time in which records gather before they are sent together."""
END_SECONDS = 30.0
"""Maximum time that a run waits at its end for a destination."""
_MAX_PAUSE_SECONDS = 30.0


class TrackingError(Exception):
    """A destination did not take a record; ``temporary`` if a later attempt may succeed."""

    def __init__(self, message: str, *, temporary: bool) -> None:
        super().__init__(message)
        self.temporary = temporary


class Destination(Protocol):
    """Where a run is recorded. One thread makes all calls; a call that raised TrackingError may be repeated."""

    name: str

    def start(self) -> None:
        """Open or create the record of the run."""

    def write(self, records: Sequence[Record]) -> None:
        """Add records."""

    def finish(self, state: str, report: Mapping[str, Any] | None) -> None:
        """Add the report, if there is one, and mark the run as ``done``, ``stopped`` or ``failed``."""


class BackgroundSender:
    """Sends records to ``destination``; ``log`` receives a line when that fails."""

    def __init__(self, destination: Destination, log: Callable[[str], None]) -> None:
        self._destination, self._log = destination, log
        self._waiting: deque[Record] = deque()
        self._sent, self._lost, self._is_finished = 0, 0, False
        self._error = "it has not answered"
        self._end: tuple[str, Mapping[str, Any] | None] | None = None
        self._changed = threading.Condition()
        self._abandoned = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"tracking {destination.name}", daemon=True)
        self._thread.start()

    def put(self, record: Record) -> None:
        """Add ``record`` to those that wait, at once; it is lost if too many do."""
        with self._changed:
            if len(self._waiting) < MAX_WAITING:
                self._waiting.append(record)
            else:
                self._lost += 1

    def end(self, state: str, report: Mapping[str, Any] | None) -> None:
        """Send what waits, then the end of the run; ``wait`` returns when that is done."""
        with self._changed:
            self._end = state, report
            self._changed.notify_all()

    def wait(self) -> None:
        """Wait until everything is sent, or for the maximum time, and log what was not."""
        assert self._end is not None, "still running"
        self._thread.join(END_SECONDS)
        self._abandoned.set()
        with self._changed:
            lost, total = self._lost + len(self._waiting), self._lost + len(self._waiting) + self._sent
        if lost or not self._is_finished:
            end = "" if self._is_finished else ", and not the end of the run"
            self._log(f"{self._destination.name}: {lost:,} of {total:,} records were not sent{end}: {self._error}")

    def _run(self) -> None:
        if not self._attempt(self._destination.start):
            return
        while batch := self._next_batch():
            taken = self._attempt(partial(self._destination.write, batch))
            if self._abandoned.is_set():
                return
            with self._changed:
                for _ in batch:
                    self._waiting.popleft()
                self._sent += len(batch) if taken else 0
                self._lost += 0 if taken else len(batch)
        assert self._end is not None
        self._is_finished = self._attempt(partial(self._destination.finish, *self._end))

    def _next_batch(self) -> list[Record]:
        """Wait for records, and return the next ones without removing them; none once the run has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._end is not None, GATHER_SECONDS)
            while not self._waiting and self._end is None:
                self._changed.wait(GATHER_SECONDS)
            return list(islice(self._waiting, BATCH_RECORDS))

    def _attempt(self, action: Callable[[], None]) -> bool:
        """Call ``action`` until it succeeds; return False once it is rejected or the run no longer waits."""
        pause = 1.0
        while not self._abandoned.is_set():
            try:
                action()
                return True
            except TrackingError as error:
                self._error, is_rejected = str(error), not error.temporary
            except Exception as error:  # a defect of a tracking package must not end the training
                self._error, is_rejected = f"{type(error).__name__}: {error}", True
            if is_rejected:
                self._log(f"{self._destination.name}: {self._error}; training goes on without it")
                return False
            if pause == 1.0:
                self._log(f"{self._destination.name}: {self._error}; training goes on, and it is tried again")
            self._abandoned.wait(pause)
            pause = min(2 * pause, _MAX_PAUSE_SECONDS)
        return False
