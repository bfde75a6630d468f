"""One run, read from its folder again and again: whatever is there, whole or not, and what is wrong with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from deploy.dashboard.process_history import ProcessHistory
from deploy.dashboard.tail import Tail
from deploy.dashboard.training_history import TrainingHistory
from kvstore.validation_errors import format_validation_error
from trainer.runs.folder import EVENTS_FILE, JOB_FILE, PROCESSES_FILE, REPORT_FILE, RESTARTS_FILE, RUN_FILE, STATE_FILE

T = TypeVar("T")
_SIGNS = (JOB_FILE, EVENTS_FILE, STATE_FILE, REPORT_FILE)
REFRESH_SECONDS = 0.5
"""Several viewers of a run have it read once in so long."""


def is_run(folder: Path) -> bool:
    """Whether there is a run in ``folder``, or was one."""
    return (folder / JOB_FILE).is_file() and any((folder / name).is_file() for name in (RUN_FILE, *_SIGNS[1:]))


class _ToldProcess(BaseModel):
    state: str
    host: str | None = None
    metrics: str | None = None
    load: dict[str, Any] = {}


class _Told(BaseModel):
    """What is used of ``state.json``."""

    time: float
    state: str
    message: str = ""
    started: float | None = None
    generation: int = 0
    command: dict[str, Any] = {}
    processes: dict[str, _ToldProcess] = {}


class _Report(BaseModel):
    """The same of ``report.json``; the rest is shown as it is."""

    model_config = ConfigDict(extra="allow")
    metrics: dict[str, dict[str, float]] = {}
    seconds_by_phase: dict[str, float] = {}
    examples_per_second: float | None = None
    bytes_pulled: int = 0
    bytes_pushed: int = 0
    bytes_pushed_if_dense: int = 0


_Restarts = TypeAdapter(list[dict[str, Any]])


class RunReader:
    """What a run folder says. ``refresh`` reads what has changed; the rest are plain attributes."""

    def __init__(self, path: Path, name: str) -> None:
        """The run in ``path``, called ``name``."""
        self.path, self.name = path, name
        self.lock = threading.Lock()
        """Held by whoever refreshes or looks."""
        self.training, self.processes = TrainingHistory(), ProcessHistory()
        self.job: dict[str, Any] = {}
        self.job_text = ""
        self.state: dict[str, Any] = {}
        self.told_at: float | None = None
        """When ``state`` was last seen to have changed, Unix time; None: it is as it was found."""
        self.report: dict[str, Any] = {}
        self.restarts: list[dict[str, Any]] = []
        self._metrics = Tail(path / EVENTS_FILE)
        self._samples = Tail(path / PROCESSES_FILE)
        self._seen: dict[str, tuple[int, int, int]] = {}
        self._problems: dict[str, str] = {}
        self._read_at = float("-inf")

    @property
    def version(self) -> tuple[object, ...]:
        """Something that is another one whenever there is something new to show."""
        return (len(self.training.steps), self.training.last_time, len(self.processes.events), *self._seen.values())

    def refresh(self) -> None:
        """Read what is new. Hold ``lock``."""
        if time.monotonic() - self._read_at < REFRESH_SECONDS:
            return
        self._read_at = time.monotonic()
        if self._metrics.is_another():
            self.training = TrainingHistory()
        for event in self._metrics.read():
            self.training.take(event)
        if self._samples.is_another():
            self.processes = ProcessHistory()
        for event in self._samples.read():
            self.processes.take(event)
        self._read_job()
        if self._changed(STATE_FILE):
            self.told_at = time.time() if self.state else None
            self.state = self._read_json(STATE_FILE, lambda text: _Told.model_validate_json(text).model_dump(), {})
        if self._changed(REPORT_FILE):
            self.report = self._read_json(REPORT_FILE, lambda text: _Report.model_validate_json(text).model_dump(), {})
        if self._changed(RESTARTS_FILE):
            self.restarts = self._read_json(RESTARTS_FILE, _Restarts.validate_json, [])

    def setting(self, section: str, key: str) -> Any:
        """A value of the job; None if it is not there."""
        found = self.job.get(section)
        return found.get(key) if isinstance(found, dict) else None

    def problems(self) -> list[str]:
        """What of the folder cannot be read, in words."""
        tails = [problem for tail in (self._metrics, self._samples) if (problem := tail.problem()) is not None]
        damaged = self.training.damaged + self.processes.damaged
        lacking = [f"{damaged:,} records lack what they should have, and are left out"] if damaged else []
        return [*self._problems.values(), *tails, *lacking]

    def _changed(self, name: str) -> bool:
        """Whether the file ``name`` is another one than when it was read last; if it is not there, that too is said."""
        try:
            found = (self.path / name).stat()
            identity = found.st_ino, found.st_mtime_ns, found.st_size
        except OSError:
            identity = 0, 0, 0
        changed = self._seen.get(name) != identity
        self._seen[name] = identity
        return changed

    def _read_job(self) -> None:
        if not self._changed(JOB_FILE):
            return
        self.job_text, self.job = "", {}
        self._problems.pop(JOB_FILE, None)
        try:
            self.job_text = (self.path / JOB_FILE).read_text(encoding="utf-8")
            found = yaml.safe_load(self.job_text)
            if not isinstance(found, dict):
                raise ValueError("it is not a mapping")
            self.job = found
        except (OSError, ValueError, yaml.YAMLError) as error:
            self._problems[JOB_FILE] = f"{JOB_FILE} cannot be read: {_first_line(error)}"

    def _read_json(self, name: str, parse: Callable[[str], T], nothing: T) -> T:
        self._problems.pop(name, None)
        try:
            return parse((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return nothing
        except ValidationError as error:
            self._problems[name] = f"{name} cannot be read: {format_validation_error(error)}"
        except (OSError, ValueError) as error:
            self._problems[name] = f"{name} cannot be read: {_first_line(error)}"
        return nothing


def _first_line(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error).splitlines()[0]
