"""Events: what a run and its processes report while they work, as typed objects and as JSON.

    emit(PhaseEvent(name="evaluate", epoch=2, step=500))          # an EventSink takes every kind
    to_json(event)                                                # {"event": "phase", "name": "evaluate", ...}
    parse_event({"event": "checkpoint_failed", "step": 8, "message": "disk full"})

In JSON the key ``event`` holds the kind and fields without a value are left out. The files ``events.jsonl`` and
``processes.jsonl`` of a run folder hold one event a line, with the ``time`` when it was written; see docs/reference.md.
"""

from __future__ import annotations

import json
import os
import time
import time as clock
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from crossfade.trainer.runs.run_folder import EVENTS_FILE, RunFolder

Whole = Annotated[int, Field(gt=-(2**127), lt=2**127)]
"""An integer that a float can hold: bytes of a long run exceed 64 bits, but text may hold any number of digits."""
Seconds = Annotated[float, Field(allow_inf_nan=False)]
_MAX_TIME = 1e11
UnixTime = Annotated[float, Field(gt=-_MAX_TIME, lt=_MAX_TIME)]
"""Up to the year 5138: later times have no date on some systems."""


class _Event(BaseModel):
    # A loss may be infinite, and JSON as Python writes it can hold that.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, ser_json_inf_nan="constants")

    kind: ClassVar[str]


class StepEvent(_Event):
    """A step of training, as one worker took it. Logs and pipes keep a sample of them."""

    kind: ClassVar[str] = "step"
    epoch: Whole = Field(description="epoch of the step, from 1")
    step: Whole = Field(description="steps taken so far")
    steps: Whole = Field(description="steps planned for the run; fewer once valid shows no gain")
    examples: Whole = Field(description="examples of all workers so far")
    loss: float = Field(description="mean loss of this worker's slice of the batch")
    learning_rate: float = Field(description="learning rate of the step")
    local_examples: Whole = Field(description="examples in this worker's slice of the batch")
    rows: dict[str, Whole] = Field(description="active rows of the step, by table")
    seconds: dict[str, Seconds] = Field(description="seconds of all steps so far, by phase of a step")


class EpochEvent(_Event):
    """The end of an epoch, or of the run."""

    kind: ClassVar[str] = "epoch"
    epoch: Whole = Field(description="epoch that ended, from 1")
    step: Whole = Field(description="steps taken so far")
    loss: float = Field(description="mean loss of the epoch's examples, over all workers")
    valid: dict[str, Whole | float] | None = Field(
        None,
        description="metrics on the valid split, if it was evaluated, and with `_se` their standard errors",
    )


class PhaseEvent(_Event):
    """The beginning of a phase of the run, or a keep-alive during a long phase."""

    kind: ClassVar[str] = "phase"
    name: str = Field(description="such as `tables`, `training`, `evaluate`, `embeddings`, `checkpoint`, `test`")
    epoch: Whole | None = Field(None, description="epoch that has started, from 1")
    step: Whole | None = Field(None, description="steps taken so far; always present in `training`")
    rows_from: str | None = Field(None, description="in `training`: checkpoint that the rows were loaded from")
    engine: str | None = Field(None, description="in `training`: the gradient engine of the first worker")
    devices: list[str] | None = Field(None, description="in `training`: what that worker computes on")
    kernels: str | None = Field(None, description="in `training`: the CPU kernels of that worker")


class TotalsEvent(_Event):
    """Rows and bytes that all workers together have moved so far."""

    kind: ClassVar[str] = "totals"
    step: Whole = Field(description="steps taken so far")
    rows_pulled: Whole = Field(description="rows pulled")
    rows_pushed: Whole = Field(description="rows pushed")
    bytes_pulled: Whole = Field(description="bytes of row IDs and values pulled")
    bytes_pushed: Whole = Field(description="bytes of row IDs and gradients pushed")
    dense_equivalent_bytes_pushed: Whole = Field(description="bytes that dense gradients would have been")


class CheckpointSaved(_Event):
    """A checkpoint is complete."""

    kind: ClassVar[str] = "checkpoint_saved"
    step: Whole = Field(description="step of the checkpoint")
    checkpoint: str = Field(description="its path or URI")
    pause_seconds: Seconds = Field(description="seconds that training paused for it")
    seconds: Seconds = Field(description="seconds from the request until all parts were written")
    bytes: Whole = Field(description="its size")


