"""Prefetching: a source is iterated over in a background thread, a few values ahead."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator

import pytest
from needs import LINUX

from crossfade.trainer.training.prefetcher import Prefetcher

TIMEOUT_SECONDS = 180.0


class Source:
    """Yields 0, 1, … up to ``count``, counts how many were drawn, and raises in place of number ``fails_at``."""

    def __init__(self, count: int, fails_at: int | None = None) -> None:
        self.drawn = 0
        self.thread: threading.Thread | None = None
        self._count = count
        self._fails_at = fails_at
        self._changed = threading.Condition()

    def __iter__(self) -> Iterator[int]:
        self.thread = threading.current_thread()
        for number in range(self._count):
            if number == self._fails_at:
                raise OSError(f"number {number} cannot be read")
            with self._changed:
                self.drawn += 1
                self._changed.notify()
            yield number

    def wait_until_drawn(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.drawn >= count, timeout=TIMEOUT_SECONDS)


@pytest.mark.parametrize("fails_at", [0, 1, 5])
def test_source_error_is_raised_in_place_of_its_value(fails_at: int) -> None:
    with Prefetcher(Source(10, fails_at)) as ahead:
        values = iter(ahead)
        assert [next(values) for _ in range(fails_at)] == list(range(fails_at))
        with pytest.raises(OSError, match=f"number {fails_at} cannot be read"):
            next(values)


@pytest.mark.parametrize("taken", [0, 1, 10])
def test_leaving_the_context_early_stops_the_thread(taken: int) -> None:
    source = Source(10**9)
    with Prefetcher(source) as ahead:
        values = iter(ahead)
        assert [next(values) for _ in range(taken)] == list(range(taken))
        source.wait_until_drawn(taken + 1)
    assert source.thread is not None
    assert not source.thread.is_alive()


@pytest.mark.parametrize("depth", [1, 3])
def test_source_is_at_most_depth_plus_one_values_ahead(depth: int) -> None:
    source = Source(10_000)
    with Prefetcher(source, depth) as ahead:
        values = iter(ahead)
        for taken in range(100):
            source.wait_until_drawn(taken + depth + 1)
            assert source.drawn <= taken + depth + 1
            next(values)


@pytest.mark.skipif(sys.platform != "linux", reason=LINUX)
def test_source_is_read_at_a_lower_priority_than_that_of_the_foreground() -> None:
    def priorities() -> Iterator[int]:
        yield os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    with Prefetcher(priorities()) as ahead:
        assert next(iter(ahead)) >= 8
