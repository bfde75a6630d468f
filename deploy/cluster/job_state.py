"""The states of a distributed job, and what a generation starts from.

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
