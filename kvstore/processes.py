"""What the kernel is asked to do for a process of ours: let it die with its parent, give pages back.

The C functions are looked up when this module is imported: a process that was just forked off one with many threads may
call them, but may not look them up, since another thread may have held the loader's lock at that moment.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import sys

PAGE_BYTES = mmap.PAGESIZE
_PR_SET_PDEATHSIG = 1
_MADV_DONTNEED = 4
_LINUX = sys.platform.startswith("linux")

if _LINUX:
    _libc = ctypes.CDLL(None)
    _prctl = _libc.prctl
    _madvise = _libc.madvise
    _madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def die_with_parent(parent_pid: int) -> None:
    """Ask the kernel to kill this process when the process ``parent_pid``, its parent, dies, however it dies.

    To the kernel a parent is the thread that started this process: it must live as long as this process is wanted.
    Linux only; elsewhere a killed parent leaves this process to be ended by hand.
    """
    if not _LINUX:
        return
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


def give_back(address: int, size: int) -> None:
    """Let go of the ``size`` bytes of memory at ``address``, whole pages, which this process never reads again.

    In a process that was forked off, its parent's copy of them stays, and is then the only one.
    """
    if _LINUX and size > 0:
        _madvise(address, size, _MADV_DONTNEED)
