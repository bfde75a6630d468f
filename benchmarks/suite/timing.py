"""Time work: several pieces in turn, so that load from other processes affects all alike, one piece, or single calls.

It imports nothing but the standard library: scripts of peers use it in their environments.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any


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


def median_call_ms(call: Callable[[Any], object], arguments: Sequence[Any]) -> float:
    """Return the median milliseconds of ``call`` of each of ``arguments``, after a first call that is not counted."""
    call(arguments[0])
    milliseconds = []
    for argument in arguments:
        begin = time.perf_counter()
        call(argument)
        milliseconds.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(milliseconds)


class Clock:
    """Measures seconds and processor seconds from its creation on, of this process and its children that ended."""

    def __init__(self) -> None:
        self._began = time.perf_counter(), _cpu_seconds()

    def taken(self) -> dict[str, float]:
        """Return ``seconds`` and ``cpu_seconds`` so far."""
        began, used = self._began
        return {"seconds": time.perf_counter() - began, "cpu_seconds": _cpu_seconds() - used}


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
