"""Report the progress of long operations: phases with a known or unknown total, and steps within them.

reporter.phase("count interactions by time", split.rows, "row")
reporter.advance(65_536)
"""

from __future__ import annotations

from typing import Protocol


class ProgressReporter(Protocol):
    """Receives progress updates, from a single thread. Methods must be cheap and must not raise."""

    def phase(self, name: str, total: int | None, unit: str) -> None:
        """Begin a phase, which ends the previous one; ``total`` is in ``unit``, None if it is unknown."""

    def advance(self, amount: int) -> None:
        """Record that ``amount`` more units of the current phase are done."""


class NullReporter:
    """A reporter that ignores all updates."""

    def phase(self, name: str, total: int | None, unit: str) -> None:
        """Do nothing."""

    def advance(self, amount: int) -> None:
        """Do nothing."""
