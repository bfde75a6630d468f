"""Keep the versions of a model: one process writes them, the others open the current one.

    versions = Versions(folder)
    versions.publish(write_version(...))
    name = versions.current()

    FOLDER/current          the name of the version to serve
    FOLDER/000001/          a version (trainer/serving/version_folder.py)

The version before the current one is kept while a process has it open; then it is deleted, as it may have IDs that were
forgotten since.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path

from crossfade.base.errors import CrossfadeError, as_typed
from crossfade.base.io.disk_errors import is_full_disk
from crossfade.base.io.file_lock import try_lock
from crossfade.deploy.cluster.role_variables import die_with_agent
from crossfade.deploy.serving.metrics import record_failed_refresh, record_written
from crossfade.deploy.serving.options import INDEX_FROM, ServeOptions
from crossfade.trainer.data.reporter import NullReporter, ProgressReporter
from crossfade.trainer.recommend.trained_model import TrainedModel, source_fingerprint, with_trained_model
from crossfade.trainer.serving.copies_folder import full_work_disk_error
from crossfade.trainer.serving.version_folder import CARD_FILE, VersionOptions, write_version

_CURRENT = "current"
_NICENESS = 19
_POLL_SECONDS = 0.2
_logger = logging.getLogger(__name__)


class Versions:
    """The versions in one folder."""

    def __init__(self, folder: Path) -> None:
        """Use ``folder``, which must exist."""
        self._folder = folder

    def current(self) -> str | None:
        """Return the name of the current version; None before the first."""
        try:
            return (self._folder / _CURRENT).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def previous(self) -> str | None:
        """Return the name of the version before the current one; None if it is not there."""
        name = f"{int(self.current() or 0) - 1:06d}"
        return name if self.path(name).exists() else None

    def path(self, name: str) -> Path:
        """Return the folder of the version ``name``."""
        return self._folder / name

    def next_path(self) -> Path:
        """Return the folder for the next version, which does not exist."""
        path = self.path(f"{int(self.current() or 0) + 1:06d}")
        shutil.rmtree(path, ignore_errors=True)  # of a version that could not be completed
        return path

    def delete_earlier(self) -> bool:
        """Delete the versions before the current one that no process has open; return whether that are all."""
        earlier = [path for path in self._folder.glob("[0-9]" * 6) if path.name < (self.current() or "")]
        return sum(map(_delete_unused, earlier)) == len(earlier)

    def publish(self, path: Path) -> None:
        """Make the version in ``path`` the current one, and delete those before the previous one."""
        partial = self._folder / f"{_CURRENT}.partial"
        partial.write_text(path.name, encoding="utf-8")
        partial.replace(self._folder / _CURRENT)
        for old in sorted(self._folder.glob("[0-9]" * 6))[:-2]:
            shutil.rmtree(old)


def _delete_unused(path: Path) -> bool:
    """Delete the version in ``path`` unless a process has it open; return whether it is deleted."""
    try:
        with (path / CARD_FILE).open("r+b") as card:
            try_lock(card)
            shutil.rmtree(path)
    except FileNotFoundError:  # an earlier attempt has begun
        shutil.rmtree(path, ignore_errors=True)
    except OSError:
        return False
    return not path.exists()


class Refresher:
    """Writes a version whenever the source has other vectors.

    The first is written in this process, later ones in another one with the lowest priority, so that they take only the
    time that requests leave.
    """

    def __init__(self, source: ServeOptions, versions: Versions) -> None:
        """Write versions of the model that ``source`` names to ``versions``."""
        self._source = source
        self._versions = versions
        self._fingerprint: str | None = None
        self._has_earlier = False
        self._stop = threading.Event()

    def write_first(self, reporter: ProgressReporter) -> None:
        """Write and publish the first version.

        Raises:
            CrossfadeError: the source cannot be read, or the version not be written.
            OSError: the version cannot be written.
        """
        self._fingerprint = source_fingerprint(str(self._source.source))
        path, start = self._versions.next_path(), time.perf_counter()
        _write(self._source, path, reporter)
        self._versions.publish(path)
        record_written(time.perf_counter() - start)

    @contextmanager
    def running(self, seconds: float) -> Iterator[None]:
        """Look for other vectors every ``seconds`` while the context lasts; 0: never.

        A failure is logged, and the current version stays.
        """
        thread = threading.Thread(target=self._run, args=[seconds], name="refresh")
        if seconds:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            if seconds:
                thread.join()

    def _run(self, seconds: float) -> None:
        reported: str | None = None
        while not self._stop.wait(seconds):
            if self._has_earlier:
                self._has_earlier = not self._versions.delete_earlier()
            try:
                self._refresh()
            except Exception as error:  # whatever is wrong now, the next attempt may succeed
                record_failed_refresh()
                if str(error) != reported:
                    details = None if isinstance(error, CrossfadeError | OSError) else error
                    _logger.warning(f"no new version, the last one is still served: {error}", exc_info=details)
                reported = str(error)
            else:
                reported = None

    def _refresh(self) -> None:
        """Write and publish a version if the source has changed since the last.

        Raises:
            CrossfadeError: the source cannot be read, or the version not be written.
        """
        fingerprint = source_fingerprint(str(self._source.source))
        if fingerprint == self._fingerprint:
            return
        path, start = self._versions.next_path(), time.perf_counter()
        if not self._write_in_process(path):
            return
        self._versions.publish(path)
        self._fingerprint = fingerprint
        self._has_earlier = True
        seconds = time.perf_counter() - start
        record_written(seconds)
        _logger.info(f"serving a new version of {self._source.source}, written in {seconds:.1f} s")

    def _write_in_process(self, path: Path) -> bool:
        """Write a version to ``path``; return whether it is written, False if the server is to stop.

        Raises:
            CrossfadeError: it cannot be written.
        """
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        arguments = (self._source, path, sender)
        process = context.Process(target=_write_and_report, args=arguments, name="refresh")
        with closing(receiver):
            process.start()
            sender.close()
            while not receiver.poll(_POLL_SECONDS):
                if self._stop.is_set():
                    process.kill()
                    process.join()
                    return False
            problem = "the process that writes it was killed"
            with suppress(EOFError):
                problem = receiver.recv()
            process.join()
        if problem:
            raise CrossfadeError(problem)
        return True


def _write_and_report(source: ServeOptions, path: Path, sender: Connection) -> None:
    """Write a version in this child process; send the error message, which is empty on success."""
    die_with_agent()
    os.nice(_NICENESS)
    problem = ""
    try:
        _write(source, path, NullReporter())
    except CrossfadeError as error:
        problem = error.worded(as_typed)
    except (OSError, sqlite3.Error) as error:
        problem = str(error)
    sender.send(problem)


def _write(source: ServeOptions, path: Path, reporter: ProgressReporter) -> None:
    """Write a version to ``path``."""
    options = VersionOptions(source.metadata, None if source.exact else INDEX_FROM)

    def write(model: TrainedModel) -> None:
        shutil.rmtree(path, ignore_errors=True)  # what an attempt with a corrupt checkpoint has left
        write_version(model, path, options, reporter)

    try:
        with_trained_model(source, _logger.info, write)
    except BaseException as error:
        shutil.rmtree(path, ignore_errors=True)  # its disk may be full
        if not any(is_full_disk(cause) for cause in (error, error.__cause__) if cause is not None):
            raise
        raise full_work_disk_error(path.parent) from error
