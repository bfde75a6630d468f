"""Stopping at SIGINT or SIGTERM: an exception where Python runs, and a memory of it where Python does not."""

from __future__ import annotations

import signal
from types import FrameType


class Stopped(BaseException):
    """A signal asked this process to stop."""


class Stopper:
    """Raises ``Stopped`` at the first signal, and remembers which it was.

    Raised inside compiled code or a callback the exception may turn into another one, or vanish: hence the memory, and
    ``check`` for long work to call now and then.
    """

    def __init__(self) -> None:
        """No signal came yet."""
        self.number: int | None = None

    def listen(self) -> None:
        """From now on obey SIGINT and SIGTERM; a second one ends the process at once."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)

    def check(self) -> None:
        """Raise ``Stopped`` if a signal came."""
        if self.number is not None:
            raise Stopped

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        self.number = number
        raise Stopped


stopper = Stopper()
"""This process's."""
