"""Find folders of runs and services, and read each run repeatedly, while it grows or after, and what is wrong with it.

runs = Runs([Path("runs")])
with runs.lock:
    for run in runs.readers():
        run.refresh()
        run.training.step, run.problems()
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from crossfade.base.errors import InputError, reason_of
from crossfade.base.io.regular_files import open_below, read_below
from crossfade.base.validation import format_validation_error
from crossfade.deploy.dashboard.bounded_lock import BoundedLock
from crossfade.deploy.dashboard.history import TrainingHistory
from crossfade.deploy.dashboard.service_reader import ServiceReader
from crossfade.deploy.refresh.versions import is_service
from crossfade.trainer.config.loading import parse_job_text
from crossfade.trainer.runs.events import Seconds, TimedEvent, UnixTime, Whole, parse_record
from crossfade.trainer.runs.run_folder import (
    EVENTS_FILE,
    JOB_FILE,
    PROCESSES_FILE,
    REPORT_FILE,
    RUN_FILE,
    STATE_FILE,
)

_MAX_FILE_BYTES = 8 << 20
"""Of a file that is read as a whole: ``state.json`` of a thousand processes has 1 MB."""
_MAX_LINE_BYTES = 4 << 20
"""A sample of a thousand processes is a line of 1 MB."""
T = TypeVar("T")
_RUN_FILES = (RUN_FILE, EVENTS_FILE, STATE_FILE, REPORT_FILE)
_MAX_DEPTH = 2
"""Depth of the search for runs: trials of 'crossfade tune' are one level below other runs."""


class Tail:
    """Reads the events of one file. Invalid lines are counted and skipped; an unfinished last line is read later."""

    def __init__(self, path: Path) -> None:
        """Read from the beginning of ``path``, which need not exist yet."""
        self.path = path
        self.unread_bytes = 0
        """What the last call of ``read`` has left for the next."""
        self._error = ""
        self._restart(None)

    def _restart(self, inode: int | None) -> None:
        self._inode, self._offset, self._lines, self._bad_lines, self._first_bad_line = inode, 0, 0, 0, 0

    def is_replaced(self) -> bool:
        """Return whether the file was replaced or truncated; if so, ``read`` begins at its start again."""
        try:
            found = self.path.stat()
        except OSError:
            replaced = self._inode is not None
            self._restart(None)
            return replaced
        replaced = self._inode is not None and (found.st_ino != self._inode or found.st_size < self._offset)
        if replaced or self._inode is None:
            self._restart(found.st_ino)
        return replaced

    def read(self, take: Callable[[TimedEvent], None], until: float = math.inf) -> None:
        """Pass the events on complete lines since the last call to ``take``, which raises an error for invalid ones.

        After the monotonic time ``until``, leave the rest for the next call.
        """
        self._error, self.unread_bytes = "", 0
        try:
            with os.fdopen(open_below(self.path.parent, self.path.name), "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if os.fstat(file.fileno()).st_ino == self._inode:
                    file.seek(self._offset)
                    self._read(file, size, take, until)
        except FileNotFoundError:
            return
        except OSError as error:
            self._error = f"{self.path.name} cannot be read: {reason_of(error)}"

    def _read(self, file: BinaryIO, size: int, take: Callable[[TimedEvent], None], until: float) -> None:
        # A line without an end is not written completely, or too long to be an event: then it is skipped in pieces.
        while (line := file.readline(_MAX_LINE_BYTES)).endswith(b"\n") or len(line) == _MAX_LINE_BYTES:
            self._offset += len(line)
            self._lines += 1
            try:
                take(parse_record(json.loads(line.decode())))
            except (KeyError, TypeError, ValueError, RecursionError):
                if line.strip():
                    self._bad_lines += 1
                    self._first_bad_line = self._first_bad_line or self._lines
            if time.monotonic() >= until and self._offset < size:
                self.unread_bytes = size - self._offset
                break

    def problem(self) -> str | None:
        """Return a description of what is wrong with the file; None if nothing is."""
        if self._error:
            return self._error
        if self.unread_bytes > 0:
            return f"{self.path.name}: {self.unread_bytes:,} bytes are not read yet"
        if not self._bad_lines:
            return None
        count = "a line" if self._bad_lines == 1 else f"{self._bad_lines:,} lines"
        return f"{self.path.name}: {count} cannot be read, skipped (first: line {self._first_bad_line:,})"


def is_run(folder: Path) -> bool:
    """Return whether ``folder`` is a run folder: a job file alone is not enough."""
    return (folder / JOB_FILE).is_file() and any((folder / name).is_file() for name in _RUN_FILES)


class Updates(BaseModel):
    """What updates a table has had in a process."""

    updated: Whole


class Load(BaseModel):
    """The parts of a process's load that are shown; a process that has not reported yet has none."""

    resident_bytes: Whole | None = None
    memory_limit_bytes: Whole | None = None
    memory_available_bytes: Whole | None = None
    held_bytes: dict[str, dict[str, Whole]] = {}
    updates: dict[str, Updates] = {}
    phase_seconds: dict[str, Seconds] = {}


