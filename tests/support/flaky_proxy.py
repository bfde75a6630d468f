"""A proxy between a client and a real S3 server that makes some requests fail.

with flaky_proxy(server.endpoint) as proxy:
    variables = server.variables | {"AWS_ENDPOINT_URL": proxy.endpoint}
    proxy.inject("throttle", 3)                   # the next three requests get 503 Slow Down
    assert proxy.left == 0                        # they have been sent
    proxy.inject_every("reset", 5)                # every fifth request from now on
"""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal
from urllib.parse import urlsplit

Fault = Literal["reset", "throttle", "busy", "fail", "cut", "flip", "stall", "expire"]

_PIECE_BYTES = 1 << 16
_ANSWERS = {
    "throttle": ("503 Slow Down", "SlowDown", "Please reduce your request rate."),
    "fail": ("500 Internal Server Error", "InternalError", "We encountered an internal error. Please try again."),
    "busy": ("429 Too Many Requests", "TooManyRequests", "Please reduce your request rate."),
    "expire": ("400 Bad Request", "ExpiredToken", "The provided token has expired."),
}
"""Error responses of S3, as AWS documents them."""


class Proxy:
    """Forwards requests, except those with an injected fault."""

    def __init__(self, endpoint: str) -> None:
        target = urlsplit(endpoint)
        assert target.hostname is not None
        assert target.port is not None
        self._target = target.hostname, target.port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests = 0
        self.left = 0
        self._fault: Fault = "reset"
        self._every = 0
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._sockets: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def inject(self, fault: Fault, times: int) -> None:
        """Make the next ``times`` requests fail."""
        with self._lock:
            self._fault, self.left, self._every = fault, times, 0

    def inject_every(self, fault: Fault, every: int) -> None:
        """Make every ``every``-th request fail from now on; 0: none."""
        with self._lock:
            self._fault, self.left, self._every = fault, 0, every

    def close(self) -> None:
        """Close all connections."""
        self._closed.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._sockets:
            connection.close()
        self._thread.join()

    def _accept(self) -> None:
        while not self._closed.is_set():
            with suppress(OSError):
                client, _ = self._listener.accept()
                self._sockets.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _next_fault(self) -> Fault | None:
        with self._lock:
            self.requests += 1
            if self.left:
                self.left -= 1
                return self._fault
            return self._fault if self._every and self.requests % self._every == 0 else None

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError), client, socket.create_connection(self._target) as server:
            self._sockets.append(server)
            spoiled: list[Fault] = []
            back = threading.Thread(target=self._answer, args=(server, client, spoiled), daemon=True)
            back.start()
            while request := client.recv(_PIECE_BYTES):
                # A read request arrives in one piece, without a body. Pieces of other requests pass.
                fault = self._next_fault() if request.startswith((b"GET ", b"HEAD ")) else None
                if fault == "reset":
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return
                if fault == "stall":
                    self._closed.wait()
                    return
                if fault in ("cut", "flip"):
                    spoiled.append(fault)
                elif fault is not None:
                    client.sendall(_error_answer(fault, request))
                    continue
                server.sendall(request)

    def _answer(self, server: socket.socket, client: socket.socket, spoiled: list[Fault]) -> None:
        """Forward answers; of the next one that is ``spoiled``, cut the body in half or change a bit of it."""
        with suppress(OSError):
            while piece := server.recv(_PIECE_BYTES):
                if spoiled and piece.startswith(b"HTTP/"):
                    head, _, body = piece.partition(b"\r\n\r\n")
                    if spoiled.pop(0) == "cut":
                        client.sendall(head + b"\r\n\r\n" + body[: len(body) // 2])
                        client.shutdown(socket.SHUT_RDWR)
                        return
                    if body:
                        middle = len(body) // 2
                        body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
                    piece = head + b"\r\n\r\n" + body
                client.sendall(piece)
            client.shutdown(socket.SHUT_RDWR)


def _error_answer(fault: Fault, request: bytes) -> bytes:
    """Return the answer of S3 that rejects ``request``."""
    status, code, message = _ANSWERS[fault]
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{code}</Code><Message>{message}</Message><Resource>/</Resource><RequestId>0</RequestId></Error>"
    ).encode()
    if request.startswith(b"HEAD "):
        body = b""
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@contextmanager
def flaky_proxy(endpoint: str) -> Iterator[Proxy]:
    """Run a proxy of the server at ``endpoint``."""
    proxy = Proxy(endpoint)
    try:
        yield proxy
    finally:
        proxy.close()
