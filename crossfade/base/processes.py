"""Identify processes, and tie the lifetime of a child process to its parent's."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_START_TICKS = 19
"""Position of the start time in /proc/PID/stat after the name."""


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent, ``parent_pid``, dies for any reason.

    A parent that has died already ends it with exit code 1 and a line on stderr. To the kernel the parent is the thread
    that started this process, so that thread must live as long as this process is needed. Linux only: elsewhere a
    killed parent leaves this process running.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have died before prctl took effect.
    if (found := os.getppid()) != parent_pid:
        os.write(2, f"ended at its start: process {parent_pid}, its parent, has died; it is now {found}\n".encode())
        os._exit(1)


def describe_exit(code: int) -> str:
    """Return how a process ended whose exit code is ``code``, or minus a signal."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def started_at(pid: int) -> float:
    """Return when process ``pid`` started, by which a later process with the same ID can be told from it.

    On Linux, it is in seconds since the machine started: Unix time, as psutil computes it, moves when the clock is set.

    Raises:
        psutil.Error: there is no such process, or access is denied.
    """
    import psutil

    if not sys.platform.startswith("linux"):
        return psutil.Process(pid).create_time()
    try:
        # The name, in parentheses, may contain anything.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        raise psutil.NoSuchProcess(pid) from None
    return int(fields[_START_TICKS]) / os.sysconf("SC_CLK_TCK")
