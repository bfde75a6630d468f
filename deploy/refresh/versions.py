"""The versions of a service: which events each has taken, whether it was published, and which one is served.

    versions = ServiceVersions(Path("services/music"))
    versions.current                                # the newest published version that was not withdrawn
    versions.write(record)                          # a version that was decided on
    versions.withdraw(after=11)                     # a rollback
    versions.mark_forgotten()                       # IDs were deleted from its datasets: its versions must go

    FOLDER/  current.json  failure.txt  forgotten.json  job.yaml  plan.json  service.txt
             version-000012.json  version-000012.log  version-000012/ (its run)  version-000012-data/

A version is published by one atomic step, the file of its record; ``current.json``, which servers follow, is derived
from the records, and written again if a process was killed in between. The events of versions that were rejected or
withdrawn count as not taken.

``forgotten.json`` is there from the moment when IDs are forgotten until the versions with their vectors are deleted,
which is after a version without them was published.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Set as AbstractSet
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from crossfade.base.errors import CrossfadeError, InputError, as_typed, reason_of
from crossfade.base.formatting import local_time
from crossfade.base.io.durable_file import replace_file
from crossfade.base.io.folder import Folder
from crossfade.base.io.regular_files import read_below
from crossfade.base.io.storage_errors import translate_storage_errors
from crossfade.base.json_text import validate_json
from crossfade.trainer.data.manifest import FILE_NAME
from crossfade.trainer.embeddings.current_run import CURRENT_FILE, CurrentRun
from crossfade.trainer.runs.events import Seconds, UnixTime, Whole
from crossfade.trainer.runs.run_folder import REPORT_FILE

PLAN_FILE, FORGOTTEN_FILE, FAILURE_FILE = "plan.json", "forgotten.json", "failure.txt"
_FOLDER = re.compile(r"version-([0-9]{6})(-data)?")
"""Names of the folders of versions: of a run, or of a dataset."""
_TRASH = ".trash-"
"""The beginning of the names of folders that are being deleted."""
Status = Literal["published", "rejected", "withdrawn"]


class StoredRecord(BaseModel):
    """What a file in the folder of a service has."""

    model_config = ConfigDict(extra="forbid", frozen=True)


_Known = TypeVar("_Known", bound=StoredRecord)


class EventFile(StoredRecord):
    """A file of events.

    Attributes:
        uri: where it is.
        state: differs if it was replaced or changed.
        bytes: its size.
        is_faulty: whether it cannot be read, so that the version that took it has none of its events.
    """

    uri: str
    state: str
    bytes: int
    is_faulty: bool = False


class Plan(StoredRecord):
    """What the next version takes.

    Attributes:
        number: its number.
        base: the version that it continues; None for the first.
        files: its event files; none if it continues the last version only to leave out what was forgotten.
    """

    number: int
    base: int | None
    files: list[EventFile]


class VersionRecord(StoredRecord):
    """A version that was decided on.

    Attributes:
        number: its number, from 1.
        status: whether it was published, failed the guard, or was withdrawn by a rollback.
        base: the version that it continues; None for the first.
        files: the event files that it took; none if it was made only to leave out what was forgotten.
        events: interactions of its new events, of all splits: less than events, where repeated ones are summed.
        newest: the time of its newest event, in the unit of the timestamps; None without timestamps.
        metric: the metric by which it was judged, on the new events that were held out.
        before: that of the version that it continues, before it was trained on them; None if there was none.
        after: its own; None if nothing was held out.
        error: the larger standard error of both.
        queries: how many queries were evaluated.
        decided: when it was decided on, in Unix time.
        seconds: how long each stage took, in the last attempt if it was interrupted.
    """

    number: int
    status: Status
    base: int | None
    files: list[EventFile]
    events: Whole
    newest: int | None
    metric: str
    before: float | None
    after: float | None
    error: float | None
    queries: Whole
    decided: UnixTime
    seconds: dict[str, Seconds]


class Forgotten(StoredRecord):
    """IDs are forgotten: all versions up to the version ``through`` may have vectors of them.

    ``complete`` is whether they were deleted from all datasets.
    """

    through: int
    complete: bool


class ServiceVersions:
    """The versions in the folder of a service, of which one process at a time writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def records(self) -> list[VersionRecord]:
        """All versions that were decided on, the oldest first.

        Raises:
            InputError: a record was damaged.
        """
        return [read_record(path) for path in self.record_paths()]

    def record_paths(self) -> list[Path]:
        """Return the files of the records, the oldest first."""
        return sorted(self.folder.glob(f"{_name('[0-9]' * 6)}.json"))

    @property
    def published(self) -> list[VersionRecord]:
        """The published versions that were not withdrawn, the oldest first."""
        return [record for record in self.records if record.status == "published"]

    @property
    def current(self) -> VersionRecord | None:
        """The version that is served; None before the first."""
        return self.published[-1] if self.published else None

    @property
    def next_number(self) -> int:
        """The number of the next version, which no earlier one had."""
        return self.records[-1].number + 1 if self.records else 1

    def taken(self) -> dict[str, EventFile]:
        """Return the files whose events are in the current version, by URI."""
        return {file.uri: file for record in self.published for file in record.files}

    def tried(self) -> set[EventFile]:
        """Return the files of all versions that were rejected or withdrawn."""
        files = (file for record in self.records if record.status != "published" for file in record.files)
        return {file.model_copy(update={"is_faulty": False}) for file in files}

    def plan(self) -> Plan | None:
        """Return what the next version takes, if that was planned.

        Raises:
            InputError: the plan was damaged.
        """
        path = self.folder / PLAN_FILE
        return read_stored(Plan, path, "the plan of a version", "delete it, to plan anew") if path.exists() else None

    def write_plan(self, plan: Plan) -> None:
        """Write what the next version takes."""
        replace_file(self.folder / PLAN_FILE, plan.model_dump_json(indent=1).encode())

    def mark_forgotten(self, *, complete: bool) -> None:
        """Note that all versions so far may have vectors of IDs, and whether these were deleted from all datasets."""
        self._replace(FORGOTTEN_FILE, Forgotten(through=self.next_number - 1, complete=complete))

    @property
    def forgotten(self) -> Forgotten | None:
        """The note of a deletion that versions may not have followed yet.

        Raises:
            InputError: it was damaged.
        """
        path = self.folder / FORGOTTEN_FILE
        return read_stored(Forgotten, path, "the note of a deletion") if path.exists() else None

    def note_failure(self, error: Exception | None) -> None:
        """Note why an attempt at a version failed, and when; None: it did not."""
        path = self.folder / FAILURE_FILE
        if error is None:
            path.unlink(missing_ok=True)
            return
        reason = error.worded(as_typed) if isinstance(error, CrossfadeError) else reason_of(error)
        with suppress(OSError):  # the disk may be full
            text = f"the last attempt at a version failed, {local_time(time.time())}: {reason}"
            replace_file(path, text.encode())

    @property
    def failure(self) -> str | None:
        """Why the last attempt at a version failed, and when; None: it did not."""
        with suppress(FileNotFoundError):
            return read_below(self.folder, FAILURE_FILE).decode(errors="replace")
        return None

    @property
    def must_forget(self) -> bool:
        """Whether the version that is served may have vectors of IDs that were forgotten."""
        return self.current is not None and self.forgotten is not None and self.current.number <= self.forgotten.through

    @property
    def kept(self) -> list[int]:
        """The numbers of the published versions that are complete, the oldest first."""
        return [
            record.number
            for record in self.published
            if self._holds(self.run_path(record.number).name, REPORT_FILE)
            and self._holds(self.data_path(record.number).name, FILE_NAME)
        ]

    def _holds(self, folder: str, last_file: str) -> bool:
        """Return whether a folder of a version is complete: whether it has the file that is written last."""
        return (self.folder / folder / last_file).exists()

    def discard(self, number: int) -> None:
        """Delete what a version that is not published has left, but its record.

        Raises:
            OSError: something cannot be deleted.
        """
        for path in (self.run_path(number), self.data_path(number)):
            self._delete(path)

    def _delete(self, path: Path) -> None:
        """Delete a folder, and the log of a run; if the process is killed, the folder is complete or gone."""
        path.with_suffix(".log").unlink(missing_ok=True)  # its last line has the ID of a customer
        if path.exists():
            trash = path.with_name(f"{_TRASH}{path.name}")
            shutil.rmtree(trash, ignore_errors=True)
            path.rename(trash)
            shutil.rmtree(trash)

    def write(self, record: VersionRecord) -> None:
        """Write the record of a version, which publishes it if that is its status; servers follow."""
        self._write(record)
        self.repair()

    def _write(self, record: VersionRecord) -> None:
        self._replace(f"{_name(record.number)}.json", record)
        self.__dict__.pop("records", None)

    def _replace(self, name: str, record: BaseModel) -> None:
        """Write a file that others read; if the process is killed, it is the old or the new one."""
        replace_file(self.folder / name, record.model_dump_json(indent=1).encode())

    def withdraw(self, after: int) -> list[int]:
        """Withdraw the published versions after the version ``after``, the newest first; return their numbers."""
        withdrawn = [record for record in reversed(self.published) if record.number > after]
        for record in withdrawn:
            self._write(record.model_copy(update={"status": "withdrawn"}))
        self.repair()
        return [record.number for record in withdrawn]

    def repair(self) -> None:
        """Let servers follow the current version, also if a process was killed before it wrote that."""
        if self.current is None:
            return
        number = self.current.number
        current = CurrentRun(version=number, run=self.run_path(number).name, data=self.data_path(number).name)
        if self._current_run() != current:
            self._replace(CURRENT_FILE, current)

    def _current_run(self) -> CurrentRun | None:
        """Return the version that servers follow; None if that is not written, or was damaged."""
        try:
            return validate_json(CurrentRun, read_below(self.folder, CURRENT_FILE))
        except (FileNotFoundError, ValueError):
            return None

    def run_path(self, number: int) -> Path:
        """Return the run folder of a version."""
        return self.folder / _name(number)

    def data_path(self, number: int) -> Path:
        """Return the dataset of a version: its new events, and the earlier ones."""
        return self.folder / f"{_name(number)}-data"

    def clean(self, keep: int) -> None:
        """Delete the runs and datasets of all but the newest ``keep`` published versions.

        What is left of versions that were rejected, withdrawn, or half deleted is deleted too. Once a version without
        IDs that were forgotten is published, delete all versions that may have their vectors.

        Raises:
            OSError: something cannot be deleted.
        """
        for path in (*self.folder.glob(f"{_TRASH}*"), *self.folder.glob(".version-*")):  # of processes that were killed
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        outdated = 0 if self.must_forget or self.forgotten is None else self.forgotten.through
        current = [] if self.current is None else [self.current.number]
        kept = [number for number in {*self.kept[-keep:], *current} if number > outdated]
        self._keep_only({*(self.data_path(number).name for number in kept), *map(_name, kept)})
        if outdated:
            self._remove(FORGOTTEN_FILE)

    def _keep_only(self, names: AbstractSet[str]) -> None:
        """Delete the folders and logs of versions that were decided on, but those with these ``names``."""
        for path in sorted(self.folder.iterdir(), key=lambda path: path.name.count("-")):  # runs before their datasets
            has_rest = path.is_dir() or path.suffix == ".log"
            if has_rest and self._is_decided(path.stem) and path.stem not in names:
                self._delete(path.with_suffix(""))

    def _is_decided(self, name: str) -> bool:
        """Return whether ``name`` is that of a folder of a version that was decided on."""
        found = _FOLDER.fullmatch(name)
        return found is not None and int(found[1]) < self.next_number

    def _remove(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    def datasets(self, number: int) -> list[Folder]:
        """Return all copies of the dataset of a version."""
        return [Folder(str(self.data_path(number)))]


def is_service(location: str) -> bool:
    """Return whether the folder at ``location`` is that of a service that has begun its first version.

    Raises:
        InputError: it is on S3, and cannot be read.
        StorageUnavailableError: S3 does not answer.
    """
    folder = Folder(location)
    if folder.path is None:
        with translate_storage_errors(location, unreachable=InputError):
            return CURRENT_FILE in folder.names()
    found = any((folder.path / name).is_file() for name in (CURRENT_FILE, PLAN_FILE))
    return found or bool(ServiceVersions(folder.path).record_paths())


def read_record(path: Path) -> VersionRecord:
    """Read the record of a version.

    Raises:
        InputError: it was damaged.
    """
    record = read_stored(VersionRecord, path, description := "the record of a version")
    if path.name != f"{_name(record.number)}.json":
        raise InputError(f"{path}: is not {description}: its number is {record.number}; restore it")
    return record


def read_stored(kind: type[_Known], path: Path, description: str, fix: str = "restore it") -> _Known:
    """Read a file in the folder of a service.

    Raises:
        InputError: it was damaged, or it is no file of that folder.
        FileNotFoundError: it is missing.
    """
    try:
        return validate_json(kind, read_below(path.parent, path.name))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; {fix}") from error
    except ValueError as error:
        raise InputError(f"{path}: is not {description}: {error}; {fix}") from error


def _name(number: int | str) -> str:
    return f"version-{number:06}" if isinstance(number, int) else f"version-{number}"
