"""Keep the costly steps of a preparation, so that the same command continues after a kill.

    with open_journal(folder, identity, dataset) as journal:
        if (state := journal.state("hold out")) is not None:
            journal.load("hold out", connection)
        else:
            ...
            journal.save("hold out", state, connection, {"moved": "FROM moved"})

The folder holds tables as Arrow files, and ``journal``, a line for each step that is complete: its CRC-32, and as JSON
the step, its files with their checksums, and a small state. A line is added once its files are on the disk, so that a
kill or a crash at any point loses the step in progress and no other. Steps are verified when the journal is opened:
from the first one that is damaged on, they are done again. The journal of other input, options, or versions is deleted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import stat
import sys
import tempfile
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from pydantic import BaseModel

from crossfade.base.errors import InputError, Option, StorageUnavailableError
from crossfade.base.io.checksums import FileChecksum
from crossfade.base.io.disk_errors import is_full_disk
from crossfade.base.io.durable_file import create_folder, replace_file, sync_folder
from crossfade.base.io.folder import Folder
from crossfade.kvstore import __version__
from crossfade.trainer.prepare.database import ResourceError, execute_on

KEPT_FROM_BYTES = 64 << 20
"""Preparations of less input take seconds, and keep nothing."""
_FORMAT = 1
_JOURNAL = "journal"
_BEGIN = "begin"
_BATCH_ROWS = 131_072
_logger = logging.getLogger(__name__)


def identify(*parts: object) -> str:
    """Return the identity of a preparation: a digest of ``parts``, which are JSON, and of the versions of programs."""
    versions = (_FORMAT, __version__, duckdb.__version__, pa.__version__, sys.version)
    return hashlib.sha256(json.dumps([*versions, *parts], sort_keys=True, default=str).encode()).hexdigest()


def kept_folder(out: Folder, work: Path | None) -> Path:
    """Return where a preparation of ``out`` keeps its steps: next to it, or in ``work`` under a name made from it.

    A dataset on S3 without ``work`` keeps them in the system's folder of temporary files.
    """
    if work is None and out.path is not None:
        target = out.path.absolute()
        return target.with_name(f".{target.name}.prepare")
    place = out.uri if out.path is None else str(out.path.absolute())
    return (
        work or Path(tempfile.gettempdir())
    ) / f"crossfade-prepare-{hashlib.sha256(place.encode()).hexdigest()[:16]}"


class _Entry(BaseModel):
    """A line of the journal. ``files`` are named relative to its folder."""

    step: str
    files: dict[str, FileChecksum]
    state: dict[str, Any]


class Journal:
    """The steps that are kept in ``folder``; None: nothing is.

    Attributes:
        is_on: whether steps are kept; not where there is no folder, or its disk is full.
        is_used: whether the preparation has begun.
        replaced_tag: the tag of the preparation that is not continued, since it was another one.
    """

    def __init__(self, folder: Path | None = None, identity: str = "", dataset: Path | None = None) -> None:
        """Open or create the journal; ``dataset`` is the folder of the files that the preparation publishes, if local.

        Raises:
            OSError: it cannot be written.
        """
        self._folder, self._identity, self._dataset = folder, identity, dataset
        self._entries: list[_Entry] = []
        self.is_on = folder is not None
        self.replaced_tag: str | None = None
        self.is_used = False
        if folder is None:
            return
        entries = self._read()
        if not entries or entries[0].state["identity"] != identity:
            self.replaced_tag = entries[0].state["tag"] if entries else None
            if len(entries) > 1:
                _logger.warning(
                    f"{folder}: deleting what was kept: the input, the options, or the versions have changed"
                )
            self.clear()
            return
        whole = next((index for index, entry in enumerate(entries) if not self._is_whole(entry)), len(entries))
        if whole < len(entries):
            _logger.warning(f"{folder}: a kept file of the step '{entries[whole].step}' is damaged: it is done again")
        self._entries = entries[:whole]
        replace_file(folder / _JOURNAL, b"".join(map(_line, self._entries)))

    @property
    def tag(self) -> str:
        """A suffix of file names that no other preparation has."""
        return str(self._entries[0].state["tag"])

    @property
    def steps(self) -> list[str]:
        """The steps that are kept, in order."""
        return [entry.step for entry in self._entries[1:]]

    def progress(self) -> str:
        """Describe the steps that are kept."""
        last = {entry.step: entry.state for entry in self._entries[1:]}
        return ", ".join(str(state.get("progress", step)) for step, state in last.items())

    def clear(self) -> None:
        """Delete what is kept, and begin anew.

        Raises:
            OSError: the folder cannot be written.
        """
        assert self._folder is not None
        self.remove()
        create_folder(self._folder)
        with suppress(PermissionError):  # of file systems that map owners
            self._folder.chmod(0o700)  # as a folder of temporary files
        if self._dataset is not None:
            create_folder(self._dataset)
        state = {"identity": self._identity, "tag": f"-{uuid.uuid4().hex[:12]}"}
        self._entries = [_Entry(step=_BEGIN, files={}, state=state)]
        replace_file(self._folder / _JOURNAL, _line(self._entries[0]))

    def remove(self) -> None:
        """Delete the folder, and the folder of the dataset unless the dataset was published."""
        for folder in (self._folder, self._dataset and self._dataset.parent):
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)

    def outlives(self, error: BaseException) -> bool:
        """Return whether steps are kept after ``error``.

        They are where the preparation was stopped, storage failed, memory did not suffice, or it never began.
        """
        stopped = isinstance(error, StorageUnavailableError | ResourceError) or not isinstance(error, Exception)
        return bool(self.steps) and (stopped or not self.is_used)

    def save(
        self,
        step: str,
        state: Mapping[str, Any],
        connection: duckdb.DuckDBPyConnection | None = None,
        tables: Mapping[str, str] | None = None,
        files: Sequence[Path] = (),
    ) -> None:
        """Keep ``step``: its ``state``, the rows of ``tables`` (queries, by table), and ``files`` that were synced.

        Where the disk is full or fails, what was kept is deleted, since the preparation may need its room, and nothing
        is kept from here on.
        """
        if not self.is_on or self._folder is None:
            return
        written: list[Path] = []
        try:
            for table, query in (tables or {}).items():
                assert connection is not None
                written.append(self._folder / f"{len(self._entries)}-{table}.arrow")
                _write_table(connection.sql(query), written[-1])
            sync_folder(self._folder)
            names = [path.name for path in written] + [str(path.absolute()) for path in files]
            entry = _Entry(
                step=step, files={name: FileChecksum.of(self._folder / name) for name in names}, state=dict(state)
            )
            with (self._folder / _JOURNAL).open("ab") as journal:
                journal.write(_line(entry))
                journal.flush()
                os.fsync(journal.fileno())
        except (OSError, pa.ArrowException) as error:
            cause = "the disk is full" if is_full_disk(error) else f"cannot be written: {error}"
            _logger.warning(f"{self._folder}: {cause}; goes on without keeping what is done")
            for path in (self._folder / _JOURNAL, *self._folder.glob("*.arrow")):
                with suppress(OSError):
                    path.unlink(missing_ok=True)
            self._entries, self.is_on = self._entries[:1], False
            return
        self._entries.append(entry)

    def state(self, step: str) -> dict[str, Any] | None:
        """Return the last state that was kept of ``step``; None if there is none."""
        return next((entry.state for entry in reversed(self._entries[1:]) if entry.step == step), None)

    def load(self, step: str, connection: duckdb.DuckDBPyConnection) -> None:
        """Append the rows that were kept of ``step`` to their tables, which exist."""
        for entry in self._entries[1:]:
            for name in entry.files if entry.step == step else ():
                assert self._folder is not None
                table = name.partition("-")[2].removesuffix(".arrow")
                with pa.memory_map(str(self._folder / name)) as source:
                    rows = pa.ipc.open_file(source).read_all()
                    execute_on(connection, rows, f"INSERT INTO {table} FROM part")

    def _read(self) -> list[_Entry]:
        """Read the lines up to one that was not finished."""
        assert self._folder is not None
        entries = []
        with suppress(FileNotFoundError, ValueError):
            for line in (self._folder / _JOURNAL).read_bytes().splitlines(keepends=True):
                crc, _, text = line.partition(b" ")
                if not line.endswith(b"\n") or int(crc, 16) != zlib.crc32(text):
                    break
                entries.append(_Entry.model_validate_json(text))
        return entries if entries and entries[0].step == _BEGIN else []

    def _is_whole(self, entry: _Entry) -> bool:
        assert self._folder is not None
        with suppress(OSError):
            return all(FileChecksum.of(self._folder / name) == expected for name, expected in entry.files.items())
        return False


def _line(entry: _Entry) -> bytes:
    text = entry.model_dump_json().encode() + b"\n"
    return f"{zlib.crc32(text):08x} ".encode() + text


def _write_table(relation: duckdb.DuckDBPyRelation, path: Path) -> None:
    """Write rows as they are in memory: Parquet takes three times the processor time."""
    reader = relation.to_arrow_reader(_BATCH_ROWS)
    with path.open("wb") as file:
        with pa.ipc.new_file(file, reader.schema) as writer:
            for batch in reader:
                writer.write_batch(batch)
        file.flush()
        os.fsync(file.fileno())


def _claim(folder: Path) -> None:
    """Create ``folder``, or check that no other user has made it in a folder of all users, such as /tmp."""
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        found = folder.lstat()
        is_shared = bool(folder.parent.stat().st_mode & stat.S_ISVTX)
        if not stat.S_ISDIR(found.st_mode) or (is_shared and found.st_uid != os.geteuid()):
            raise InputError(
                f"{folder}: was not made by this user; name another folder with ", Option("work_dir")
            ) from None


@contextmanager
def open_journal(folder: Path, identity: str, dataset: Path | None) -> Iterator[Journal]:
    """Open the journal of a preparation, which must be the only one that uses ``folder``.

    It is deleted in the end, unless the preparation was stopped, or storage did not answer: then the same command
    continues.

    Raises:
        InputError: another user, who could have put anything there, has made it in a folder of all users.
        OSError: it cannot be written.
    """
    _claim(folder)
    journal = Journal(folder, identity, dataset)
    if journal.steps:
        _logger.info(f"continues from {folder}: {journal.progress()}")
    try:
        yield journal
    except BaseException as error:
        if journal.outlives(error):
            _logger.warning(f"{folder}: kept what is done: the same command continues from it; delete it otherwise")
        else:
            journal.remove()
        raise
    journal.remove()
