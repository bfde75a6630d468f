"""Work done behind the foreground's back: an iterator drained by a thread into a short queue."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Prefetcher(Generic[Value]):
    """Iterates over ``source`` in a background thread: ``depth`` values wait, and one more is being made or offered.

    An error of ``source`` is raised in the foreground, where its value would have come. Use it as a context manager:
    leaving it stops the thread.
    """

    def __init__(self, source: Iterable[Value], depth: int = 2, interrupt: Callable[[], None] = lambda: None) -> None:
        """Start the thread; ``interrupt`` has ``source`` raise an error soon, if it waits for something then."""
        self._interrupt = interrupt
        self._queue: queue.Queue[tuple[str, Value | BaseException | None]] = queue.Queue(maxsize=depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._drain, args=(source,), name="read-ahead", daemon=True)
        self._thread.start()

    def __enter__(self) -> Prefetcher[Value]:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the thread, and wait for it."""
        self._stopped.set()
        self._interrupt()
        while self._thread.is_alive():
            self._discard()
            self._thread.join(timeout=0.01)

    def queued(self) -> int:
        """How many values wait now."""
        return self._queue.qsize()

    def __iter__(self) -> Iterator[Value]:
        """The values, in order."""
        while True:
            kind, value = self._queue.get()
            if kind == "end":
                return
            if isinstance(value, BaseException):
                raise value
            yield value  # type: ignore[misc]

    def _drain(self, source: Iterable[Value]) -> None:
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
