"""HTTP connections of a server: uvicorn's protocol, with places for strangers and members, and deadlines.

    Config(app, http="crossfade.deploy.web.protocol:BoundedProtocol")    # the app's lifespan yields Bounds.state()

By itself, uvicorn neither ends a request that never arrives, nor a response that is never read, and it reads headers of
any size and number. Each process has its own places. A request's ``scope["state"][ADMIT]()`` makes its connection a
member.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from crossfade.trainer.monitoring.bounded_server import Places

ADMIT = "admit"
_BOUNDS = "bounds"
STRANGERS, MEMBERS = 256, 512
"""Together fewer than the 1,024 files that a process may usually open."""
_MAX_HEADERS = 100
_MAX_CHUNKS = 8192
"""Chunks of a body: each takes the event loop a microsecond or two."""
_MAX_WAITING = 16
"""Requests of a connection that may wait for the answer to an earlier one."""


@dataclass(frozen=True)
class Bounds:
    """The limits of a process's connections.

    Attributes:
        places: their places.
        seconds: the maximum time for a request to arrive, and for a client to read what is buffered of a response.
        head_bytes: the size from which headers that are still incomplete are rejected.
    """

    places: Places[BoundedProtocol] = field(default_factory=lambda: Places(STRANGERS, MEMBERS))
    seconds: float = 30.0
    head_bytes: int = 64 << 10

    def state(self) -> dict[str, Any]:
        """Return the state that an application's lifespan yields, where the protocol finds the bounds."""
        return {_BOUNDS: self}


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._bounds: Bounds = self.app_state[_BOUNDS]
        self._deadline: asyncio.TimerHandle | None = None
        self._is_in_head = False
        self._head_bytes, self._chunks = 0, 0
        self._cycles: list[RequestResponseCycle] = []
        """Requests that are not answered yet, of which the client may send several at once."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a place, if need be that of another connection."""
        super().connection_made(transport)
        self._restart_deadline()
        _break_off(self._bounds.places.add(self, self.client[0] if self.client else ""))

    def connection_lost(self, exc: Exception | None) -> None:
        """Free the place."""
        self._stop_deadline()
        self._bounds.places.remove(self)
        super().connection_lost(exc)
        self._end_requests()

    def send_400_response(self, msg: str) -> None:
        """Reject what cannot be parsed, and end the connection with all its requests."""
        super().send_400_response(msg)
        self._end_requests()

    def break_off(self) -> None:
        """End the connection at once."""
        self._end_requests()
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse ``data``; reject headers that are too large."""
        super().data_received(data)
        self._head_bytes = self._head_bytes + len(data) if self._is_in_head else 0
        if self._head_bytes > self._bounds.head_bytes and not self.transport.is_closing():
            self.send_400_response("The headers are too large.")

    def on_message_begin(self) -> None:
        """Begin a request; an exception has it rejected, with those that the client sent before."""
        if len(self.pipeline) >= _MAX_WAITING:
            raise ValueError("too many requests at once")
        super().on_message_begin()
        self.scope["state"] |= {ADMIT: self._admit}
        self._is_in_head, self._chunks = True, 0
        self._restart_deadline()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header to the request; an exception has the request rejected."""
        super().on_header(name, value)
        if len(self.headers) > _MAX_HEADERS:
            raise ValueError("too many headers")

    def on_headers_complete(self) -> None:
        """End the headers."""
        self._is_in_head = False
        super().on_headers_complete()
        self._cycles = [cycle for cycle in (*self._cycles, self.cycle) if not cycle.response_complete]

    def on_chunk_header(self) -> None:
        """Begin a chunk of a body; an exception has the request rejected."""
        self._chunks += 1
        if self._chunks > _MAX_CHUNKS + 1:  # the last one is empty
            raise ValueError("too many chunks")

    def on_message_complete(self) -> None:
        """End the request: its answer may take as long as it needs."""
        self._stop_deadline()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """End the response: the client must read it."""
        self._restart_deadline()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Stop writing until the client has read more."""
        self._restart_deadline()
        super().pause_writing()

    def resume_writing(self) -> None:
        """Go on writing."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_deadline()
        super().resume_writing()

    def _end_requests(self) -> None:
        """Have the application learn that nobody reads its answers: to write them would be an error."""
        for cycle in self._cycles:
            cycle.disconnected = True
            cycle.message_event.set()

    def _admit(self) -> None:
        _break_off(self._bounds.places.admit(self))

    def _restart_deadline(self) -> None:
        self._stop_deadline()
        self._deadline = self.loop.call_later(self._bounds.seconds, self.break_off)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _break_off(protocol: BoundedProtocol | None) -> None:
    """Break off a connection, if there is one."""
    if protocol is not None:
        protocol.break_off()
