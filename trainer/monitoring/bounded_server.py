"""A small HTTP server in threads that no client can fill up: for the listeners of a run.

Each connection is one request. There is room for so many connections, in all and from one address, and each must be
over by a time: that of a client which says nothing, or a byte now and then, is cut.
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
    """How many connections there may be at once, and how long one may last."""

    connections: int = 256
    connections_of_address: int = 32
    """Fewer than all, so that a client which has gone mad locks out none but those of its own host."""
    seconds: float = 10.0


@dataclass(frozen=True)
class _Connection:
    host: str
    since: float


class BoundedServer(ThreadingHTTPServer):
    """Answers each request in a thread of its own, within ``limits``."""

    daemon_threads = True
    request_queue_size = 128
    block_on_close = False  # a slow client would hold up the end of the run
    limits = Limits()

    def __init__(self, host: str, port: int, handler: Callable[..., BaseHTTPRequestHandler]) -> None:
        """Listen at ``port`` of ``host``; 0 is a free one. Each request becomes a ``handler``."""
        self._lock = threading.Lock()
        self._open: dict[Any, _Connection] = {}
        super().__init__((host, port), handler)

    def server_bind(self) -> None:
        """Bind. HTTPServer's own would look the host's name up, which may take long."""
        socketserver.TCPServer.server_bind(self)
        self.server_port = self.socket.getsockname()[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begin to answer, or say that there is no room."""
        host = client_address[0]
        with self._lock:
            of_host = sum(connection.host == host for connection in self._open.values())
            room = len(self._open) < self.limits.connections and of_host < self.limits.connections_of_address
            if room:
                self._open[request] = _Connection(host, time.monotonic())
        if room:
            super().process_request(request, client_address)
            return
        with suppress(OSError):
            request.setblocking(False)
            request.send(_BUSY)
        self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        """End a connection, which makes room."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Cut connections that last too long: asked for between requests, many times a second."""
        oldest = time.monotonic() - self.limits.seconds
        with self._lock:
            for request, connection in self._open.items():
                if connection.since < oldest:
                    with suppress(OSError):  # its thread, which waits for it, goes on and ends
                        request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, *_: object) -> None:
        """Say nothing: whoever went away in the middle comes again."""