class ProcessState(BaseModel):
    """A process in ``state.json``: its state, host, metrics address and latest load."""

    state: str
    host: str | None = None
    metrics: str | None = None
    load: Load = Load()


class StateFile(BaseModel):
    """The parts of ``state.json`` that are shown. Times are Unix times."""

    time: UnixTime
    state: str
    message: str = ""
    started: UnixTime | None = None
    generation: Whole = 0
    command: dict[str, Any] = {}
    processes: dict[str, ProcessState] = {}


class RunFile(BaseModel):
    """The parts of ``run.json`` that are shown: ID and start of the run, as Unix time."""

    id: str | None = None
    started: UnixTime | None = None


class BaselinesOfReport(BaseModel):
    """Metrics of baselines, by split and name, notes on them, and which the run is below."""

    shortfall: str | None = None
    metrics: dict[str, dict[str, dict[str, float]]] = {}
    notes: list[str] = []


class ReportFile(BaseModel):
    """The parts of ``report.json`` that are shown."""

    model_config = ConfigDict(extra="ignore")
    metrics: dict[str, dict[str, float]] = {}
    baselines: BaselinesOfReport = BaselinesOfReport()
    seconds_by_phase: dict[str, Seconds] = {}
    examples_per_second: Seconds | None = None
    stopped_early: bool = False
    advice: str | None = None
    bytes_pulled: Whole = 0
    bytes_pushed: Whole = 0
    dense_equivalent_bytes_pushed: Whole = 0


def _parse_job(data: bytes) -> tuple[dict[str, Any], str]:
    text = data.decode()
    found = parse_job_text(text, JOB_FILE)
    if not isinstance(found, dict):
        raise ValueError("expected a mapping")
    return found, text


class RunReader:
    """The contents of a run folder. ``refresh`` reads what has changed; the rest are plain attributes."""

    def __init__(self, path: Path, name: str) -> None:
        """Read the folder ``path``; ``name`` is the run's name among those that are shown."""
        self.path, self.name = path, name
        self.training = TrainingHistory()
        self.job_events: list[TimedEvent] = []
        """Failures, restarts, and when commands started and ended."""
        self.job: dict[str, Any] = {}
        self.job_text = ""
        self.state: StateFile | None = None
        self.report: ReportFile | None = None
        self.identity = RunFile()
        self._events = Tail(path / EVENTS_FILE)
        self._processes = Tail(path / PROCESSES_FILE)
        self._seen: dict[str, tuple[int, int, int]] = {}
        self._problems: dict[str, str] = {}

    @property
    def is_behind(self) -> bool:
        """Whether a log has lines that were not read yet, so that the latest events are unknown."""
        return bool(self._events.unread_bytes or self._processes.unread_bytes)

    def refresh(self, until: float = math.inf) -> None:
        """Read what is new, of the logs until the monotonic time ``until``."""
        if self._events.is_replaced():
            self.training = TrainingHistory()
        self._events.read(self.training.add, until)
        if self._processes.is_replaced():
            self.job_events = []
        self._processes.read(self.job_events.append, until)
        self.job, self.job_text = self._read(JOB_FILE, _parse_job, (self.job, self.job_text), ({}, ""))
        self.identity = self._read(RUN_FILE, RunFile.model_validate_json, self.identity, RunFile())
        self.state = self._read(STATE_FILE, StateFile.model_validate_json, self.state, None)
        self.report = self._read(REPORT_FILE, ReportFile.model_validate_json, self.report, None)

    def setting(self, section: str, key: str) -> Any:
        """Return a value of the job; None if it is not set."""
        found = self.job.get(section)
        return found.get(key) if isinstance(found, dict) else None

    def problems(self) -> list[str]:
        """Return a description of each file or record that cannot be read."""
        tails = [problem for tail in (self._events, self._processes) if (problem := tail.problem()) is not None]
        return [*self._problems.values(), *tails]

    def _read(self, name: str, parse: Callable[[bytes], T], earlier: T, default: T) -> T:
        """Return what ``parse`` makes of the file ``name``; ``earlier`` if it is as at the last call."""
        try:
            found = (self.path / name).stat()
            identity = found.st_ino, found.st_mtime_ns, found.st_size
        except OSError:
            identity = 0, 0, 0
        if self._seen.get(name) == identity:
            return earlier
        self._seen[name] = identity
        self._problems.pop(name, None)
        try:
            return parse(read_below(self.path, name, _MAX_FILE_BYTES))
        except FileNotFoundError:
            return default
        except ValidationError as error:
            self._problems[name] = f"{name} cannot be read: {format_validation_error(error)}"
        except (OSError, ValueError, InputError) as error:
            self._problems[name] = f"{name} cannot be read: {reason_of(error)}"
        return default


