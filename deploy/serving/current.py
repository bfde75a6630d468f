"""The version that the server answers from, which changes while requests are being answered.

    current = CurrentVersion(path)
    results = await current.answer(lambda answers: answers.similar(request), is_quick, load_filters)
    await current.replace(path_of_another)

Requests that take about a millisecond are answered in the event loop. Others wait for one thread, so that they delay
neither these nor the health check, and that only one thread builds what is built when it is first needed. Filters are
evaluated before by another thread. A request keeps the version that it began with.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from crossfade.base.errors import CrossfadeError
from crossfade.deploy.serving.answers import Answers
from crossfade.deploy.serving.metrics import record_version
from crossfade.trainer.serving.version import open_version

MAX_WAITING, MAX_FILTERING = 64, 32
"""Requests that may wait for the thread, and for filters; more are rejected."""
Result = TypeVar("Result")
_logger = logging.getLogger(__name__)


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

    def __init__(self, path: Path) -> None:
        """Open the version in ``path``.

        Raises:
            CrossfadeError, OSError: it is damaged or cannot be read.
        """
        opened = open_version(path)
        try:
            opened.warm_up()
        except BaseException:
            opened.close()
            raise
        # A service numbers its versions; for other models, it is the number of versions that the server has read.
        self.answers = Answers(opened, opened.card.number or int(path.name))
        self.path, self.problem = path, ""
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

    def delete(self) -> None:
        """Close the version, and delete its folder.

        Raises:
            OSError: it cannot be deleted; it may be tried again.
        """
        self.answers.opened.close()
        if self.path.exists():  # a cleaner of temporary files may be faster
            shutil.rmtree(self.path)


class CurrentVersion:
    """The version that answers; others replace it."""

    def __init__(self, path: Path) -> None:
        """Open the version in ``path``.

        Raises:
            CrossfadeError, OSError: it is damaged or cannot be read.
        """
        self._open = _OpenVersion(path)
        self._replaced: list[_OpenVersion] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="answers")
        self._filter_thread = ThreadPoolExecutor(1, thread_name_prefix="filters")
        self._requests = _Waiting(MAX_WAITING, "requests")
        self._filtering = _Waiting(MAX_FILTERING, "requests with new filters")
        record_version(self.answers.version)

    @property
    def answers(self) -> Answers:
        """The answers of the version."""
        return self._open.answers

    async def replace(self, path: Path) -> None:
        """Answer from the version in ``path``, and delete the one before once no request uses it.

        Raises:
            Exception: the version cannot be opened, whatever the reason; the one before stays.
        """
        loop = asyncio.get_running_loop()
        opened = await loop.run_in_executor(self._thread, _OpenVersion, path)
        self._replaced.append(self._open)
        self._open = opened
        record_version(self.answers.version)
        await self.delete_replaced()

    async def delete_replaced(self) -> None:
        """Delete the versions that were replaced, once no request uses them; log why one stays until the next call."""
        for replaced in self._replaced.copy():
            try:
                await replaced.unused()
                # It may have IDs that were forgotten since.
                await asyncio.get_running_loop().run_in_executor(self._filter_thread, replaced.delete)
            except Exception as error:  # the newer version answers, whatever is wrong with this one
                if str(error) != replaced.problem:
                    _logger.warning(f"{replaced.path}: could not be deleted, which is tried again: {error}")
                replaced.problem = str(error)
            else:
                self._replaced.remove(replaced)

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
            OverloadedError: too many requests are waiting.
        """
        with self._open.used() as answers:
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
        self.answers.opened.close()
