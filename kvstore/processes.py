"""What the kernel is asked to do for a process of ours: to let it die with its parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """Ask the kernel to kill this process when the process ``parent_pid``, its parent, dies, however it dies.

    To the kernel a parent is the thread that started this process: it must live as long as this process is wanted.
    Linux only; elsewhere a killed parent leaves this process to be ended by hand.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)
