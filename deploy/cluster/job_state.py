"""The states of a distributed job, what a generation starts from, and when another one follows.

waiting ──► preparing ──► running ──► done            (waiting: for enough agents; preparing: port and checkpoint)
   ▲                       │ │  └───► stopping ──► stopped
   │                       │ └──► draining            (a host is about to be reclaimed: a checkpoint first)
   │                       ▼          │
backing_off ◄──────── terminating ◄───┘
                           └────► failed
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from crossfade.base.exit_codes import INTERRUPTED_EXIT_CODE, STOPPED_EXIT_CODE
from crossfade.deploy.topology import Address

MAX_BACKOFF_SECONDS = 60.0


class State(StrEnum):
    """The state of a job."""

    WAITING = "waiting"
    PREPARING = "preparing"
    RUNNING = "running"
    STOPPING = "stopping"
    DRAINING = "draining"
    TERMINATING = "terminating"
    BACKOFF = "backing_off"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"


FINISHED = frozenset({State.DONE, State.FAILED, State.STOPPED})
LIVE = frozenset({State.RUNNING, State.STOPPING, State.DRAINING})
"""The states in which agents run roles."""


def outcome(state: State, message: str, error: str, notice: str | None) -> tuple[int, str]:
    """Return how a job ended as ``state``: the exit code of its agents, and a phrase after 'the job'.

    ``message`` says how it was stopped, ``error`` why it failed, ``notice`` why its coordinator's host is reclaimed.
    """
    if state is State.DONE:
        return 0, "is done"
    if state is State.FAILED:
        return 1, f"has failed: {error}"
    if notice:
        return (
            INTERRUPTED_EXIT_CODE,
            f"was stopped {message}, because its coordinator's host is being reclaimed: {notice}",
        )
    return STOPPED_EXIT_CODE, f"was stopped {message}"


@dataclass(frozen=True)
class GenerationSpec:
    """What a generation starts from."""

    scheduler: Address | None
    """None: the workers hold the tables, and need none."""
    checkpoint: str | None = None
    step: int = 0
    skipped: Sequence[str] = ()
    """Why newer checkpoints than this one were skipped."""
    rendezvous: str | None = None
    """HOST:PORT/SECRET where the workers meet, if they connect to each other."""


class RestartPolicy:
    """Counts failures, and collects the causes of an outage.

    Failures count until a new checkpoint is written, so a job that makes progress may restart any number of times.
    """

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