class CheckpointFailed(_Event):
    """A checkpoint could not be written; training continues."""

    kind: ClassVar[str] = "checkpoint_failed"
    step: Whole = Field(description="step of the checkpoint")
    message: str = Field(description="why")


class CheckpointPruneFailed(_Event):
    """Old checkpoints could not be deleted; training continues."""

    kind: ClassVar[str] = "checkpoint_prune_failed"
    message: str = Field(description="why")


class StoppedEvent(_Event):
    """The run stopped on request before it was done."""

    kind: ClassVar[str] = "stopped"
    step: Whole = Field(description="step after which it stopped")
    checkpoint: str | None = Field(None, description="checkpoint of that step; absent if it could not be written")


class ReportEvent(_Event):
    """The report of a finished run, sent where the worker cannot write the run folder. No log keeps it."""

    kind: ClassVar[str] = "report"
    report: dict[str, Any] = Field(description="contents of `report.json`")


class LogWriteFailed(_Event):
    """Events are missing from the log from here on; training continues."""

    kind: ClassVar[str] = "log_write_failed"
    message: str = Field(description="file and error")


class RoleError(_Event):
    """A role is about to exit because of an error. Its agent reports it; no log keeps it."""

    kind: ClassVar[str] = "error"
    message: str = Field(description="what went wrong")
    exit_code: Whole = Field(description="exit code of the role")
    restart: bool = Field(description="whether a restart of the job may help")
    checkpoint: str | None = Field(None, description="corrupt checkpoint that must not be loaded again")


class MetricsAddress(_Event):
    """Where a role serves its metrics. No log keeps it."""

    kind: ClassVar[str] = "metrics"
    address: str = Field(description="HOST:PORT")


class LoadEvent(_Event):
    """What a role uses of its machine, every few seconds. The coordinator keeps the latest."""

    kind: ClassVar[str] = "load"
    load: dict[str, Any] = Field(description="process id, memory, CPU seconds and the role's own figures")


class WaitingForHosts(_Event):
    """The job waits until enough hosts have joined."""

    kind: ClassVar[str] = "waiting"
    hosts: Whole = Field(description="hosts that are missing")


class HostsMissing(_Event):
    """The job starts without some of its hosts."""

    kind: ClassVar[str] = "hosts_missing"
    hosts: Whole = Field(description="hosts that are missing")


class ListeningEvent(_Event):
    """The coordinator accepts agents of other hosts."""

    kind: ClassVar[str] = "listening"
    address: str = Field(description="HOST:PORT")


class InterruptionNotice(_Event):
    """A host is about to be reclaimed by the cloud."""

    kind: ClassVar[str] = "interruption_notice"
    host: str = Field(description="name of the host")
    address: str = Field(description="address of its roles")
    reason: str = Field(description="text of the notice")


class RestartEvent(_Event):
    """A new generation of roles starts because the one before it failed or lost a host."""

    kind: ClassVar[str] = "restart"
    generation: Whole = Field(description="number of the new generation")
    cause: str = Field(description="why the one before it ended")
    step: Whole = Field(description="step that training resumes from")
    checkpoint: str | None = Field(None, description="checkpoint that it resumes from; absent: from the beginning")
    skipped: list[str] = Field([], description="newer checkpoints that could not be used, and why")
    lost_steps: Whole | None = Field(None, description="steps since that checkpoint, which are taken again")
    lost_seconds: Seconds | None = Field(None, description="seconds that they took, if that is known")


class ResumeEvent(_Event):
    """The first generation of a command resumes an earlier run."""

    kind: ClassVar[str] = "resume"
    step: Whole = Field(description="step that training resumes from")
    checkpoint: str | None = Field(None, description="checkpoint that it resumes from; absent: from the beginning")
    skipped: list[str] = Field([], description="newer checkpoints that could not be used, and why")


