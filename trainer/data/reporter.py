"""How long work tells what it is doing: a phase with a known or unknown total, and steps within it."""

from __future__ import annotations

from typing import Protocol


class ProgressReporter(Protocol):
    """Somebody who wants to know. Calls come from one thread; they must be cheap and must not raise."""

    def phase(self, name: str, total: int | None, unit: str) -> None:
        """A phase begins, which ends the one before; ``total`` is in ``unit``, None where nobody knows it."""

    def advance(self, amount: int) -> None:
        """``amount`` units of the present phase are done."""


class NullReporter:
    """A progress that nobody watches."""

    def phase(self, name: str, total: int | None, unit: str) -> None:
        """Do nothing."""

    def advance(self, amount: int) -> None:
        """Do nothing."""
