"""Spot notices: EC2 tells a host two minutes beforehand that it is to be taken away, if the host keeps asking.

with watching(say) as watch:
    watch.notice()               # None, or why this host will soon be gone
    watch.recommendations()      # how often EC2 has said by now that this may happen before long

A thread asks the metadata service every five seconds, as EC2 advises. A service that does not answer is told once, and
asked again: it never ends the run.

Sources: EC2 user guide, "Spot Instance interruption notices" and "EC2 instance rebalance recommendations".
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deploy.aws.metadata import InstanceMetadata
from kvstore.errors import StorageUnavailableError, escape_unprintable

POLL_SECONDS = 5.0
NOTICE_SECONDS = 110.0
"""How long a host has from when it has seen the notice: EC2's two minutes, less what seeing it and leaving take."""
INTERRUPTED_EXIT_CODE = 75
"""That a run gave way to a notice, and can be taken up elsewhere: EX_TEMPFAIL of sysexits.h, "try again later"."""
_ACTION, _RECOMMENDATION = "spot/instance-action", "events/recommendations/rebalance"
_DOES = {"terminate": "terminates", "stop": "stops", "hibernate": "hibernates"}


class SpotMonitor:
    """What the metadata service has said so far. Any thread may ask."""

    def __init__(self, metadata: InstanceMetadata, say: Callable[[str], None]) -> None:
        """Ask ``metadata``; ``say`` gets a line for whatever is new."""
        self._metadata, self._say = metadata, say
        self._notice: str | None = None
        self._recommended: set[str] = set()
        self._silent = False

    def notice(self) -> str | None:
        """Why this host will soon be gone; None as long as nothing says so."""
        return self._notice

    def recommendations(self) -> int:
        """How many times EC2 has said that the host is at risk: a good moment for a checkpoint, no more."""
        return len(self._recommended)

    def poll(self) -> None:
        """Ask once."""
        try:
            self._hear(self._metadata.get(_ACTION), self._metadata.get(_RECOMMENDATION))
        except (StorageUnavailableError, ValueError) as error:
            if not self._silent:
                self._say(f"no spot notice can be seen now, and it is asked again every {POLL_SECONDS:g} s: {error}")
            self._silent = True
        else:
            if self._silent:
                self._say("spot notices can be seen again")
            self._silent = False

    def _hear(self, action: str | None, recommendation: str | None) -> None:
        if action is not None and self._notice is None:
            does, when = _fields(action, "action", "time")
            self._notice = f"EC2 {_DOES.get(does, does)} this spot instance at {when}"
            self._say(self._notice)
        if recommendation is not None:
            (when,) = _fields(recommendation, "noticeTime")
            if when not in self._recommended:
                self._recommended.add(when)
                self._say(f"EC2 says at {when} that this spot instance is at risk, so a checkpoint is written")


def _fields(answer: str, *names: str) -> list[str]:
    """The texts ``names`` of an answer in JSON.

    Raises:
        ValueError: it is none, or lacks one.
    """
    fields = json.loads(answer)
    if not isinstance(fields, dict) or not all(isinstance(fields.get(name), str) for name in names):
        raise ValueError(f"expected {', '.join(names)}, but found {answer[:200]}")
    return [escape_unprintable(fields[name]) for name in names]


@contextmanager
def monitor_spot(say: Callable[[str], None], poll_seconds: float = POLL_SECONDS) -> Iterator[SpotMonitor]:
    """Ask every ``poll_seconds`` while the context lasts.

    Raises:
        InputError: the environment says that the metadata service must not be asked, or names no address.
    """
    watch, over = SpotMonitor(InstanceMetadata.of_this_host(), say), threading.Event()

    def ask() -> None:
        while not over.is_set():
            watch.poll()
            over.wait(poll_seconds)

    thread = threading.Thread(target=ask, name="spot-watch", daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        over.set()  # the thread is a daemon: nobody waits for an answer that is under way
