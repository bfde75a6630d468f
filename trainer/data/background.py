"""Priority of threads that prepare data next to a computation.

    threading.Thread(target=...)                # calls yield_to_computation() first

A kernel waits for the slowest of its threads. Where threads that read, shuffle, and sample compete with them for the
cores, each kernel is as slow as if it had one thread less. At the lowest priority they run while the kernel's threads
are idle, between kernels, or when the computation waits for them.
"""

from __future__ import annotations

import os
import sys
import threading

_LOWEST_PRIORITY = 19
"""In units of ``nice``."""


def yield_to_computation() -> None:
    """Give the calling thread the lowest priority. On Linux only: elsewhere priorities are those of processes."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
