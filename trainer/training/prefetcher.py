"""Compute values ahead, in a background thread: the next batches, while a step takes the current one.

with Prefetcher(source, interrupt=batches.interrupt) as ahead:
    for batch in ahead: ...
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from crossfade.trainer.data.reader import yield_to_computation

Value = TypeVar("Value")


class Prefetcher(Generic[Value]):
    """Iterates over ``source`` in a background thread of low priority, up to ``depth`` + 1 values ahead.

    An error of ``source`` is raised in the foreground, in place of the value that failed. Leaving the context stops the
    thread.
    """

    def __init__(self, source: Iterable[Value], depth: int = 2, interrupt: Callable[[], None] = lambda: None) -> None:
        """Start the thread.

        Args:
            source: what to iterate over.
            depth: values that wait in the queue, in addition to the one being computed.
            interrupt: makes ``source`` raise an error soon if it is waiting for something.
        """
        self._interrupt = interrupt
        self._queue: queue.Queue[tuple[str, Value | BaseException | None]] = queue.Queue(maxsize=depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._drain, args=(source,), name="prefetch", daemon=True)
        self._thread.start()

    def __enter__(self) -> Prefetcher[Value]:
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the thread and wait for it to end."""
        self._stopped.set()
        self._interrupt()
        while self._thread.is_alive():
            self._discard()
            self._thread.join(timeout=0.01)

    def __iter__(self) -> Iterator[Value]:
        """Yield the values in order."""
        while True:
            kind, value = self._queue.get()
            if kind == "end":
                return
            if isinstance(value, BaseException):
                raise value
            yield value  # type: ignore[misc]

    def _drain(self, source: Iterable[Value]) -> None:
        yield_to_computation()
        try:
            for value in source:
                self._queue.put(("value", value))
                if self._stopped.is_set():
                    return
        except BaseException as error:
            self._queue.put(("error", error))
        else:
            self._queue.put(("end", None))

    def _discard(self) -> None:
        try:
            self._queue.get_nowait()
        except queue.Empty:
            return
