"""Find folders of runs and services, and read each run repeatedly, while it grows or after, and what is wrong with it.

for run in Runs([Path("runs")]).readers():
    with run.lock:
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

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from crossfade.base.errors import InputError, reason_of
from crossfade.base.io.regular_files import open_below, read_below
from crossfade.base.text import counted
from crossfade.base.validation import format_validation_error
from crossfade.deploy.dashboard.bounded_lock import BoundedLock
from crossfade.deploy.dashboard.history import Load, ProcessHistory, TrainingHistory
from crossfade.deploy.dashboard.service_reader import ServiceReader, is_service
from crossfade.trainer.config.loading import parse_job_text
from crossfade.trainer.runs.events import Seconds, UnixTime, Whole
from crossfade.trainer.runs.run_folder import (
    EVENTS_FILE,
    JOB_FILE,
    PROCESSES_FILE,
    REPORT_FILE,
    RESTARTS_FILE,
    RUN_FILE,
    STATE_FILE,
)

_MAX_FILE_BYTES = 8 << 20
"""Of a file that is read as a whole: ``state.json`` of a thousand processes has 1 MB."""
_CHUNK_BYTES, _MAX_LINE_BYTES = 1 << 20, 4 << 20
"""``/healthz`` waits while Python parses a chunk. A sample of a thousand processes is a line of 1 MB."""
_parse = json.JSONDecoder().decode
T = TypeVar("T")
_RUN_FILES = (RUN_FILE, EVENTS_FILE, STATE_FILE, REPORT_FILE)
REFRESH_SECONDS = 0.5
"""Several viewers of a run cause one read in this time."""
SCAN_SECONDS = 1.0
_MAX_DEPTH = 2
"""Depth of the search for runs: those of 'crossfade tune' are one level below the others."""


class Tail:
    """Reads the objects of one file. Invalid lines are counted and skipped; an unfinished last line is read later."""

    def __init__(self, path: Path) -> None:
        """Read from the beginning of ``path``, which need not exist yet."""
        self.path = path
        self.bad_lines = 0
        self.first_bad_line = 0
        """The number of the first invalid line, from 1; 0 if there is none."""
        self.error = ""
        """The reason why the file cannot be read; empty if it can."""
        self.unread_bytes = 0
        """What the last call of ``read`` has left for the next."""
        self._offset = self._lines = 0
        self._inode: int | None = None

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

    def _restart(self, inode: int | None) -> None:
        self._inode, self._offset, self._lines, self.bad_lines, self.first_bad_line = inode, 0, 0, 0, 0

    def read(self, until: float = math.inf) -> Iterator[dict[str, Any]]:
        """Yield the objects on complete lines since the last call; after the monotonic ``until``, leave the rest."""
        self.error, self.unread_bytes = "", 0
        try:
            with os.fdopen(open_below(self.path.parent, self.path.name), "rb") as file:
                if os.fstat(file.fileno()).st_ino == self._inode:
                    began = file.seek(self._offset)
                    while chunk := self._complete_lines(file):
                        if self._offset > began and time.monotonic() >= until:
                            self.unread_bytes = os.fstat(file.fileno()).st_size - self._offset
                            break
                        self._offset += len(chunk)
                        yield from self._objects(chunk)
                        file.seek(self._offset)
        except FileNotFoundError:
            return
        except OSError as error:
            self.error = f"{self.path.name} cannot be read: {reason_of(error)}"

    @staticmethod
    def _complete_lines(file: BinaryIO) -> bytes:
        data = b""
        while len(data) < _MAX_LINE_BYTES and (piece := file.read(_CHUNK_BYTES)):
            data += piece
            if end := data.rfind(b"\n") + 1:
                return data[:end]
        # A longer line cannot be a record: skip it in pieces, so that it does not block the reader.
        return data if len(data) >= _MAX_LINE_BYTES else b""

    def _objects(self, data: bytes) -> Iterator[dict[str, Any]]:
        # Bytes that are not UTF-8 become replacement characters, which at worst make one line invalid.
        for line in data.decode("utf-8", errors="replace").removesuffix("\n").split("\n"):
            self._lines += 1
            try:
                found = _parse(line)
            except (ValueError, RecursionError):
                found = None
            if isinstance(found, dict) and isinstance(found.get("event"), str) and "time" in found:
                yield found
            elif line.strip():
                self.bad_lines += 1
                self.first_bad_line = self.first_bad_line or self._lines

    def problem(self) -> str | None:
        """Return a description of what is wrong with the file; None if nothing is."""
        if self.error:
            return self.error
        if self.unread_bytes > 0:
            return f"{self.path.name}: {self.unread_bytes:,} bytes are not read yet"
        if not self.bad_lines:
            return None
        count = "a line" if self.bad_lines == 1 else f"{self.bad_lines:,} lines"
        return f"{self.path.name}: {count} cannot be read, skipped (first: line {self.first_bad_line:,})"


def is_run(folder: Path) -> bool:
    """Return whether ``folder`` is a run folder: a job file alone is not enough."""
    return (folder / JOB_FILE).is_file() and any((folder / name).is_file() for name in _RUN_FILES)


class ProcessState(BaseModel):
    """A process in ``state.json``: its state, host, metrics address and latest load."""

    state: str
    host: str | None = None
    metrics: str | None = None
    load: Load = {}


class OomKillsOfState(BaseModel):
    """The count of processes that the kernel killed for lack of memory, and the file that has it."""

    source: str
    count: Whole | None = None


class StateFile(BaseModel):
    """The parts of ``state.json`` that are shown. Times are Unix times."""

    time: UnixTime
    state: str
    message: str = ""
    started: UnixTime | None = None
    generation: Whole = 0
    command: dict[str, Any] = {}
    oom_kills: OomKillsOfState | None = None
    processes: dict[str, ProcessState] = {}
    warnings: list[str] = []


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


class Restart(BaseModel):
    """The parts of an entry of ``restarts.json`` that are shown."""

    model_config = ConfigDict(extra="allow")
    generation: Whole | None = None
    cause: str | None = None
    step: Whole | None = None
    lost_steps: Whole | None = None
    lost_seconds: Seconds | None = None


_Restarts = TypeAdapter(list[Restart])


def _parse_restarts(data: bytes) -> list[dict[str, Any]]:
    return [restart.model_dump(exclude_unset=True) for restart in _Restarts.validate_json(data)]


class RunReader:
    """The contents of a run folder. ``refresh`` reads what has changed; the rest are plain attributes."""

    def __init__(self, path: Path, name: str) -> None:
        """Read the folder ``path``; ``name`` is the run's name among those that are shown."""
        self.path, self.name = path, name
        self.lock = BoundedLock(f"the run '{name}'")
        """Hold it while refreshing or reading."""
        self.training, self.processes = TrainingHistory(), ProcessHistory()
        self.job: dict[str, Any] = {}
        self.job_text = ""
        self.state: StateFile | None = None
        self.state_changed_at: float | None = None
        """Unix time when ``state`` was last seen to change; None if it has not changed since it was first read."""
        self.report: ReportFile | None = None
        self.identity = RunFile()
        self.restarts: list[dict[str, Any]] = []
        self._events = Tail(path / EVENTS_FILE)
        self._processes = Tail(path / PROCESSES_FILE)
        self._seen: dict[str, tuple[int, int, int]] = {}
        self._problems: dict[str, str] = {}
        self._refreshed_at = float("-inf")

    @property
    def version(self) -> tuple[object, ...]:
        """A value that changes whenever there is something new to show."""
        return (len(self.training.steps), self.training.last_time, len(self.processes.events), *self._seen.values())

    @property
    def is_behind(self) -> bool:
        """Whether a log has lines that were not read yet, so that the latest events are unknown."""
        return bool(self._events.unread_bytes or self._processes.unread_bytes)

    def refresh(self, until: float = math.inf) -> None:
        """Read what is new, of the logs until the monotonic time ``until``. Hold ``lock``."""
        if time.monotonic() - self._refreshed_at < REFRESH_SECONDS:
            return
        self._refreshed_at = time.monotonic()
        if self._events.is_replaced():
            self.training = TrainingHistory()
        for record in self._events.read(until):
            self.training.add(record)
        if self._processes.is_replaced():
            self.processes = ProcessHistory()
        for record in self._processes.read(until):
            self.processes.add(record)
        if self._has_changed(JOB_FILE):
            self.job_text = ""
            self.job = self._read(JOB_FILE, self._parse_job, {})
        if self._has_changed(RUN_FILE):
            self.identity = self._read(RUN_FILE, RunFile.model_validate_json, RunFile())
        if self._has_changed(STATE_FILE):
            self.state_changed_at = time.time() if self.state else None
            self.state = self._read(STATE_FILE, StateFile.model_validate_json, None)
        if self._has_changed(REPORT_FILE):
            self.report = self._read(REPORT_FILE, ReportFile.model_validate_json, None)
        if self._has_changed(RESTARTS_FILE):
            self.restarts = self._read(RESTARTS_FILE, _parse_restarts, [])

    def setting(self, section: str, key: str) -> Any:
        """Return a value of the job; None if it is not set."""
        found = self.job.get(section)
        return found.get(key) if isinstance(found, dict) else None

    def is_distributed(self) -> bool:
        """Return whether the job runs in several processes: servers, or several workers."""
        workers = self.setting("cluster", "workers")
        return bool(self.setting("cluster", "servers")) or (isinstance(workers, int) and workers > 1)

    def problems(self) -> list[str]:
        """Return a description of each file or record that cannot be read."""
        tails = [problem for tail in (self._events, self._processes) if (problem := tail.problem()) is not None]
        invalid = self.training.invalid_records + self.processes.invalid_records
        records = [f"{counted(invalid, 'record')} skipped: not valid events"] if invalid else []
        return [*self._problems.values(), *tails, *records]

    def _has_changed(self, name: str) -> bool:
        """Return whether the file ``name`` was changed, replaced or deleted since the last call."""
        try:
            found = (self.path / name).stat()
            identity = found.st_ino, found.st_mtime_ns, found.st_size
        except OSError:
            identity = 0, 0, 0
        before, self._seen[name] = self._seen.get(name), identity
        return before != identity

    def _parse_job(self, data: bytes) -> dict[str, Any]:
        text = data.decode()
        found = parse_job_text(text, JOB_FILE)
        if not isinstance(found, dict):
            raise ValueError("expected a mapping")
        self.job_text = text
        return found

    def _read(self, name: str, parse: Callable[[bytes], T], default: T) -> T:
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
    """The runs and the services in some folders. Thread-safe."""

    def __init__(self, paths: Sequence[Path], beside: Path | None = None) -> None:
        """Look in ``paths``, each the folder of a run or one that holds such folders, and in the folder ``beside``.

        The names of runs in ``beside`` begin with its own, so that the others do not depend on whether it is there.
        """
        self._paths, self._beside = paths, beside
        self._readers: dict[Path, RunReader] = {}
        self._services: dict[Path, ServiceReader] = {}
        self._lock = BoundedLock("the folder of the runs")
        self._scanned_at = float("-inf")

    def readers(self) -> list[RunReader]:
        """Return a reader for each run, sorted by name. A run keeps its reader as long as it exists."""
        with self._lock:
            self._scan()
            return sorted(self._readers.values(), key=lambda reader: reader.name)

    def services(self) -> list[ServiceReader]:
        """Return a reader for each service, sorted by name. A service keeps its reader as long as it exists."""
        with self._lock:
            self._scan()
            return sorted(self._services.values(), key=lambda reader: reader.name)

    def _scan(self) -> None:
        if time.monotonic() - self._scanned_at < SCAN_SECONDS:
            return
        runs, services = {}, {}
        for path, name in self._find():
            if is_run(path):
                runs[path] = self._readers.get(path) or RunReader(path, name)
            else:
                services[path] = self._services.get(path) or ServiceReader(path, name)
        self._readers, self._services, self._scanned_at = runs, services, time.monotonic()

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
    has_versions = is_service(folder)
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
