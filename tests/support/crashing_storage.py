"""Storage that crashes at a chosen call of those that change something."""

from collections.abc import Sequence
from typing import Any

import pytest

from crossfade.base.io.folder import Folder


class Crash(BaseException):
    """A crash of the machine."""


class CrashingStorage:
    """Makes storage crash at call number ``at`` of the ``methods``: those that change something."""

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        at: int,
        methods: Sequence[str] = ("write", "write_over", "open_output", "remove"),
    ) -> None:
        self.calls, self._at, self.down = 0, at, False
        for name in methods:
            patch.setattr(Folder, name, self._guarded(getattr(Folder, name)))

    def _guarded(self, method: Any) -> Any:
        def call(*arguments: Any) -> Any:
            self.calls += 1
            self.down = self.down or self.calls == self._at
            if self.down:
                raise Crash
            return method(*arguments)

        return call
