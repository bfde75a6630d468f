"""When a job restarts: how many failures in a row it survives, and how long it backs off.

Failures count until a new checkpoint is written, so a job that makes progress may restart any number of times.
"""

from __future__ import annotations

MAX_BACKOFF_SECONDS = 60.0


class RestartPolicy:
    """Counts failures, and collects the causes of an outage."""

    def __init__(self, max_restarts: int) -> None:
        """Allow ``max_restarts`` in a row without a new checkpoint."""
        self.cause: str | None = None
        """Why the current outage began; None while a generation runs."""
        self._max_restarts = max_restarts
        self._without_checkpoint = 0

    def add_cause(self, cause: str) -> None:
        """Record ``cause``, in addition to the cause of an outage in progress."""
        if cause not in (self.cause or ""):
            self.cause = f"{self.cause}; then {cause}" if self.cause else cause

    def note_checkpoint_written(self) -> None:
        """Count failures from 0: the generation that ended wrote a checkpoint."""
        self._without_checkpoint = 0

    def note_checkpoint_found(self) -> None:
        """Count this failure as the first: a newer checkpoint was found than the one before it started from."""
        self._without_checkpoint = min(self._without_checkpoint, 1)

    def try_restart(self) -> str | None:
        """Count a failure; return why the job must not restart again, or None if it may."""
        if self._without_checkpoint >= self._max_restarts:
            return f"restarted {self._without_checkpoint} times without a new checkpoint (cluster.max_restarts)"
        self._without_checkpoint += 1
        return None

    def backoff_seconds(self) -> float:
        """Return the pause before the next generation: none at first, then 1, 2, 4 ... 60 seconds."""
        if self._without_checkpoint <= 1:
            return 0.0
        return min(2.0 ** min(self._without_checkpoint - 2, 10), MAX_BACKOFF_SECONDS)
