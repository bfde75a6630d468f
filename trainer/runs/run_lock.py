"""The lock of a run folder, which only one command holds, and by which others see that it is alive.

    lock = RunLock(Path("runs/plays"))
    if lock.wait_for_end(on_wait=log_that_we_wait, silent_seconds=60) is None:
        with lock.held():                   # the file has the ID of this command
            ...                             # at the end: done, failed or stopped

The command that holds the lock changes the file's time every second. A command that finds it silent for long, since its
process is frozen or its host is lost, may take the run over; the silent one ends when it detects that.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TextIO

from crossfade.base.errors import InputError, Option

LOCK_FILE = "run.lock"
DONE, FAILED, STOPPED = "done", "failed", "stopped"
_RESULTS = {DONE, FAILED, STOPPED}
_RENEW_SECONDS = 1.0
_POLL_SECONDS = 0.5


class RunInProgressError(InputError):
    """Another process runs in the folder."""


class RunLock:
    """The lock of the run folder ``folder``, which may not exist yet."""

    def __init__(self, folder: Path, command: str | None = None) -> None:
        """Describe the lock. ``command`` is the ID of the command that holds it, which its roles get."""
        self.command = command
        self._folder, self._file = folder, folder / LOCK_FILE
        self._silent: tuple[int, int] | None = None
        """The time of a lock whose process gave no sign of life, which another process may take over."""

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock during the context, and then write how it ended: as done, with an error, or by a signal.

        Raises:
            BlockingIOError: another process holds it.
            OSError: the file cannot be written.
        """
        with ExitStack() as running:
            if self._silent is not None:
                # The process still holds the lock of this file: the lock of a new one is free.
                self._file.unlink(missing_ok=True)
            lock = running.enter_context(self._file.open("w", encoding="ascii"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.command = uuid.uuid4().hex[:16]
            lock.write(self.command)
            lock.flush()
            running.push(partial(self._write_result, lock))
            running.enter_context(_signs_of_life(lock))
            self._silent = None
            yield

    def is_held(self) -> bool:
        """Return whether a process holds the lock, unless it has been silent for long."""
        try:
            with self._file.open("r+", encoding="ascii") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return self._silent is None or self._time() != self._silent
        return False

    def is_done(self) -> bool:
        """Return whether the command that held it last has ended without an error."""
        return self._file.read_text(encoding="ascii") == DONE

    def check_owned(self) -> None:
        """Check that no other command has taken the run over from that of this process.

        Raises:
            InputError: one has, while this process was frozen.
        """
        # A host that does not share the folder has no lock file. The owner of the checkpoints is checked as well.
        with suppress(OSError):
            holder = self._file.read_text(encoding="ascii")
            if self.command is not None and holder not in {"", *_RESULTS, self.command}:
                raise InputError(
                    f"{self._folder}: another command, with ",
                    Option("resume"),
                    " or ",
                    Option("standby"),
                    ", has taken the run over, since this one gave no sign of life; this one ends",
                )

    def is_owned(self) -> bool:
        """Return whether the run is still that of this process."""
        try:
            self.check_owned()
        except InputError:
            return False
        return True

    def wait_for_end(self, on_wait: Callable[[], None], silent_seconds: float | None = None) -> str | None:
        """Wait while another process holds the lock, after a call of ``on_wait``.

        A process that gives no sign of life for ``silent_seconds`` counts as killed: it may be frozen, or its host be
        lost. Its run may be taken over as long as it stays silent; it ends when it detects that.

        Returns:
            ``done``, ``failed`` or ``stopped``; None if the process was killed, or if none was running.
        """
        last, since = self._probe(), time.monotonic()
        if last is None:
            return None
        on_wait()
        while (found := self._probe()) is not None:
            # By this process's own monotonic clock: those of two hosts may differ.
            if found != last:
                last, since = found, time.monotonic()
            elif silent_seconds is not None and time.monotonic() - since > silent_seconds:
                self._silent = last
                return None
            time.sleep(_POLL_SECONDS)
        with folder_lock(self._folder.parent):
            result = self._file.read_text(encoding="ascii")
        return result if result in _RESULTS else None

    def _probe(self) -> tuple[int, int] | None:
        """Return the lock's time if a process holds it. No command that starts may mistake this one for it."""
        if not self._folder.parent.exists():
            return None
        with folder_lock(self._folder.parent):
            return self._time() if self.is_held() else None

    def _time(self) -> tuple[int, int]:
        """Return what changes with each sign of life, and with each process that holds the lock."""
        status = self._file.stat()
        return status.st_ino, status.st_mtime_ns

    def _write_result(
        self, lock: TextIO, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Write the result of the run to the file. A killed process leaves the ID of its command there."""
        if self.is_owned():
            lock.seek(0)
            lock.truncate()
            # What a signal raises is not an error.
            lock.write(DONE if error is None else FAILED if isinstance(error, Exception) else STOPPED)
            lock.flush()


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Lock ``folder``, as soon as no other process holds its lock, while the context lasts."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _signs_of_life(lock: TextIO) -> Iterator[None]:
    """Change the time of the lock file every second while the context lasts, unless this process is frozen."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(_RENEW_SECONDS):
            with suppress(OSError):  # another process then takes the run over, and this one ends
                os.utime(lock.fileno() if os.utime in os.supports_fd else lock.name)

    thread = threading.Thread(target=renew, name="signs of life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
