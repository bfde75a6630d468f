"""Monitor EC2's spot interruption notices, which come two minutes before a host is reclaimed.

    with monitor_spot(log) as spot:
        spot.notice()               # None, or the interruption notice of this host

A thread polls the metadata service every five seconds, as EC2 advises. If the service does not answer, that is logged
once and polling continues: it never ends the run.

Source: EC2 user guide, "Spot Instance interruption notices".
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from crossfade.base.errors import StorageUnavailableError, escape_unprintable
from crossfade.deploy.aws.metadata import InstanceMetadata

POLL_SECONDS = 5.0
NOTICE_SECONDS = 110.0
"""Time that a host has after it reads the notice: EC2's two minutes, less polling and shutdown."""
ACTION_PATH = "spot/instance-action"
"""Where the metadata service has an interruption, if one is coming."""
_VERBS = {"terminate": "terminates", "stop": "stops", "hibernate": "hibernates"}


class SpotMonitor:
    """Collects the notices of the metadata service. Thread-safe."""

    def __init__(self, metadata: InstanceMetadata, log: Callable[[str], None]) -> None:
        """Read notices from ``metadata``; ``log`` receives a line for each new one."""
        self._metadata, self._log = metadata, log
        self._notice: str | None = None
        self._unreachable = False

    def notice(self) -> str | None:
        """Return the interruption notice of this host; None if there is none."""
        return self._notice

    def poll(self) -> None:
        """Read the metadata service once."""
        try:
            self._record(self._metadata.get(ACTION_PATH))
        except (StorageUnavailableError, ValueError) as error:
            if not self._unreachable:
                self._log(f"cannot read spot notices, retrying every {POLL_SECONDS:g} s: {error}")
            self._unreachable = True
        else:
            if self._unreachable:
                self._log("spot notices can be read again")
            self._unreachable = False

    def _record(self, action: str | None) -> None:
        if action is not None and self._notice is None:
            action_name, when = _fields(action, "action", "time")
            self._notice = f"EC2 {_VERBS.get(action_name, action_name)} this spot instance at {when}"
            self._log(self._notice)


def _fields(text: str, *names: str) -> list[str]:
    """Return the strings ``names`` of the JSON object ``text``.

    Raises:
        ValueError: it is not JSON, or lacks one of them.
    """
    fields = json.loads(text)
    if not isinstance(fields, dict) or not all(isinstance(fields.get(name), str) for name in names):
        raise ValueError(f"expected {', '.join(names)}, but found {text[:200]}")
    return [escape_unprintable(fields[name]) for name in names]


@contextmanager
def monitor_spot(
    log: Callable[[str], None], poll_seconds: float = POLL_SECONDS, *, enabled: bool = True
) -> Iterator[SpotMonitor | None]:
    """Poll the metadata service every ``poll_seconds`` while the context lasts; yield None if not ``enabled``.

    Raises:
        InputError: the environment disables the metadata service, or names an invalid address.
    """
    if not enabled:
        yield None
        return
    monitor, stopped = SpotMonitor(InstanceMetadata.of_this_host(), log), threading.Event()

    def poll() -> None:
        while not stopped.is_set():
            monitor.poll()
            stopped.wait(poll_seconds)

    thread = threading.Thread(target=poll, name="spot-monitor", daemon=True)
    thread.start()
    try:
        yield monitor
    finally:
        stopped.set()  # no join: the thread is a daemon, and a request may still be pending