class FailureEvent(_Event):
    """A role, a host, or a run in process has failed, which ends its generation."""

    kind: ClassVar[str] = "failure"
    generation: Whole = Field(description="number of the generation")
    role: str | None = Field(None, description="name of the role; absent if it is not known")
    host: str | None = Field(None, description="name of its host, or of the host that was lost")
    cause: str = Field(description="how it ended, such as `was killed by SIGKILL`; what happened if no role is named")
    error: str | None = Field(None, description="last line of its error, if it has written one")
    log: str | None = Field(None, description="path of its log on its host")
    ends_run: bool = Field(description="whether no generation follows")
    step: Whole = Field(description="steps taken until then")
    lost_steps: Whole = Field(description="steps since the newest checkpoint")
    lost_seconds: Seconds | None = Field(None, description="seconds that they took, if that is known")
    after_results: bool | None = Field(None, description="whether all results had been written, so the run is done")

    def describe(self) -> str:
        """Return a line for users."""
        where = f" on {self.host}" if self.host else ""
        return f"{self.role}{where} {self.cause}" if self.role else self.cause


class BackoffEvent(_Event):
    """A restart is delayed after repeated failures."""

    kind: ClassVar[str] = "backoff"
    cause: str = Field(description="why the last generation ended")
    seconds: Seconds = Field(description="seconds until the restart")


class CommandStarted(_Event):
    """A `crossfade train` command started the run or resumed it. Only in `processes.jsonl`."""

    kind: ClassVar[str] = "begin"
    host: str = Field(description="name of its host")
    pid: Whole = Field(description="its process id")
    pid_started: Seconds = Field(description="when the process started, in seconds since its machine did")


class CommandEnded(_Event):
    """The `crossfade train` command ended. Only in `processes.jsonl`."""

    kind: ClassVar[str] = "end"
    state: str = Field(description="`done`, `failed` or `stopped`")
    message: str = Field(description="why; empty if done")


TrainingEvent = (
    StepEvent
    | EpochEvent
    | PhaseEvent
    | TotalsEvent
    | CheckpointSaved
    | CheckpointFailed
    | CheckpointPruneFailed
    | StoppedEvent
    | ReportEvent
    | LogWriteFailed
)
RoleEvent = RoleError | MetricsAddress | LoadEvent
JobEvent = (
    WaitingForHosts
    | HostsMissing
    | ListeningEvent
    | InterruptionNotice
    | RestartEvent
    | ResumeEvent
    | FailureEvent
    | BackoffEvent
)
CommandEvent = CommandStarted | CommandEnded
Event = TrainingEvent | RoleEvent | JobEvent | CommandEvent

EventSink = Callable[[Event], None]
"""Receives events. It is called in the thread that trains, so it returns quickly."""

EVENT_TYPES: dict[str, type[_Event]] = {event.kind: event for event in get_args(Event)}


def to_json(event: Event) -> dict[str, Any]:
    """Convert ``event`` to a JSON object; fields that are None are left out."""
    return {"event": event.kind, **{name: value for name, value in event if value is not None}}


def parse_event(values: Mapping[str, Any]) -> Event:
    """Parse a JSON object that ``to_json`` returned.

    Raises:
        ValueError: the kind is unknown, or a field is missing, unknown or of another type.
    """
    kind = values.get("event")
    event_type = EVENT_TYPES.get(kind) if isinstance(kind, str) else None
    if event_type is None:
        raise ValueError(f"unknown event kind {kind!r}; expected one of {', '.join(EVENT_TYPES)}")
    try:
        event = event_type.model_validate({name: value for name, value in values.items() if name != "event"})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"event '{kind}': {where}: {first['msg']}") from None
    return event  # type: ignore[return-value]  # the types of EVENT_TYPES are those of Event


class TimedEvent(NamedTuple):
    """An event of a log, with the Unix time when it was written."""

    time: float
    event: Event


def to_record(event: Event) -> dict[str, Any]:
    """Convert ``event`` to a line of a log, written now."""
    return {"time": clock.time(), **to_json(event)}


def parse_record(record: Mapping[str, Any]) -> TimedEvent:
    """Parse a line of a log.

    Raises:
        ValueError: it has no time, or does not hold an event.
    """
    values = dict(record)
    written = values.pop("time", None)
    if not isinstance(written, int | float) or not -_MAX_TIME < written < _MAX_TIME:
        raise ValueError(f"time: expected Unix time, but found {written!r}")
    return TimedEvent(float(written), parse_event(values))


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
