"""The version that a process answers from, which changes while requests are being answered.

    current = CurrentVersion(versions)
    await current.load()
    results = await current.answer(lambda answers: answers.similar(request), is_quick)

Requests that take about a millisecond are answered in the event loop. Others wait for one thread, so that they delay
neither these nor the health check, and that what they use is not used by two at once. A request keeps the version that
it began with.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from crossfade.deploy.serving.answers import Answers
from crossfade.deploy.serving.metrics import record_version
from crossfade.deploy.serving.versions import Versions
from crossfade.kvstore.errors import CrossfadeError
from crossfade.trainer.serving.served_model import ServedModel

MAX_WAITING = 64
"""Requests that may wait for the thread; more are rejected."""
_POLL_SECONDS = 1.0
_logger = logging.getLogger(__name__)
Result = TypeVar("Result")


class OverloadedError(CrossfadeError):
    """Too many requests are waiting, or no version is loaded yet."""


class CurrentVersion:
    """The current version of ``Versions``, opened."""

    def __init__(self, versions: Versions) -> None:
        """Serve the current one of ``versions``, once it is loaded."""
        self._versions = versions
        self._answers: Answers | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="answers")
        self._waiting = 0

    @property
    def answers(self) -> Answers:
        """The answers of the current version.

        Raises:
            OverloadedError: none is loaded yet.
        """
        if self._answers is None:
            raise OverloadedError("no model is loaded yet; try again in a few seconds")
        return self._answers

    async def load(self) -> None:
        """Open the current version if another one is open.

        Raises:
            CrossfadeError: it cannot be read.
            OSError: it cannot be read, or has been replaced meanwhile.
        """
        name = self._versions.current()
        if name is None or (self._answers is not None and self._answers.version == name):
            return
        loop = asyncio.get_running_loop()
        served = await loop.run_in_executor(self._thread, _open, self._versions.path(name))
        previous, self._answers = self._answers, Answers(served, name)
        record_version(int(name))
        if previous is not None:
            # After the requests that the thread has accepted for the previous version.
            await loop.run_in_executor(self._thread, previous.served.close)

    async def follow(self) -> None:
        """Load each new version as it appears."""
        failed: str | None = None
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            try:
                await self.load()
            except (CrossfadeError, OSError) as error:
                if str(error) != failed:
                    _logger.warning(f"a new version cannot be opened, the last one is still served: {error}")
                failed = str(error)

    async def answer(
        self, ask: Callable[[Answers], Result], is_quick: Callable[[Answers], bool] = lambda _: False
    ) -> Result:
        """Return what ``ask`` returns for the current version.

        Raises:
            InputError: ``ask`` raised it.
            OverloadedError: no version is loaded, or too many requests are waiting.
        """
        answers = self.answers
        if is_quick(answers):
            return ask(answers)
        if self._waiting >= MAX_WAITING:
            raise OverloadedError(f"{MAX_WAITING} requests are waiting; try again later, or start more servers")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, ask, answers)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Wait for the last request."""
        self._thread.shutdown()


def _open(path: Path) -> ServedModel:
    served = ServedModel(path)
    served.warm_up()
    return served
