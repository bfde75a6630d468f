"""A lock with a timeout, so that a hanging request does not block the others.

with BoundedLock("the folder of the runs"): ...
"""

from __future__ import annotations

import threading

from crossfade.base.errors import CrossfadeError

WAIT_SECONDS = 5.0


class BusyError(CrossfadeError):
    """What a request needs is being read by another one, for longer than requests wait."""


class BoundedLock:
    """A lock. Raises BusyError, with ``subject`` in its message, after ``WAIT_SECONDS``."""

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        """Take the lock.

        Raises:
            BusyError: another thread has held it all the time.
        """
        if not self._lock.acquire(timeout=WAIT_SECONDS):
            raise BusyError(f"{self._subject} is being read by another request; try again later")

    def __exit__(self, *_: object) -> None:
        self._lock.release()
