"""When a job restarts: how many failures in a row it survives, how long it backs off, and a record of each restart.

Failures count until a new checkpoint is written, so a job that makes progress may restart any number of times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from crossfade.trainer.runs.events import RestartEvent

MAX_BACKOFF_SECONDS = 60.0
NETWORK_FAILURE_SECONDS = 3600.0
"""Of the failures that data from the network may have caused, which anyone who reaches a port can repeat, one in this
time counts. All of them delay the next generation."""


@dataclass
class Restart:
    """The start of a generation in place of one that ended: why, at which step, and how long nothing was trained.

    Of the steps until ``step``, ``lost_steps`` are taken again; they took ``lost_seconds``, if that is known.
    """

    generation: int
    cause: str
    step: int
    lost_steps: int = 0
    lost_seconds: float | None = None
    seconds: float = 0.0

    def to_event(self, **origin: Any) -> RestartEvent:
        """Return the event that reports it; ``origin`` has the fields about where training resumes."""
        return RestartEvent(
            generation=self.generation,
            cause=self.cause,
            lost_steps=self.lost_steps,
            lost_seconds=self.lost_seconds,
            **origin,
        )


class RestartPolicy:
    """Counts failures, and measures the outages that they cause."""

    def __init__(self, max_restarts: int) -> None:
        """Allow ``max_restarts`` in a row without a new checkpoint."""
        self.restarts: list[Restart] = []
        self.cause: str | None = None
        """Why the current outage began; None while a generation runs."""
        self._max_restarts = max_restarts
        self._without_checkpoint = 0
        self._uncounted = 0
        self._down_since: float | None = None
        self._network_counted_at = float("-inf")

    def begin_outage(self, cause: str, now: float) -> None:
        """Record that a running generation ends because of ``cause``."""
        self.cause, self._down_since = cause, now

    def add_cause(self, cause: str, now: float) -> None:
        """Record ``cause``, in addition to that of an outage in progress."""
        if cause not in (self.cause or ""):
            self.cause = f"{self.cause}; then {cause}" if self.cause else cause
        if self._down_since is None:
            self._down_since = now

    def note_checkpoint_written(self) -> None:
        """Count failures from 0: the generation that ended wrote a checkpoint."""
        self._without_checkpoint = 0
        self._uncounted = 0

    def note_checkpoint_found(self) -> None:
        """Count this failure as the first: a newer checkpoint was found than the one before it started from."""
        self._without_checkpoint = min(self._without_checkpoint, 1)
        self._uncounted = 0

    def try_restart(self, now: float, *, from_network: bool = False) -> str | None:
        """Count a failure; return why the job must not restart again, or None if it may."""
        if from_network:
            if now - self._network_counted_at < NETWORK_FAILURE_SECONDS:
                self._uncounted += 1
                return None
            self._network_counted_at = now
        if self._without_checkpoint >= self._max_restarts:
            return f"restarted {self._without_checkpoint} times without a new checkpoint (cluster.max_restarts)"
        self._without_checkpoint += 1
        return None

    def backoff_seconds(self) -> float:
        """Return the pause before the next generation: none at first, then 1, 2, 4 ... 60 seconds."""
        in_a_row = self._without_checkpoint + self._uncounted
        if in_a_row <= 1:
            return 0.0
        return min(2.0 ** min(in_a_row - 2, 10), MAX_BACKOFF_SECONDS)

    def record_restart(self, generation: int, step: int, lost: tuple[int, float | None]) -> Restart | None:
        """Record that ``generation`` starts in place of one that reached ``step``; None if it replaces none.

        ``lost`` are the steps that are taken again, and the seconds that they took.
        """
        if self.cause is None:
            return None
        restart = Restart(generation, self.cause, step, *lost)
        self.restarts.append(restart)
        self.cause = None
        return restart

    def end_outage(self, now: float) -> None:
        """Record that training has resumed, or is done."""
        if self._down_since is not None and self.restarts:
            self.restarts[-1].seconds, self._down_since = now - self._down_since, None
