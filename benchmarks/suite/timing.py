"""Time two pieces of work in turn, so that load from other processes affects both alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def median_seconds(rounds: int, *works: Callable[[], object]) -> list[float]:
    """Return the median seconds of each of ``works`` over ``rounds``, after one round of warm-up."""
    seconds: list[list[float]] = [[] for _ in works]
    for number in range(rounds + 1):
        for measured, work in zip(seconds, works, strict=True):
            begin = time.perf_counter()
            work()
            if number:
                measured.append(time.perf_counter() - begin)
    return [statistics.median(measured) for measured in seconds]
