"""A threaded HTTP server with bounded connections, for the endpoints of a run.

    class Server(BoundedServer):
        limits = Limits(connections=64)

Each connection carries one request. Connections are limited in number, in all and for each address, and in duration, so
that silent or slow clients cannot exhaust threads.
"""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_BUSY = b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"


@dataclass(frozen=True)
class Limits:
    """The maximum number of open connections, and the maximum duration of one."""

    connections: int = 256
    connections_per_address: int = 32
    """Fewer than all, so that a misbehaving client blocks only clients of its own host."""
    seconds: float = 10.0
    """Maximum duration of a connection."""


@dataclass(frozen=True)
class _Connection:
    host: str
    opened_at: float


class BoundedServer(ThreadingHTTPServer):
    """Answers each request in its own thread, within ``limits``."""

    daemon_threads = True
    request_queue_size = 128
    block_on_close = False  # a slow client would delay the end of the run
    limits = Limits()

    def __init__(self, host: str, port: int, handler: Callable[..., BaseHTTPRequestHandler]) -> None:
        """Listen at ``port`` of ``host``; 0 is a free port. ``handler`` is created for each request."""
        self._lock = threading.Lock()
        self._open: dict[Any, _Connection] = {}
        super().__init__((host, port), handler)

    def server_bind(self) -> None:
        """Bind without HTTPServer's lookup of the host's name, which may take long."""
        socketserver.TCPServer.server_bind(self)
        self.server_port = self.socket.getsockname()[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer ``request`` in a thread, or with 503 if the limits are reached."""
        host = client_address[0]
        with self._lock:
            from_host = sum(connection.host == host for connection in self._open.values())
            has_room = len(self._open) < self.limits.connections and from_host < self.limits.connections_per_address
            if has_room:
                self._open[request] = _Connection(host, time.monotonic())
        if has_room:
            super().process_request(request, client_address)
            return
        with suppress(OSError):
            request.setblocking(False)
            request.send(_BUSY)
        self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        """End a connection."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Close connections that last too long. The server calls this between requests, many times a second."""
        oldest = time.monotonic() - self.limits.seconds
        with self._lock:
            for request, connection in self._open.items():
                if connection.opened_at < oldest:
                    with suppress(OSError):  # its thread stops waiting and ends
                        request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, *_: object) -> None:
        """Log nothing: a client that disconnects tries again."""
