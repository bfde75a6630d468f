"""Tie the lifetime of a child process to its parent's."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent, ``parent_pid``, dies for any reason.

    To the kernel the parent is the thread that started this process, so that thread must live as long as this process
    is needed. Linux only: elsewhere a killed parent leaves this process running.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have died before prctl took effect.
    if os.getppid() != parent_pid:
        os._exit(1)
