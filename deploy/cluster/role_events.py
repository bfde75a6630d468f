"""Events from a role to the agent that started it, and the line of a role's error that people read.

Events are JSON objects, one a line, through an inherited pipe.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time

from crossfade.base.environment import environment_integer
from crossfade.base.errors import InputError
from crossfade.base.text import error_line
from crossfade.trainer.runs.events import Event, StepEvent, parse_event, to_json

EVENTS_VARIABLE = "CROSSFADE_EVENTS_FD"
_MAX_DESCRIPTOR = (1 << 31) - 1
_STEP_SECONDS = 0.1
"""Minimum time between two step events; those in between are dropped."""


class EventPipe:
    """A role's end of the pipe. Without an agent, as in a container with a single role, events are dropped.

    Any thread may emit.
    """

    def __init__(self) -> None:
        """Write to the pipe that the environment names.

        Raises:
            InputError: the descriptor is not open.
        """
        self._descriptor = _open_descriptor()
        os.environ.pop(EVENTS_VARIABLE, None)
        self._last_step_at = float("-inf")
        self._write_lock = threading.Lock()

    def emit(self, event: Event) -> None:
        """Send ``event``, unless it is a step that follows another too closely and is not the last."""
        if self._descriptor is None:
            return
        now = time.monotonic()
        if isinstance(event, StepEvent):
            if now - self._last_step_at < _STEP_SECONDS and event.step != event.steps:
                return
            self._last_step_at = now
        line = json.dumps(to_json(event)).encode() + b"\n"
        with self._write_lock:
            while line:  # a signal may cut a long write short
                line = line[os.write(self._descriptor, line) :]


def _open_descriptor() -> int | None:
    """Return the number of the pipe; None if the environment names none."""
    descriptor = environment_integer(EVENTS_VARIABLE, -1, 0, _MAX_DESCRIPTOR)
    if descriptor < 0:
        return None
    try:
        os.fstat(descriptor)
    except OSError as error:
        raise InputError(
            f"{EVENTS_VARIABLE} is {descriptor}, which is not an open file of this process; unset it: an agent sets it "
            "for the roles that it starts"
        ) from error
    return descriptor


class EventLines:
    """The agent's end of the pipe: bytes in, events out."""

    def __init__(self) -> None:
        """Start with an empty buffer."""
        self._partial = b""

    def feed(self, data: bytes) -> list[Event]:
        """Return the events that ``data`` completes."""
        *lines, self._partial = (self._partial + data).split(b"\n")
        return [parse_event(json.loads(line)) for line in lines]


_LOG_HEAD = re.compile(r"^\S+Z [A-Z]+ \S+ (?:generation=\d+ )?(?:step=\d+ )?")
_ERROR = re.compile(r"(?:[\w.]*(?:Error|Exception)\b.*|Fatal Python error: .*|terminate called .*|what\(\): .*)")
"""What Python and C++ write before they end: the line of a traceback with the exception, or an abort's reason."""


def last_error(log: str) -> str | None:
    """Return the last line of ``log`` that names an exception or an abort; None if none does."""
    lines = (_LOG_HEAD.sub("", line).strip() for line in reversed(log.splitlines()))
    return next((error_line(line) for line in lines if _ERROR.match(line)), None)
