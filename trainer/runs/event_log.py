"""TODO-DOC split from trainer/runs/folder.py."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np

from trainer.runs.events import Event, EventSink, LogWriteFailed, StepEvent, to_record
from trainer.runs.folder import _MAX_RECORD_BYTES, _STEP_RECORD_SECONDS, EVENTS_FILE, RunFolder


class EventLog:
    """Appends events to ``events.jsonl``: every epoch, and a step a second.

    A disk without room for a record costs that record alone: training goes on, and every line is whole.
    """

    def __init__(self, path: Path, lost: Callable[[OSError], None]) -> None:
        """Append to the file at ``path``; ``lost`` is told why records are left out, once for each time that begins."""
        self._file = path.open("ab+", buffering=0)
        self._drop_unfinished_line()
        self._rest = b""
        self._lost = lost
        self._losing = False
        self._last_step = -np.inf

    def _drop_unfinished_line(self) -> None:
        """Take back what a writer that was killed had written of its last line."""
        size = self._file.seek(0, os.SEEK_END)
        start = self._file.seek(max(0, size - _MAX_RECORD_BYTES))
        self._file.truncate(start + self._file.read().rfind(b"\n") + 1)

    def write(self, event: Event) -> None:
        """Write ``event``, unless it is a step and one was written less than a second ago."""
        now = time.monotonic()
        if isinstance(event, StepEvent):
            if now - self._last_step < _STEP_RECORD_SECONDS:
                return
            self._last_step = now
        try:
            self._put(self._rest)
            if not self._rest:
                self._put(json.dumps(to_record(event)).encode() + b"\n")
                self._losing = False
        except OSError as error:
            if not self._losing:
                self._losing = True
                self._lost(error)

    def _put(self, data: bytes) -> None:
        """Write ``data``, of which a part may be left for the next time: a disk takes what it has room for."""
        written = self._file.write(data) if data else 0
        self._rest = data[written:]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def event_recorder(folder: RunFolder, emit: EventSink, opened: ExitStack) -> EventSink:
    """What writes an event to the log of the run in ``folder`` and passes it on; ``opened`` closes the log."""
    path = folder.path / EVENTS_FILE

    def lost(error: OSError) -> None:
        emit(LogWriteFailed(message=f"{path}: {error.strerror}"))

    log = opened.enter_context(closing(EventLog(path, lost)))

    def record(event: Event) -> None:
        log.write(event)
        emit(event)

    return record
