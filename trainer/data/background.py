"""Priority of threads that prepare data next to a computation.

    threading.Thread(target=...)                # calls yield_to_computation() first

A kernel waits for the slowest of its threads. Where threads that read, shuffle, and sample compete with them for the
cores, each kernel is as slow as if it had one thread less. At a lower priority they run while the kernel's threads are
idle, between kernels, or when the computation waits for them. Not at the lowest: where other processes keep all cores
busy, a step would take seven times as long (docs/performance-notes.md).
"""

from __future__ import annotations

import os
import sys
import threading

_NICENESS = 8
"""A thread gets about a sixth of the time of one at 0 that competes with it for a core."""


def yield_to_computation() -> None:
    """Lower the priority of the calling thread. On Linux only: elsewhere priorities are those of processes."""
    thread = threading.get_native_id()
    # A process that was started at a lower priority may not raise it.
    if sys.platform == "linux" and os.getpriority(os.PRIO_PROCESS, thread) < _NICENESS:
        os.setpriority(os.PRIO_PROCESS, thread, _NICENESS)
