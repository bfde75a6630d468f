"""Notify listeners when kernels are compiled, which a first run on a machine waits for; imports no numba.

listeners.append(lambda: print("compiling kernels"))    # of a command that shows progress
announce()                                              # of what compiles: calls each of them, once
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

listeners: list[Callable[[], None]] = []


def announce() -> None:
    """Call and remove the listeners; kernels may be compiled in several threads."""
    with suppress(IndexError):
        while True:
            listeners.pop()()
