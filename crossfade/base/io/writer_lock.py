"""Let one process at a time write an output: a lock whose message names the process that holds it.

with path_lock(Path("data/.plays.lock"), "data/plays"): ...         # beside an output that is replaced as a whole
with folder_writer(Folder("s3://music/plays")) as lock: ...         # in a dataset that is changed in place
    lock.check()                                                    # before the step that publishes the changes

A lock is a file with a record of its owner. On a file system the kernel locks that file, so that a process that has
ended holds nothing. On S3 it is an object that a conditional request creates and that its owner renews; the lock of a
process that has ended on this host, or that has not renewed it for a minute, is taken over.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ValidationError

from crossfade.base.errors import InputError
from crossfade.base.io.disk_errors import write_error
from crossfade.base.io.folder import Folder
from crossfade.base.io.s3 import ChangedError, Version
from crossfade.base.processes import started_at

LOCK_NAME = ".writer.lock"
"""The lock of a dataset, in its folder."""
_RENEWAL_SECONDS = 15.0
"""Seconds after which the owner of a lock on S3 renews it."""
_LEASE_SECONDS = 60.0
"""Age at which a lock on S3 is taken over, if it is not renewed while another process looks on."""
_MAX_RECORD_BYTES = 4096
_logger = logging.getLogger(__name__)


class _Owner(BaseModel):
    """The process that holds a lock. ``machine`` is the scope in which its ID is unique, empty if unknown."""

    pid: int
    host: str
    since: str
    machine: str
    started_at: float
    token: str
    renewals: int = 0
    """How often it has renewed its lock, so that a lock that is renewed differs from before."""

    @staticmethod
    def this_process() -> _Owner:
        return _Owner(
            pid=os.getpid(),
            host=socket.gethostname(),
            since=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            machine=_machine(),
            started_at=started_at(os.getpid()),
            token=uuid.uuid4().hex,
        )

    def has_ended(self) -> bool:
        """Return whether the process ran on this host and has ended; False if that cannot be determined."""
        import psutil

        if not self.machine or self.machine != _machine():
            return False
        try:
            same = abs(started_at(self.pid) - self.started_at) <= 1
            return not same or psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True
        except psutil.AccessDenied:
            return False

    def __str__(self) -> str:
        return f"process {self.pid} on host {self.host}"


def _machine() -> str:
    """Return the identity of this boot of this host, and of the container in which process IDs are unique."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116 - pathlib would resolve the link
    except OSError:
        return ""


def _parse(record: bytes) -> _Owner | None:
    try:
        return _Owner.model_validate_json(record)
    except ValidationError:
        return None


def _busy(subject: str, record: bytes, lock: str | None = None) -> InputError:
    """Return the error that another process, which wrote ``record`` if it had the time, holds a lock.

    ``lock`` is one that outlives its process, so that it has to be deleted if its record does not name that.
    """
    owner = _parse(record)
    who = f"{owner} has been writing it since {owner.since}" if owner else "another process is writing it"
    fix = f"; if that process has ended, delete {lock}" if lock is not None and owner is None else ""
    return InputError(f"{subject}: {who}; wait until it ends, and run this command again{fix}")


@contextmanager
def folder_writer(folder: Folder) -> Iterator[WriterLock]:
    """Lock ``folder``, which exists, for a process that changes it in place.

    Raises:
        InputError: another process holds the lock, or it cannot be written.
    """
    if folder.path is not None:
        with path_lock(folder.path / LOCK_NAME, folder.uri) as lock:
            yield lock
        return
    held = _ObjectLock(folder)
    held.acquire()
    try:
        yield held
    finally:
        held.release()


@contextmanager
def path_lock(path: Path, subject: str) -> Iterator[WriterLock]:
    """Lock the file ``path``, which is created and deleted, for a process that writes ``subject``.

    Raises:
        CrossfadeError: the disk is full.
        InputError: another process holds the lock, or it cannot be written.
    """
    held = _FileLock(path, subject)
    try:
        held.acquire()
    except OSError as error:
        raise write_error(subject, error, path) from error
    try:
        yield held
    finally:
        held.release()


