"""Write the events of a run to ``events.jsonl``."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

from crossfade.trainer.runs.events import Event, EventSink, LogWriteFailed, StepEvent, to_record
from crossfade.trainer.runs.folder import EVENTS_FILE, RunFolder

_STEP_SECONDS = 1.0
_MAX_LINE_BYTES = 1 << 20


class EventLog:
    """Appends events to a file, one a line; of steps at most one a second.

    On a full disk the events that do not fit are dropped, but every line is complete and training continues.
    """

    def __init__(self, path: Path, on_failure: Callable[[OSError], None]) -> None:
        """Append to the file at ``path``; ``on_failure`` is called when events begin to be dropped."""
        self._file = path.open("ab+", buffering=0)
        self._truncate_unfinished_line()
        self._unwritten = b""
        self._on_failure = on_failure
        self._failing = False
        self._last_step_at = float("-inf")

    def _truncate_unfinished_line(self) -> None:
        """Remove the line that a killed process did not finish."""
        size = self._file.seek(0, os.SEEK_END)
        start = self._file.seek(max(0, size - _MAX_LINE_BYTES))
        self._file.truncate(start + self._file.read().rfind(b"\n") + 1)

    def write(self, event: Event) -> None:
        """Write ``event``, unless it is a step within a second of the last one."""
        now = time.monotonic()
        if isinstance(event, StepEvent):
            if now - self._last_step_at < _STEP_SECONDS:
                return
            self._last_step_at = now
        try:
            self._put(self._unwritten)
            if not self._unwritten:
                self._put(json.dumps(to_record(event)).encode() + b"\n")
                self._failing = False
        except OSError as error:
            if not self._failing:
                self._failing = True
                self._on_failure(error)

    def _put(self, data: bytes) -> None:
        """Write ``data`` and keep what did not fit on the disk: the next call completes the line."""
        written = self._file.write(data) if data else 0
        self._unwritten = data[written:]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def event_recorder(folder: RunFolder, sink: EventSink, opened: ExitStack) -> EventSink:
    """Return a sink that logs events in ``folder`` and passes them on to ``sink``; ``opened`` closes the log."""
    path = folder.path / EVENTS_FILE

    def report_failure(error: OSError) -> None:
        sink(LogWriteFailed(message=f"{path}: {error.strerror}"))

    log = opened.enter_context(closing(EventLog(path, report_failure)))

    def record(event: Event) -> None:
        log.write(event)
        sink(event)

    return record
