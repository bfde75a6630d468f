"""Share the parts of a step among threads, the calling thread among them.

    sharing = WorkSharing()
    sharing.run(compute_chunk, range(8))

The calling thread does not sleep while the others compute, since it would have to be woken in each step. Where they
start late, because something else keeps the cores busy, it takes more of the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from crossfade.kvstore.jit import get_num_threads

Part = TypeVar("Part")


class WorkSharing:
    """Runs parts of a computation in as many threads as kernels have."""

    def __init__(self) -> None:
        """Prepare threads, which start when they are needed."""
        self._helpers = get_num_threads() - 1
        self._threads = ThreadPoolExecutor(max(self._helpers, 1), thread_name_prefix="engine")

    def run(self, work: Callable[[Part], None], parts: Iterable[Part]) -> None:
        """Call ``work`` with each part, in any thread; parts start in their order."""
        left = list(parts)
        shared = iter(left)  # the lock of the interpreter gives each part to one thread

        def take_parts() -> None:
            for part in shared:
                work(part)

        helpers = [self._threads.submit(take_parts) for _ in range(min(self._helpers, len(left) - 1))]
        try:
            take_parts()
        finally:
            for helper in helpers:
                if not helper.cancel():
                    helper.result()