class Runs:
    """The runs and the services in some folders. Hold ``lock`` while using their readers."""

    def __init__(self, paths: Sequence[Path], beside: Path | None = None) -> None:
        """Look in ``paths``, each the folder of a run or one that holds such folders, and in the folder ``beside``.

        The names of runs in ``beside`` begin with its own, so that the others do not depend on whether it is there.
        """
        self._paths, self._beside = paths, beside
        self._readers: dict[Path, RunReader] = {}
        self._services: dict[Path, ServiceReader] = {}
        self.lock = BoundedLock("the folder of the runs")

    def readers(self) -> list[RunReader]:
        """Return a reader for each run, sorted by name. A run keeps its reader as long as it exists."""
        self._scan()
        return sorted(self._readers.values(), key=lambda reader: reader.name)

    def services(self) -> list[ServiceReader]:
        """Return a reader for each service, sorted by name. A service keeps its reader as long as it exists."""
        self._scan()
        return sorted(self._services.values(), key=lambda reader: reader.name)

    def paths(self) -> dict[str, Path]:
        """Return the folder of each run, by its name. Takes ``lock``."""
        with self.lock:
            return {reader.name: reader.path for reader in self.readers()}

    def _scan(self) -> None:
        runs, services = {}, {}
        for path, name in self._find():
            if is_run(path):
                runs[path] = self._readers.get(path) or RunReader(path, name)
            else:
                services[path] = self._services.get(path) or ServiceReader(path, name)
        self._readers, self._services = runs, services

    def _find(self) -> Iterator[tuple[Path, str]]:
        """Yield the folders of runs and services, each with its name."""
        for path in self._paths:
            single = len(self._paths) == 1
            own, prefix = (path.absolute().name, "") if single else (str(path), f"{path}/")
            for found in _found_at(path, _MAX_DEPTH):
                yield found, own if found == path else f"{prefix}{found.relative_to(path)}"
        if self._beside is not None:
            for found in _found_at(self._beside, _MAX_DEPTH):
                yield found, str(found) if is_run(found) else str(found.relative_to(self._beside))


def _found_at(folder: Path, depth: int) -> Iterator[Path]:
    """Yield ``folder`` if it is of a run or a service, and such folders in it; a run has none."""
    if is_run(folder):
        yield folder
        return
    has_versions = is_service(str(folder))
    if has_versions:
        yield folder
    if not depth and not has_versions:
        return
    try:
        folders = sorted(path for path in folder.iterdir() if path.is_dir() and _may_be_shown(path.name))
    except OSError:
        return
    for path in folders:
        yield from _found_at(path, max(0, depth - 1))


def _may_be_shown(name: str) -> bool:
    """Return whether a folder of this name is searched: a page cannot show names that are not UTF-8."""
    return not name.startswith(".") and not any("\ud800" <= letter <= "\udfff" for letter in name)
