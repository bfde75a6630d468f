"""The version that a process answers from, which changes while requests are being answered.

    current = CurrentVersion(versions)
    await current.load()
    results = await current.answer(lambda answers: answers.similar(request), is_quick, load_filters)

Requests that take about a millisecond are answered in the event loop. Others wait for one thread, so that they delay
neither these nor the health check, and that only one thread builds what is built when it is first needed. Filters are
evaluated before by another thread. A request keeps the version that it began with.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from crossfade.base.errors import CrossfadeError
from crossfade.deploy.serving.answers import Answers
from crossfade.deploy.serving.metrics import record_failed_version, record_version
from crossfade.deploy.serving.versions import Versions
from crossfade.trainer.serving.version import Version, open_version

MAX_WAITING, MAX_FILTERING = 64, 32
"""Requests that may wait for the thread, and for filters; more are rejected."""
_POLL_SECONDS, _RETRY_SECONDS = 1.0, 30.0
_logger = logging.getLogger(__name__)
Result = TypeVar("Result")


class OverloadedError(CrossfadeError):
    """Too much is waiting to be answered."""


class _Waiting:
    """Bounds how many requests wait for something."""

    def __init__(self, most: int, what: str) -> None:
        self._most, self._what, self._count = most, what, 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Take a place while the context lasts.

        Raises:
            OverloadedError: all are taken.
        """
        if self._count >= self._most:
            raise OverloadedError(f"{self._most} {self._what} are waiting; try again later, or start more servers")
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1


class _OpenVersion:
    """An open version, with how many requests use it."""

    def __init__(self, opened: Version, name: str) -> None:
        self.name = name
        # A service numbers its versions; for other models, it is the number of versions that the server has read.
        self.answers = Answers(opened, opened.card.number or int(name))
        self._users = 0
        self._unused = asyncio.Event()
        self._unused.set()

    @contextmanager
    def used(self) -> Iterator[Answers]:
        """Keep the version open while the context lasts."""
        self._users += 1
        self._unused.clear()
        try:
            yield self.answers
        finally:
            self._users -= 1
            if not self._users:
                self._unused.set()

    async def unused(self) -> None:
        """Wait until no request uses the version."""
        await self._unused.wait()


class CurrentVersion:
    """The current version of ``Versions``, opened."""

    def __init__(self, versions: Versions) -> None:
        """Serve the current one of ``versions``, once it is loaded."""
        self._versions = versions
        self._open: _OpenVersion | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="answers")
        self._filter_thread = ThreadPoolExecutor(1, thread_name_prefix="filters")
        self._requests = _Waiting(MAX_WAITING, "requests")
        self._filtering = _Waiting(MAX_FILTERING, "requests with new filters")

    @property
    def answers(self) -> Answers:
        """The answers of the current version.

        Raises:
            OverloadedError: none is loaded yet.
        """
        return self._current().answers

    def _current(self) -> _OpenVersion:
        if self._open is None:
            raise OverloadedError("no model is loaded yet; try again in a few seconds")
        return self._open

    async def load(self) -> None:
        """Open the current version or, in a process that has none open, the one before if the current one is faulty.

        Raises:
            Exception: none can be opened, whatever the reason.
        """
        name = self._versions.current()
        try:
            await self._load(name)
        except Exception as error:
            current = self._versions.current()
            # Another one may have been published meanwhile, and this one deleted.
            other = self._versions.previous() if current == name else current
            if self._open is not None or other is None:
                raise
            _report_failure(error)
            await self._load(other)

    async def _load(self, name: str | None) -> None:
        """Open the version ``name`` if another one is open."""
        if name is None or (self._open is not None and self._open.name == name):
            return
        loop = asyncio.get_running_loop()
        opened = await loop.run_in_executor(self._thread, _open, self._versions.path(name))
        previous, self._open = self._open, _OpenVersion(opened, name)
        record_version(self._open.answers.version)
        if previous is not None:
            await previous.unused()
            await loop.run_in_executor(self._filter_thread, previous.answers.opened.close)

    async def follow(self) -> None:
        """Load each new version as it appears; one that cannot be opened is tried again after a while."""
        failed, retry_at = None, 0.0
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            name = None
            try:
                name = self._versions.current()
                if name != failed or time.monotonic() >= retry_at:
                    await self._load(name)
                    failed = None
            except Exception as error:  # whatever is wrong with this version, the next one may be intact
                _report_failure(error)
                failed, retry_at = name, time.monotonic() + _RETRY_SECONDS

    async def answer(
        self,
        ask: Callable[[Answers], Result],
        is_quick: Callable[[Answers], bool] = lambda _: False,
        load_filters: Callable[[Answers], Callable[[], None] | None] = lambda _: None,
    ) -> Result:
        """Return what ``ask`` returns for the current version.

        ``load_filters`` returns what must be called before if the request has filters that are not at hand.

        Raises:
            InputError: ``ask`` raised it, or a filter is invalid.
            OverloadedError: no version is loaded, or too many requests are waiting.
        """
        with self._current().used() as answers:
            if is_quick(answers):
                return ask(answers)
            loop = asyncio.get_running_loop()
            load = load_filters(answers)
            if load is not None:
                with self._filtering.place():
                    await loop.run_in_executor(self._filter_thread, load)
            with self._requests.place():
                return await loop.run_in_executor(self._thread, ask, answers)

    def close(self) -> None:
        """Wait for the last request, and close the version."""
        self._thread.shutdown()
        self._filter_thread.shutdown()
        if self._open is not None:
            self._open.answers.opened.close()


def _open(path: Path) -> Version:
    opened = open_version(path)
    try:
        opened.warm_up()
    except BaseException:
        opened.close()
        raise
    return opened


def _report_failure(error: Exception) -> None:
    record_failed_version()
    # An error that is not foreseen is a fault of the program, whose place is needed.
    details = None if isinstance(error, CrossfadeError | OSError) else error
    message = f"{type(error).__name__}: {error}" if details else str(error)
    _logger.warning(f"a new version cannot be opened, the last one is still served: {message}", exc_info=details)