class _FileLock:
    """A lock on a file system."""

    def __init__(self, path: Path, subject: str) -> None:
        self._path = path
        self._subject = subject
        self._descriptor = -1

    def acquire(self) -> None:
        """Create and lock the file.

        Raises:
            InputError: another process holds it.
            OSError: it cannot be created, or the file system has no locks.
        """
        while True:
            with ExitStack() as opened:
                # A link that another user has put there is not followed.
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
                opened.callback(os.close, self._descriptor)
                try:
                    fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise _busy(self._subject, os.read(self._descriptor, _MAX_RECORD_BYTES)) from None
                if self._is_at_path():  # else its owner has deleted it in between
                    opened.callback(self._path.unlink)  # if its record cannot be written, as on a full disk
                    self._write_record()
                    opened.pop_all()
                    return

    def _write_record(self) -> None:
        if (owner := _parse(os.read(self._descriptor, _MAX_RECORD_BYTES))) is not None:
            _logger.warning(f"{self._subject}: took over the lock of {owner}, which has ended")
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, _Owner.this_process().model_dump_json().encode(), 0)

    def _is_at_path(self) -> bool:
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self._descriptor), self._path.stat(follow_symlinks=False))
        return False

    def check(self) -> None:
        """Check that the lock is still held."""
        if not self._is_at_path():
            raise ChangedError(f"the lock {self._path} was deleted")

    def release(self) -> None:
        """Delete the file, unless it was moved away together with its folder."""
        # While it is locked, so that no other process has locked it.
        if self._is_at_path():
            self._path.unlink()
        os.close(self._descriptor)


class _ObjectLock:
    """A lock on S3, which a thread renews.

    If its owner was stopped for so long that another process took it over, it finds that by ``check``, and it cannot
    replace a manifest that has changed.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._owner = _Owner.this_process()
        self._version = ""
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lock", daemon=True)

    def acquire(self) -> None:
        """Create the object, or take it over.

        Raises:
            InputError: another process holds it.
            OSError: it cannot be written.
        """
        try:
            self._write(None)
        except ChangedError:
            self._take_over()
        self._thread.start()

    def _take_over(self) -> None:
        record = b""
        with suppress(ChangedError, FileNotFoundError):  # another process is faster
            found = self._folder.read_version(LOCK_NAME)
            record = found.data[:_MAX_RECORD_BYTES]
            if (reason := self._why_free(found)) is not None:
                self._write(found.version)
                owner = _parse(record) or "a process"
                _logger.warning(f"{self._folder.uri}: took over the lock of {owner}, which {reason}")
                return
        raise _busy(self._folder.uri, record, f"{self._folder.uri}/{LOCK_NAME}")

    def _why_free(self, found: Version) -> str | None:
        """Return why the lock that another process has written is free; None if it is not."""
        owner, age = _parse(found.data), time.time() - found.modified
        if owner is not None and owner.has_ended():
            return "has ended"
        # The clocks of the two hosts may differ: a lock that seems old must also stay as it is for two renewals.
        if owner is None or age < _LEASE_SECONDS:
            return None
        self._released.wait(2 * _RENEWAL_SECONDS)
        is_same = self._folder.version(LOCK_NAME) == found.version
        return f"has not renewed it for {age + 2 * _RENEWAL_SECONDS:.0f} s" if is_same else None

    def _write(self, version: str | None) -> None:
        owner = self._owner.model_copy(update={"renewals": self._owner.renewals + 1})
        self._version = self._folder.write_over(LOCK_NAME, owner.model_dump_json().encode(), version)
        self._owner = owner

    def _renew(self) -> None:
        while not self._released.wait(_RENEWAL_SECONDS):
            try:
                self._write(self._version)
            except ChangedError:
                _logger.warning(f"{self._folder.uri}/{LOCK_NAME}: was deleted or taken over; nothing is published")
                return
            except OSError as error:
                _logger.warning(f"{self._folder.uri}/{LOCK_NAME}: could not be renewed: {error}")

    def check(self) -> None:
        """Check that the lock is still held."""
        with suppress(FileNotFoundError):
            found = _parse(self._folder.read_version(LOCK_NAME).data)
            if found is not None and found.token == self._owner.token:
                return
        raise ChangedError(f"the lock {self._folder.uri}/{LOCK_NAME} was deleted or taken over")

    def release(self) -> None:
        """Delete the object, unless another process has taken it over."""
        self._released.set()
        self._thread.join()
        try:
            self._folder.remove(LOCK_NAME, self._version)
        except ChangedError:
            pass
        except OSError as error:
            _logger.warning(f"{self._folder.uri}/{LOCK_NAME}: could not be deleted: {error}; delete it")


WriterLock = _FileLock | _ObjectLock
"""A lock that this process holds; ``check`` raises ``ChangedError`` if it has been deleted or taken over."""
