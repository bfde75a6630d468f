"""The HTTP server of the dashboard: Waitress, with places for strangers and members, and deadlines for requests.

    server = BoundedWaitress(app, host="127.0.0.1", port=8050, threads=8)
    server.run()

Waitress reads requests without a thread, and limits their sizes and idle connections. By itself, it stops accepting
connections at its limit, and never closes one that sends a byte now and then. The application admits a connection by
calling ``environ[ADMIT]``.
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from functools import partial
from typing import Any

from waitress.channel import HTTPChannel
from waitress.server import TcpWSGIServer
from waitress.task import WSGITask

from crossfade.trainer.monitoring.places import Places

ADMIT = "crossfade.admit"
"""The key of a request's environment with the function that makes its connection a member."""
STRANGERS = MEMBERS = 128
RECEIVE_SECONDS = 30.0
"""Maximum time between the first and the last byte of a request."""
_OPTIONS = {
    "ident": "crossfade",
    "asyncore_use_poll": True,  # select() fails with more than 1,024 open files
    "connection_limit": STRANGERS + MEMBERS + 64,  # more than there are places, or the server stops accepting
    "cleanup_interval": 1,
    "channel_timeout": 60,
    "max_request_header_size": 64 << 10,
    "max_request_body_size": 4 << 20,
}


class _Task(WSGITask):  # type: ignore[misc]
    def get_environment(self) -> dict[str, Any]:
        environ: dict[str, Any] = super().get_environment()
        environ[ADMIT] = partial(self.channel.server.admit, self.channel)
        return environ


class _Channel(HTTPChannel):  # type: ignore[misc]
    task_class = _Task
    receiving_since: float | None

    def __init__(self, server: BoundedWaitress, *arguments: Any, **options: Any) -> None:
        self.receiving_since = time.monotonic()
        super().__init__(server, *arguments, **options)
        _break_off(server.places.add(self, str(self.addr[0])))

    def received(self, data: bytes) -> bool:
        """Parse ``data``, and note since when a request is incomplete."""
        was_read: bool = super().received(data)
        if self.request is None:
            self.receiving_since = None
        elif self.receiving_since is None:
            self.receiving_since = time.monotonic()
        return was_read

    def del_channel(self, map: Any = None) -> None:
        """Free the place of a closed connection."""
        super().del_channel(map)
        self.server.places.remove(self)


class BoundedWaitress(TcpWSGIServer):  # type: ignore[misc]
    """Serves a WSGI application until an exception ends ``run``."""

    channel_class = _Channel
    receive_seconds = RECEIVE_SECONDS

    def __init__(
        self, app: Any, *, host: str, port: int, threads: int, strangers: int = STRANGERS, members: int = MEMBERS
    ) -> None:
        """Listen at ``port`` of ``host``; 0 is a free port.

        Raises:
            OSError: the address is in use or cannot be bound.
            ValueError: ``host`` cannot be resolved.
        """
        self.places: Places[_Channel] = Places(strangers, members)
        super().__init__(app, host=host, port=port, threads=threads, **_OPTIONS)

    def admit(self, channel: _Channel) -> None:
        """Count the connection ``channel`` with the members from now on."""
        _break_off(self.places.admit(channel))

    def maintenance(self, now: float) -> None:
        """Close connections that are idle, or whose request takes too long to arrive. Called every second."""
        super().maintenance(now)
        oldest = time.monotonic() - self.receive_seconds
        for channel in list(self.active_channels.values()):
            if channel.receiving_since is not None and channel.receiving_since < oldest:
                _break_off(channel)


def _break_off(channel: _Channel | None) -> None:
    """Break off a connection, if there is one; the main loop then closes it."""
    if channel is not None:
        channel.will_close = True
        with suppress(OSError):  # wakes the main loop, even if the client reads nothing
            channel.socket.shutdown(socket.SHUT_RDWR)
