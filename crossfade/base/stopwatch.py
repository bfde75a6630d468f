"""Measure the time that one thread spends in certain blocks, while others read it.

waiting = Stopwatch()
with waiting.running():
    wait()
waiting.seconds
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up the seconds that one thread spends in ``running`` blocks."""

    def __init__(self) -> None:
        # The seconds so far, and when the current block began. One tuple, so that readers see a consistent pair.
        self._state: tuple[float, float | None] = 0.0, None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the seconds of the block."""
        before, begin = self._state[0], time.perf_counter()
        self._state = before, begin
        try:
            yield
        finally:
            self._state = before + time.perf_counter() - begin, None

    @property
    def seconds(self) -> float:
        """Seconds so far, including the current block."""
        seconds, begin = self._state
        return seconds if begin is None else seconds + time.perf_counter() - begin
