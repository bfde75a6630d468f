"""Write versions of a model for the server: the first one, and another whenever the source has other vectors.

    refresher = Refresher(options, folder)
    current = CurrentVersion(refresher.write_first(reporter))
    await refresher.follow(current)

    FOLDER/000001/          a version (trainer/serving/version_folder.py)

The first is written in this process, later ones in another with the lowest priority, so that they take only the time
that requests leave.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import shutil
import sqlite3
import threading
import time
from contextlib import closing, suppress
from multiprocessing.connection import Connection
from pathlib import Path

from crossfade.base.errors import CrossfadeError, as_typed
from crossfade.base.io.disk_errors import is_full_disk
from crossfade.base.processes import die_with_parent
from crossfade.deploy.serving.current import CurrentVersion
from crossfade.deploy.serving.metrics import record_failed_refresh, record_failed_version, record_written
from crossfade.deploy.serving.options import INDEX_FROM, ServeOptions
from crossfade.kvstore.memory import release_free_memory
from crossfade.trainer.data.reporter import NullReporter, ProgressReporter
from crossfade.trainer.recommend.trained_model import TrainedModel, source_fingerprint, with_trained_model
from crossfade.trainer.serving.copies_folder import CopiesFolder, full_work_disk_error
from crossfade.trainer.serving.version_folder import VersionOptions, write_version

_NICENESS = 19
_POLL_SECONDS = 0.2
_logger = logging.getLogger(__name__)


class Refresher:
    """Writes versions of the model that ``source`` names to ``folder``."""

    def __init__(self, source: ServeOptions, folder: CopiesFolder) -> None:
        self._source, self._folder = source, folder
        self._fingerprint: str | None = None
        self._written = 0
        self._stop = threading.Event()

    def write_first(self, reporter: ProgressReporter) -> Path:
        """Write the first version, and return its folder.

        Raises:
            CrossfadeError: the source cannot be read, or the version not be written.
            OSError: the version cannot be written.
        """
        self._fingerprint = source_fingerprint(str(self._source.source))
        path, start = self._next_path(), time.perf_counter()
        _write(self._source, path, reporter)
        self._written += 1
        record_written(time.perf_counter() - start)
        release_free_memory()
        return path

    def _next_path(self) -> Path:
        return self._folder.path / f"{self._written + 1:06d}"

    async def follow(self, current: CurrentVersion) -> None:
        """Replace the version of ``current`` whenever the source has other vectors, until this is canceled.

        A failure is logged and counted, the version stays, and the next attempt follows.
        """
        reported: str | None = None
        while self._source.refresh:
            await asyncio.sleep(self._source.refresh)
            try:
                await self._refresh(current)
            except Exception as error:  # whatever is wrong now, the next attempt may succeed
                if str(error) != reported:
                    # An error that is not foreseen is a fault of the program, whose place is needed.
                    details = None if isinstance(error, CrossfadeError | OSError) else error
                    _logger.warning(f"no new version, the last one is still served: {error}", exc_info=details)
                reported = str(error)
            else:
                reported = None

    async def _refresh(self, current: CurrentVersion) -> None:
        """Write a version if the source has changed since the last, and let ``current`` answer from it."""
        await current.delete_replaced()  # what could not be deleted before
        try:
            fingerprint = await asyncio.to_thread(source_fingerprint, str(self._source.source))
            if fingerprint == self._fingerprint:
                return
            path, start = self._next_path(), time.perf_counter()
            await asyncio.to_thread(self._write_in_process, path)
        except Exception:
            record_failed_refresh()
            raise
        self._written += 1
        seconds = time.perf_counter() - start
        record_written(seconds)
        try:
            await current.replace(path)
        except Exception:
            record_failed_version()
            shutil.rmtree(path, ignore_errors=True)
            raise
        self._fingerprint = fingerprint
        _logger.info(f"serving version {current.answers.version} of {self._source.source}, written in {seconds:.1f} s")

    def stop(self) -> None:
        """End the process that writes a version."""
        self._stop.set()

    def _write_in_process(self, path: Path) -> None:
        """Write a version to ``path`` in a child process.

        Raises:
            CrossfadeError: it cannot be written, or the server stops.
        """
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        arguments = (self._source, path, sender, os.getpid())
        process = context.Process(target=_write_and_report, args=arguments, name="refresh")
        with closing(receiver):
            process.start()
            sender.close()
            problem = "the process that writes it was killed"
            while not receiver.poll(_POLL_SECONDS):
                if self._stop.is_set():
                    process.kill()
            with suppress(EOFError):
                problem = receiver.recv()
            process.join()
        if problem:
            raise CrossfadeError(problem)


def _write_and_report(source: ServeOptions, path: Path, sender: Connection, parent: int) -> None:
    """Write a version in this child process; send the error message, which is empty on success."""
    die_with_parent(parent)
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
