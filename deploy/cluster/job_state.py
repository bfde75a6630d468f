"""The states of a distributed job, and what a generation starts from.

waiting ──► preparing ──► running ──► done            (waiting: for enough agents; preparing: port and checkpoint)
   ▲                       │ │  └───► stopping ──► stopped
   │                       │ └──► draining            (a host is about to be reclaimed, or slow: a checkpoint first)
   │                       ▼          │
backing_off ◄──────── terminating ◄───┘
                           └────► failed
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

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


@dataclass(frozen=True)
class GenerationSpec:
    """What a generation starts from."""

    scheduler: Address
    checkpoint: str | None = None
    step: int = 0
    skipped: Sequence[str] = ()
    """Why newer checkpoints than this one were skipped."""
    rendezvous: str | None = None
    """HOST:PORT/SECRET where the workers meet for Horovod, if they do."""
