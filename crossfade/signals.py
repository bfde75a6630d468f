"""Stopping at SIGINT or SIGTERM: an exception where Python runs, and a memory of it where it does not or must not."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopSignal(BaseException):
    """A signal asked this process to stop; the message, if there is one, says how it did."""


class SpotInterruption(Exception):  # noqa: N818 - nothing went wrong
    """The host will soon be gone, and the command has made way; the message says how."""


class SignalHandler:
    """Raises ``Stopped`` at the first signal, and remembers which it was.

    Raised inside compiled code or a callback the exception may turn into another one, or vanish: hence the memory, and
    ``check`` for long work to call now and then.
    """

    def __init__(self) -> None:
        """No signal came yet."""
        self.number: int | None = None
        self._deferring = False
        self._grace_seconds: float | None = None

    def listen(self) -> None:
        """From now on obey SIGINT and SIGTERM; a second one ends the process at once."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)

    @contextmanager
    def deferred(self, grace_seconds: float | None = None) -> Iterator[None]:
        """Within it a first signal raises nothing: it is only remembered in ``number``, for whoever looks there.

        If that takes longer than ``grace_seconds``, ``Stopped`` is raised after all. Call ``check`` after it.
        """
        self._deferring, self._grace_seconds = True, grace_seconds
        try:
            yield
        finally:
            self._deferring = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    def forget(self) -> None:
        """Take the signal that came as dealt with, and obey the next one."""
        self.number = None
        self.listen()

    def check(self, message: str = "") -> None:
        """Raise ``Stopped`` if a signal came and is not put off."""
        if self.number is not None and not self._deferring:
            raise StopSignal(message)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        self.number = number
        if self._deferring and self._grace_seconds is not None:
            signal.signal(signal.SIGALRM, self._end_grace)
            signal.setitimer(signal.ITIMER_REAL, self._grace_seconds)
        self.check()

    def _end_grace(self, _number: int, _frame: FrameType | None) -> None:
        raise StopSignal(f"without a checkpoint, which was not written within {self._grace_seconds:g} s")


stopper = SignalHandler()
"""This process's."""
