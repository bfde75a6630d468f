"""The versions of a service that is kept on S3, so that any host can make the next one.

    set_remote(Path("services/music"), "s3://music/services/music")     # None: it is kept in the local folder only
    with locked_versions(Path("services/music"), progress) as versions: ...

The folder on S3 has the files and folders of a service (``versions.py``), but its logs and its plan. The local folder
is a copy of what the next version needs, and has that version until it is published. A host takes the lock on S3,
brings its copy in line, and works on it. A version is published by a conditional request that creates its record on S3,
after its run and its dataset were uploaded; then the local record is written. Wherever a host is killed, the next one
finds a version that was published, or not.

    FOLDER/remote.json      where the service is kept, and which state of each file and folder on S3 the copy has
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, Field

from crossfade.base.errors import InputError
from crossfade.base.io.durable_file import create_folder, replace_file
from crossfade.base.io.folder import Folder
from crossfade.base.io.output import staged_folder
from crossfade.base.io.regular_files import FoundFile
from crossfade.base.io.replacing import replace_folder
from crossfade.base.io.s3 import ChangedError
from crossfade.base.io.storage_errors import translate_storage_errors
from crossfade.base.io.writer_lock import LOCK_NAME, WriterLock, folder_writer, path_lock
from crossfade.base.json_text import validate_json
from crossfade.deploy.refresh.service_file import S3Folder
from crossfade.deploy.refresh.versions import (
    FORGOTTEN_FILE,
    PLAN_FILE,
    ServiceVersions,
    StoredRecord,
    VersionRecord,
    read_stored,
)
from crossfade.trainer.data.manifest import FILE_NAME
from crossfade.trainer.data.reporter import NullReporter, ProgressReporter
from crossfade.trainer.embeddings.current_run import CURRENT_FILE, CurrentRun
from crossfade.trainer.runs.run_folder import REPORT_FILE
from crossfade.trainer.runs.run_lock import LOCK_FILE, RunLock

REMOTE_FILE = "remote.json"
_logger = logging.getLogger(__name__)
_NOT_COPIED = {LOCK_NAME, LOCK_FILE}
_BUFFER_BYTES = 8 << 20
_STREAMS = 4
_RECORD = re.compile(r"version-[0-9]{6}\.json")
_State = tuple[int, float]
"""Bytes and time of a file on S3."""


class _Remote(StoredRecord):
    """``remote.json``: where a service is kept, and of which files on S3 the folder has a copy, by path."""

    uri: S3Folder
    files: dict[str, _State] = Field(default_factory=dict)


class RemoteVersions(ServiceVersions):
    """The versions of a service on S3, and their copies in a local folder; this process holds the lock of both."""

    def __init__(self, folder: Path, remote: _Remote, lock: WriterLock, progress: ProgressReporter) -> None:
        super().__init__(folder)
        self._remote, self._copied, self._lock, self._progress = Folder(remote.uri), remote.files, lock, progress
        self._found: dict[str, FoundFile] = {}

    # ---- copies

    def pull(self) -> None:
        """Bring the local folder in line with S3.

        Raises:
            InputError: a record was damaged, or the folder is not a copy of what is on S3.
            OSError: S3 does not answer, or the disk is full.
        """
        self._found = self._remote.files()
        records = {name for name in self._found if _RECORD.fullmatch(name)}
        local = {path.name for path in self.record_paths()}
        is_copy = bool(self._copied) or all(name in records and self._is_equal(name) for name in local)
        if not is_copy or (local and not records):
            raise InputError(
                f"{self.folder}: has other versions than {self._remote.uri}; name another folder or address, or copy "
                "the folder there, such as by 'aws s3 sync'"
            )
        self._pull_records(records)
        for name in self._local_folders():
            if not self._is_same(self._last_file(name)):
                self._delete(self.folder / name)  # another host has changed or deleted it
        if self.current is not None:
            self._pull_version(self.current.number)
        self.note()

    def _is_equal(self, name: str) -> bool:
        return self._remote.read(name) == (self.folder / name).read_bytes()

    def _pull_records(self, records: AbstractSet[str]) -> None:
        if FORGOTTEN_FILE in self._found and not self._is_same(FORGOTTEN_FILE):
            # What was prepared here may have events of the IDs.
            super().discard(self._next_of(records))
            (self.folder / PLAN_FILE).unlink(missing_ok=True)
        # A rollback changes the record of a version that is kept, of the same size and, within a second, time on S3.
        kept = {path.partition("/")[0] for path in self._found if "/" in path}
        changed = [
            name
            for name in (*records, FORGOTTEN_FILE)
            if name in self._found and (PurePosixPath(name).stem in kept or not self._is_same(name))
        ]
        with ThreadPoolExecutor(_STREAMS, thread_name_prefix="records") as pool:
            for name, data in zip(changed, pool.map(self._remote.read, changed), strict=True):
                replace_file(self.folder / name, data)
        for path in (*self.record_paths(), self.folder / FORGOTTEN_FILE):
            if path.name not in self._found:
                path.unlink(missing_ok=True)
        self.__dict__.pop("records", None)

    def _next_of(self, records: AbstractSet[str]) -> int:
        numbers = (int(name.removeprefix("version-").removesuffix(".json")) for name in records)
        return 1 + max(numbers, default=0)

    def _pull_version(self, number: int) -> None:
        """Download what the next version needs of the version ``number``: its run, and its dataset."""
        for path in (self.run_path(number), self.data_path(number)):
            self._download(path.name)
            self.note()

    def _is_same(self, name: str) -> bool:
        """Return whether the local copy of a file is that on S3."""
        found = self._found.get(name)
        return found is not None and self._copied.get(name) == (found.bytes, found.modified)

    def _last_file(self, folder: str) -> str:
        """Return the file of a folder that is written last, and that differs if the folder does."""
        return f"{folder}/{FILE_NAME if folder.endswith('-data') else REPORT_FILE}"

    def note(self) -> None:
        """Note which state of the files on S3 this host has copies of."""
        names = [name for name in self._found if _RECORD.fullmatch(name) or name == FORGOTTEN_FILE]
        names += [last for last in map(self._last_file, self._local_folders()) if last in self._found]
        self._copied = {name: (self._found[name].bytes, self._found[name].modified) for name in sorted(names)}
        note = _Remote(uri=self._remote.uri, files=self._copied)
        replace_file(self.folder / REMOTE_FILE, note.model_dump_json(indent=1).encode())

    def _local_folders(self) -> list[str]:
        return [path.name for path in self.folder.iterdir() if path.is_dir() and self._is_decided(path.name)]

    def synchronize(self) -> None:
        """Note what was changed on S3."""
        self._found = self._remote.files()
        self.note()

    def _upload(self, name: str, earlier: str | None = None) -> None:
        """Upload a folder, and delete what an earlier attempt has left of it; its last file comes last.

        Files that are links to files of the folder ``earlier``, which is on S3, are copied there by the server.
        """
        target, source = self._remote.child(name), self.folder / name
        known = {} if earlier is None else self._linked_files(earlier)
        self._lock.check()
        target.delete()
        paths = [path for path in source.rglob("*") if path.is_file() and path.name not in _NOT_COPIED]
        last = self.folder / self._last_file(name)
        self._progress.phase(f"upload {name}", sum(path.stat().st_size for path in paths), "byte")

        def upload(path: Path) -> None:
            self._lock.check()
            place, found = path.relative_to(source).as_posix(), path.stat()
            if (of_earlier := known.get((found.st_dev, found.st_ino))) is not None:
                target.take_over(place, self._remote, of_earlier)
                self._progress.advance(found.st_size)
                return
            with path.open("rb") as file, target.open_output(place) as copy:
                self._copy(file, copy)

        with ThreadPoolExecutor(_STREAMS, thread_name_prefix="upload") as pool:
            list(pool.map(upload, (path for path in paths if path != last)))
        upload(last)

    def _linked_files(self, name: str) -> dict[tuple[int, int], str]:
        """Return the files of a folder that are on S3 too, by their identity in the file system."""
        paths = [path for path in (self.folder / name).rglob("*") if path.is_file()]
        states = {path.relative_to(self.folder).as_posix(): path.stat() for path in paths}
        return {
            (state.st_dev, state.st_ino): place
            for place, state in states.items()
            if place in self._found and self._found[place].bytes == state.st_size
        }

    def _download(self, name: str) -> None:
        """Download a folder, unless it is there: completely, or not at all."""
        target, prefix = self.folder / name, f"{name}/"
        if target.exists():
            return
        files = {path.removeprefix(prefix): found for path, found in self._found.items() if path.startswith(prefix)}
        if not files:
            raise InputError(f"{self._remote.uri}/{name}: is missing; restore it")
        if any(".." in PurePosixPath(path).parts or path.startswith("/") for path in files):
            raise InputError(f"{self._remote.uri}/{name}: has a file whose name leads out of it; delete that")
        self._progress.phase(f"download {name}", sum(found.bytes for found in files.values()), "byte")
        source = self._remote.child(name)
        with staged_folder(target) as staging:

            def download(path: str) -> None:
                (staging / path).parent.mkdir(parents=True, exist_ok=True)
                with closing(source.open_random(path)) as file, (staging / path).open("wb") as copy:
                    self._copy(file, copy)

            with ThreadPoolExecutor(_STREAMS, thread_name_prefix="download") as pool:
                list(pool.map(download, files))
            replace_folder(target, staging)

    def _copy(self, source: Any, target: Any) -> None:
        buffer = memoryview(bytearray(_BUFFER_BYTES))
        while count := source.readinto(buffer):
            target.write(buffer[:count])
            self._progress.advance(count)

    # ---- versions

    def _holds(self, folder: str, last_file: str) -> bool:
        return f"{folder}/{last_file}" in self._found

    def datasets(self, number: int) -> list[Folder]:
        """Return all copies of the dataset of a version: on S3, and in the local folder."""
        path = self.data_path(number)
        return [self._remote.child(path.name), *(super().datasets(number) if path.exists() else [])]

    def write(self, record: VersionRecord) -> None:
        """Upload a version that is published, and write its record, which publishes it; servers follow.

        Raises:
            ChangedError: another process has made this version.
        """
        run, data = self.run_path(record.number).name, self.data_path(record.number).name
        with translate_storage_errors(self._remote.uri):
            if self._remote.version(f"{run}.json") is not None:
                raise ChangedError(f"another host has made version {record.number}")
            if record.status == "published":
                self._upload(data, None if record.base is None else self.data_path(record.base).name)
                self._upload(run)
            self._lock.check()
            self._remote.write_over(f"{run}.json", record.model_dump_json(indent=1).encode(), None)
            super()._replace(f"{run}.json", record)
            self.__dict__.pop("records", None)
            self.synchronize()
            self.repair()

    def discard(self, number: int) -> None:
        """Delete what a version that is not published has left, in both folders.

        Raises:
            OSError: something cannot be deleted.
        """
        super().discard(number)
        prefix = self.run_path(number).name
        for name in sorted({path.partition("/")[0] for path in self._found}):
            if name.startswith(prefix) and not _RECORD.fullmatch(name):
                self._delete_remote(name)

    def _delete_remote(self, name: str) -> None:
        """Delete a folder on S3: first the file that makes it complete, and the log of a service that was copied."""
        self._lock.check()
        if f"{name}.log" in self._found:
            self._remote.remove(f"{name}.log")
        self._remote.remove(self._last_file(name))
        self._remote.child(name).delete()

    def _replace(self, name: str, record: BaseModel) -> None:
        with translate_storage_errors(self._remote.uri):
            self._lock.check()
            self._remote.write(name, record.model_dump_json(indent=1).encode())
        super()._replace(name, record)

    def _remove(self, name: str) -> None:
        with translate_storage_errors(self._remote.uri):
            self._lock.check()
            self._remote.remove(name)
        super()._remove(name)

    def _current_run(self) -> CurrentRun | None:
        try:
            on_s3 = validate_json(CurrentRun, self._remote.read(CURRENT_FILE))
        except (FileNotFoundError, ValueError):
            return None
        return on_s3 if on_s3 == super()._current_run() else None

    def _keep_only(self, names: AbstractSet[str]) -> None:
        super()._keep_only(names)
        folders = {path.partition("/")[0].removesuffix(".log") for path in self._found}
        for name in sorted(folders, key=lambda name: name.count("-")):  # runs before their datasets
            if self._is_decided(name) and name not in names:
                self._delete_remote(name)
        self.synchronize()


def set_remote(folder: Path, uri: str | None) -> None:
    """Note that the service in ``folder`` is kept at ``uri`` on S3; None: in the folder only.

    Raises:
        InputError: it was kept on S3 until now.
    """
    path, known = folder / REMOTE_FILE, _read_remote(folder)
    if uri is None and known is not None:
        raise InputError(f"{folder}: is a copy of the service at {known.uri}; add that as 'remote', or delete {path}")
    if uri is not None and (known is None or known.uri != Folder(uri).uri):
        create_folder(folder)
        replace_file(path, _Remote(uri=Folder(uri).uri).model_dump_json().encode())


def _read_remote(folder: Path) -> _Remote | None:
    path = folder / REMOTE_FILE
    return read_stored(_Remote, path, "the place of a service", "delete it") if path.exists() else None


@contextmanager
def locked_versions(folder: Path, progress: ProgressReporter | None = None) -> Iterator[ServiceVersions]:
    """Keep other processes from changing the service in ``folder`` while the context lasts, and yield its versions.

    The copy of a service that is kept on S3 is brought in line first; ``progress`` gets the phases of that. A training
    that has survived its command, which was killed, ends before.

    Raises:
        InputError: one is changing it.
        StorageUnavailableError: S3 does not answer.
    """
    create_folder(folder)
    with ExitStack() as stack:
        stack.enter_context(path_lock(folder / LOCK_NAME, str(folder)))
        remote = _read_remote(folder)
        if remote is None:
            versions = ServiceVersions(folder)
        else:
            with translate_storage_errors(remote.uri):
                lock = stack.enter_context(folder_writer(Folder(remote.uri)))
                versions = RemoteVersions(folder, remote, lock, progress or NullReporter())
                versions.pull()
        versions.repair()
        training = RunLock(versions.run_path(versions.next_number))
        training.wait_for_end(lambda: _logger.info(f"{folder}: waiting for the training of a command that was killed"))
        yield versions
