"""Clients without the token of a server: they hold connections open, send slowly, or send anything but requests.

with idle_strangers(address, 300):
    assert is_answered(...)
"""

import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress

from waiting import wait_until

from crossfade.deploy.topology import Address

SECONDS = 60.0
_PARTS = (
    *(b"GET / HTTP/1.1\r\n", b"POST /v1/heartbeat HTTP/1.1\r\n", b"PUT ", b"PRI * HTTP/2.0\r\n\r\n", b"HTTP/1.1\r\n"),
    *(b"Host: localhost\r\n", b"Content-Length: 99999999999999999999\r\n", b"Content-Length: -1\r\n", b": \r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"Upgrade: x\r\nConnection: upgrade\r\n"),
    *(b"Authorization: Bearer \xff\r\n", b"Cookie: a=\x00\r\n", b"\r\n\r\n", b"ffffffffffffffff\r\n", b"\x16\x03\x01"),
)
"""Pieces of requests, valid and not, which random bytes alone would seldom contain."""


def connect(address: Address, client: str = "127.0.0.1") -> socket.socket:
    """Open a connection from ``client``, an address of loopback."""
    return socket.create_connection((address.host, address.port), SECONDS, (client, 0))


@contextmanager
def idle_strangers(address: Address, count: int, client: str = "127.0.0.1") -> Iterator[list[socket.socket]]:
    """Hold ``count`` connections open that send nothing."""
    with ExitStack() as stack:
        yield [stack.enter_context(connect(address, client)) for _ in range(count)]


def is_closed(held: socket.socket) -> bool:
    """Return whether the server has closed ``held``, without waiting for it."""
    held.settimeout(0.02)
    try:
        return held.recv(1 << 16) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def send_slowly_until_closed(address: Address, beginning: bytes) -> None:
    """Send ``beginning``, then a byte now and then, until the server closes the connection."""
    with closing(connect(address)) as slow:
        slow.sendall(beginning)

        def is_slow_closed() -> bool:
            try:
                slow.sendall(b"x")
            except ConnectionError:
                return True
            return is_closed(slow)

        wait_until(is_slow_closed, "the end of the slow connection")


def send_garbage(address: Address, frames: int, seed: int = 1) -> None:
    """Send ``frames`` mixtures of random bytes and parts of requests, each by a separate connection."""
    draw = random.Random(seed)
    for _ in range(frames):
        parts = [draw.choice(_PARTS) if draw.random() < 0.6 else draw.randbytes(draw.randrange(200)) for _ in range(6)]
        with closing(connect(address)) as client, suppress(ConnectionError):
            client.sendall(b"".join(parts))
