"""A threaded HTTP server with bounded connections, for the endpoints of a run.

    class Handler(BoundedHandler):
        def do_GET(self) -> None:
            self.admit()                # once the request has passed all checks
            ...

    class Server(BoundedServer):
        limits = Limits(strangers=64)

Each connection carries one request. Connections are limited in number, apart for those whose request has been admitted
and those of strangers, and in duration, so that silent or slow clients can neither exhaust threads nor keep others out.
"""

from __future__ import annotations

import http.client
import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from typing import Any, Generic, TypeVar

C = TypeVar("C", bound=Hashable)
MAX_HEAD_BYTES = 64 << 10
"""Maximum size of the headers of a request."""
_THREAD_WAIT_SECONDS = 0.2
"""Time that a new connection waits for the thread of the one that is closed for it."""
_BUSY = b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"


class Places(Generic[C]):
    """The open connections of a server, apart for strangers and members. Thread-safe.

    A connection is a stranger's until its request has passed the server's checks. Every new connection gets a place,
    since the oldest one of the host with the most is closed for it: a member, who sends its request at once, is
    admitted long before its turn comes.
    """

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


@dataclass(frozen=True)
class Limits:
    """The maximum numbers of open connections, and the maximum duration of one."""

    strangers: int = 128
    """Connections whose request has not been admitted yet."""
    members: int = 128
    """Connections whose request has been admitted."""
    seconds: float = 10.0
    """Maximum duration of a connection."""


class BoundedServer(ThreadingHTTPServer):
    """Answers each request in its own thread, within ``limits``."""

    daemon_threads = True
    request_queue_size = 1024  # a burst of strangers must not make members repeat their attempts
    block_on_close = False  # a slow client would delay the end of the run
    limits = Limits()

    def __init__(self, host: str, port: int, handler: Callable[..., BoundedHandler]) -> None:
        """Listen at ``port`` of ``host``; 0 is a free port. ``handler`` is created for each request."""
        self._places: Places[Any] = Places(self.limits.strangers, self.limits.members)
        self._free_threads = threading.BoundedSemaphore(self.limits.strangers + self.limits.members)
        self._lock = threading.Lock()
        self._opened_at: dict[Any, float] = {}
        super().__init__((host, port), handler)

    def server_bind(self) -> None:
        """Bind without HTTPServer's lookup of the host's name, which may take long."""
        socketserver.TCPServer.server_bind(self)
        self.server_port = self.socket.getsockname()[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer ``request`` in a thread, or with 503 if all are busy."""
        _break_off(self._places.add(request, client_address[0]))
        if self._free_threads.acquire(timeout=_THREAD_WAIT_SECONDS):
            with self._lock:
                self._opened_at[request] = time.monotonic()
            super().process_request(request, client_address)
            return
        with suppress(OSError):
            request.setblocking(False)
            request.send(_BUSY)
        self.shutdown_request(request)

    def admit(self, request: Any) -> None:
        """Count the connection ``request`` with the members from now on."""
        _break_off(self._places.admit(request))

    def shutdown_request(self, request: Any) -> None:
        """End a connection."""
        self._places.remove(request)
        with self._lock:
            had_thread = self._opened_at.pop(request, None) is not None
        if had_thread:
            self._free_threads.release()
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Break off connections that last too long. The server calls this between requests, many times a second."""
        oldest = time.monotonic() - self.limits.seconds
        with self._lock:
            overdue = [request for request, opened_at in self._opened_at.items() if opened_at < oldest]
        for request in overdue:
            _break_off(request)

    def handle_error(self, *_: object) -> None:
        """Log nothing: a client that disconnects tries again."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Answer requests in the background while the context lasts, then close the server."""
        # A daemon: a role may end while its main thread is in MXNet.
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.shutdown()
            self.server_close()
            thread.join()


def _break_off(request: Any) -> None:
    """Break off a connection, if there is one: its thread stops waiting and ends."""
    if request is not None:
        with suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)


class BoundedHandler(BaseHTTPRequestHandler):
    """Answers the request of one connection to a ``BoundedServer``."""

    timeout = 5.0
    """Seconds that the thread waits for the next bytes of the client."""
    server: BoundedServer
    server_version, sys_version = "crossfade", ""

    def admit(self) -> None:
        """Count this connection with the members: its request has passed all checks."""
        self.server.admit(self.request)

    def answer(self, status: HTTPStatus, body: bytes, media_type: str = "text/plain") -> None:
        """Send a response."""
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def content_length(self, most: int) -> int | None:
        """Return the stated length of the body, ``most`` + 1 if it is more; None without a valid one."""
        text = self.headers.get("Content-Length", "")
        if not (text.isascii() and text.isdecimal()):
            return None
        # Digits are counted first, since int() rejects thousands of them.
        digits = text.lstrip("0") or "0"
        return most + 1 if len(digits) > len(str(most)) else min(int(digits), most + 1)

    def parse_request(self) -> bool:
        """Read the headers, ``MAX_HEAD_BYTES`` at most; if there are more, answer 431 and return false."""
        rest = self.rfile
        self.rfile = _Head(rest)  # type: ignore[assignment]
        try:
            return super().parse_request()
        finally:
            self.rfile = rest

    def log_message(self, *_: object) -> None:
        """Log nothing: requests would fill the log."""


class _Head:
    """Reads the lines of headers from ``file``, up to a total size. http.client bounds each line and their number."""

    def __init__(self, file: BufferedIOBase) -> None:
        self._file, self._left = file, MAX_HEAD_BYTES

    def readline(self, limit: int) -> bytes:
        """Return the next line.

        Raises:
            LineTooLong: the headers are too large; the base class answers 431.
        """
        line = self._file.readline(min(limit, self._left + 1))
        self._left -= len(line)
        if self._left < 0:
            raise http.client.LineTooLong("headers")
        return line
