"""How long something took, in one thread, as another one sees it at any time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up the seconds of the blocks of one thread."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """At zero."""
        self._clock = clock
        # One value, so that whoever looks sees both at the same time: the seconds so far, and when a block began.
        self._state: tuple[float, float | None] = 0.0, None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the seconds of a block."""
        before, begin = self._state[0], self._clock()
        self._state = before, begin
        try:
            yield
        finally:
            self._state = before + self._clock() - begin, None

    @property
    def seconds(self) -> float:
        """Those so far, of a block that goes on too."""
        seconds, begin = self._state
        return seconds if begin is None else seconds + self._clock() - begin
