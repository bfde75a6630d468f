"""Stop at SIGINT and SIGTERM: with an exception, or at the next point where the code checks for a signal.

stopper.listen()
with stopper.deferred(grace_seconds=60):
    train(stop_requested=lambda: stopper.number is not None)
stopper.check("after a checkpoint")
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from crossfade.base.errors import Text

_Handler = signal.Handlers | Callable[[int, FrameType | None], Any]


class StopSignal(BaseException):
    """Raised when a signal stops this process; the message, if any, describes its progress, for a face to word.

    Not an ``Exception``, so that code which handles errors does not swallow it.
    """


class SpotInterruption(Exception):  # noqa: N818 - an expected end, not an error
    """Raised when the host is being interrupted and the command has drained; the message describes its progress."""


class SignalHandler:
    """Raises ``StopSignal`` at the first signal, and keeps its number.

    Inside compiled code or a callback the exception may turn into another one, or vanish. Long work therefore calls
    ``check`` from time to time.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        """The first signal that arrived."""
        self._deferring = False
        self._grace_seconds: float | None = None
        self._on_second: _Handler = signal.SIG_DFL

    def listen(self, on_second: _Handler = signal.SIG_DFL) -> None:
        """Handle SIGINT and SIGTERM from now on; ``on_second`` handles a second SIGINT (default: end the process)."""
        self._on_second = on_second
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)

    @contextmanager
    def deferred(self, grace_seconds: float | None = None) -> Iterator[None]:
        """Only record the first signal in ``number`` while the context lasts; call ``check`` after it.

        ``StopSignal`` is raised nevertheless if the context outlasts the signal by ``grace_seconds``.
        """
        self._deferring, self._grace_seconds = True, grace_seconds
        try:
            yield
        finally:
            self._deferring = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    def wait(self, seconds: float) -> None:
        """Return after ``seconds``, or once a signal has arrived."""
        deadline = time.monotonic() + seconds
        while self.number is None and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(0.1, left))

    def forget(self) -> None:
        """Treat the recorded signal as handled, and handle the next one."""
        self.number = None
        self.listen(self._on_second)

    def check(self, *message: Text) -> None:
        """Raise ``StopSignal`` with ``message`` if a signal arrived and is not deferred."""
        if self.number is not None and not self._deferring:
            raise StopSignal(*message)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, self._on_second)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.number = number
        if self._deferring and self._grace_seconds is not None:
            signal.signal(signal.SIGALRM, self._end_grace)
            signal.setitimer(signal.ITIMER_REAL, self._grace_seconds)
        self.check()

    def _end_grace(self, _number: int, _frame: FrameType | None) -> None:
        raise StopSignal(f"without a checkpoint, which was not written within {self._grace_seconds:g} s")


stopper = SignalHandler()
"""The signal handler of this process."""
