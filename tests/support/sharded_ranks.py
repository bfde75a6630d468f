"""The ranks of a job as threads of this process, connected on loopback.

with running_ranks(4) as ranks:
    ranks.each(lambda store: store.barrier())             # results of all ranks, in order; raises what one raises
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.kvstore.sharded.ranks import Ranks
from crossfade.kvstore.sharded.store import ShardedStore
from crossfade.kvstore.store import RowGradient, SaveResult

Result = TypeVar("Result")
JOIN_SECONDS = 60.0
SECRET = "the-secret-of-these-ranks"


class Meeting:
    """Where the ranks of this process find each other."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self._changed = threading.Condition()

    def put(self, key: str, value: bytes) -> None:
        """Store a value."""
        with self._changed:
            self._values[key] = value
            self._changed.notify_all()

    def get(self, key: str) -> bytes:
        """Wait for a value."""
        with self._changed:
            assert self._changed.wait_for(lambda: key in self._values, JOIN_SECONDS)
            return self._values[key]


def join_ranks(count: int, *, hosts: int = 1) -> list[Ranks]:
    """Connect ``count`` ranks, which have the addresses of ``hosts`` hosts in turn."""
    meeting = Meeting()

    def join(rank: int) -> Ranks:
        return Ranks.meet(meeting, SECRET, rank, count, f"127.0.0.{1 + rank % hosts}", JOIN_SECONDS)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(join, range(count)))


class RunningRanks:
    """The stores of all ranks. Each has a thread."""

    def __init__(self, count: int, *, hosts: int = 1) -> None:
        self.stores = [ShardedStore(ranks) for ranks in join_ranks(count, hosts=hosts)]
        self._threads = [ThreadPoolExecutor(1, thread_name_prefix=f"rank-{rank}") for rank in range(count)]

    def each(self, act: Callable[[ShardedStore], Result]) -> list[Result]:
        """Let all ranks act at the same time."""
        futures = [thread.submit(act, store) for thread, store in zip(self._threads, self.stores, strict=True)]
        return [future.result() for future in futures]

    def first(self, act: Callable[[ShardedStore], Result]) -> Result:
        """Let rank 0 act, while the others wait for it."""

        def act_or_wait(store: ShardedStore) -> Any:
            result = act(store) if store.rank == 0 else None
            store.barrier()
            return result

        result: Result = self.each(act_or_wait)[0]
        return result

    def close(self) -> None:
        """Close all stores and threads."""
        self.each(ShardedStore.close)
        for thread in self._threads:
            thread.shutdown()


@contextmanager
def running_ranks(count: int, *, hosts: int = 1) -> Iterator[RunningRanks]:
    """Run ``count`` ranks on ``hosts`` hosts while the context lasts."""
    ranks = RunningRanks(count, hosts=hosts)
    yield ranks
    ranks.close()


class MirroredStore:
    """A row store whose calls all ranks make, with the same arguments: it checks that all return the same."""

    first_step = 0

    def __init__(self, count: int) -> None:
        self._ranks = RunningRanks(count)
        self.rank, self.workers = 0, count

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *arguments: self._ranks.each(lambda store: getattr(store, name)(*arguments))[0]

    def pull(self, rows: Mapping[str, IntArray]) -> dict[str, FloatArray]:
        """Pull the same rows everywhere."""
        first, *others = self._ranks.each(lambda store: store.pull(rows))
        for other in others:
            for name, block_AD in first.items():
                np.testing.assert_array_equal(other[name], block_AD)
        return first

    def push(self, gradients: Mapping[str, RowGradient]) -> None:
        """Push the same gradients everywhere."""
        self._ranks.each(lambda store: store.push(gradients))

    def save(self, folder: str) -> None:
        """Save from rank 0."""
        self._ranks.first(lambda store: store.save(folder))

    def poll_save(self) -> SaveResult | None:
        """Poll from rank 0."""
        return self._ranks.first(_result_of_poll)()

    def close(self) -> None:
        """Close all ranks."""
        self._ranks.close()


def _result_of_poll(store: ShardedStore) -> Callable[[], SaveResult | None]:
    """Poll, and return a function that returns the result or raises the error, once all ranks have gone on."""
    try:
        result = store.poll_save()
    except Exception as error:
        caught = error

        def fail() -> SaveResult | None:
            raise caught

        return fail
    return lambda: result
