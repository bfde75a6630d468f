"""Places for the connections of a server, apart for strangers and members, so that strangers cannot use up all.

    places = Places(strangers=128, members=128)
    evicted = places.add(connection, "10.0.0.7")        # close it: the newest connection gets its place
    evicted = places.admit(connection)                  # its request may be answered: it is a member now

A connection is a stranger's until its request has passed the server's checks. Every new connection gets a place, since
the oldest one of the host with the most is closed for it: a member, who sends its request at once, is admitted long
before its turn comes.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Hashable
from typing import Generic, TypeVar

C = TypeVar("C", bound=Hashable)


class Places(Generic[C]):
    """The open connections of a server. Thread-safe."""

    def __init__(self, strangers: int, members: int) -> None:
        """Limit the connections of ``strangers`` and of ``members``."""
        self._lock = threading.Lock()
        self._limits = strangers, members
        self._strangers: dict[C, str] = {}
        self._members: dict[C, str] = {}

    def add(self, connection: C, host: str) -> C | None:
        """Give ``connection``, from ``host``, the place of a stranger; return the one to close for it, if any."""
        with self._lock:
            evicted = _make_room(self._strangers, self._limits[0])
            self._strangers[connection] = host
        return evicted

    def admit(self, connection: C) -> C | None:
        """Make ``connection`` a member; return the one to close for it, if any."""
        with self._lock:
            host = self._strangers.pop(connection, None)
            if host is None:  # a member already, or closed for another one
                return None
            evicted = _make_room(self._members, self._limits[1])
            self._members[connection] = host
        return evicted

    def remove(self, connection: C) -> None:
        """Free the place of ``connection``, if it has one."""
        with self._lock:
            self._strangers.pop(connection, None)
            self._members.pop(connection, None)


def _make_room(connections: dict[C, str], limit: int) -> C | None:
    """Remove and return the oldest connection of the host with the most, if there are ``limit`` of them."""
    if len(connections) < limit:
        return None
    [(busiest, _)] = Counter(connections.values()).most_common(1)
    oldest = next(connection for connection, host in connections.items() if host == busiest)
    del connections[oldest]
    return oldest
