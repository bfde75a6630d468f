"""Connect the ranks of a job with each other: they meet at a rendezvous, and prove that they have its secret.

    client = RendezvousClient("10.0.0.1:7071/SECRET", timeout_seconds=600)
    connections = connect_ranks(client, "SECRET", rank, num_ranks, "10.0.0.1", timeout_seconds=600)

Each rank listens, stores where at the rendezvous, and connects to the ranks below it. Both sides of a connection answer
a random challenge with its HMAC, so that neither a scanner nor a rank of another job gets in. A rank stops listening
once all others are connected.
"""

from __future__ import annotations

import errno
import hmac
import http.client
import json
import os
import secrets
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from typing import Protocol

from crossfade.base.errors import ClusterError

_POLL_SECONDS, _MAX_POLL_SECONDS = 0.02, 0.3
_REQUEST_SECONDS = 30.0
_HANDSHAKE_SECONDS = 10.0
_MAX_UNPROVED = 128
"""Connections that may prove themselves at the same time."""
_MAX_VALUE_BYTES = 1 << 16
_BACKLOG = 1024
"""As many ranks may connect at once as a job can have."""
_SOCKET_BYTES = 1 << 22
_CHALLENGE_BYTES = _PROOF_BYTES = 32
_HELLO = struct.Struct(f"<I{_CHALLENGE_BYTES}s")
"""What a rank that connects sends first: its number and a challenge."""


class Meeting(Protocol):
    """Where ranks publish how they are reached: ``RendezvousClient``, or memory in tests."""

    def put(self, key: str, value: bytes) -> None:
        """Store a value."""

    def get(self, key: str) -> bytes:
        """Return a value once there is one."""


class RendezvousClient:
    """Stores and awaits values at a rendezvous, ``HOST:PORT/SECRET``."""

    def __init__(self, rendezvous: str, timeout_seconds: float) -> None:
        """Wait ``timeout_seconds`` for a value, or for a rendezvous that does not answer."""
        self._place, _, secret = rendezvous.partition("/")
        host, _, port = self._place.rpartition(":")
        self._address, self._path = (host, int(port)), f"/{secret}:{port}/ranks/"
        self._timeout_seconds = timeout_seconds

    def put(self, key: str, value: bytes) -> None:
        """Store a value.

        Raises:
            ClusterError: the rendezvous does not answer, or does not accept it.
        """
        self._retry(lambda: self._request("PUT", key, value), f"could not store {key}")

    def get(self, key: str) -> bytes:
        """Return the value of a key once it has one.

        Raises:
            ClusterError: it has none within the timeout: that rank did not start.
        """
        return self._retry(lambda: self._request("GET", key, None), f"there is no {key}")

    def _retry(self, request: Callable[[], bytes | None], problem: str) -> bytes:
        deadline, reason, pause = time.monotonic() + self._timeout_seconds, "", _POLL_SECONDS
        while True:
            try:
                if (answer := request()) is not None:
                    return answer
            except (OSError, http.client.HTTPException) as error:
                reason = f": {error or type(error).__name__}"
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"the workers' rendezvous at {self._place}: {problem} after {self._timeout_seconds:g} s{reason}"
                )
            time.sleep(pause)
            pause = min(1.5 * pause, _MAX_POLL_SECONDS)

    def _request(self, method: str, key: str, body: bytes | None) -> bytes | None:
        connection = http.client.HTTPConnection(*self._address, timeout=_REQUEST_SECONDS)
        try:
            connection.request(method, self._path + key, body)
            response = connection.getresponse()
            answer = response.read(_MAX_VALUE_BYTES)
        finally:
            connection.close()
        if response.status == HTTPStatus.OK:
            return answer
        if response.status in (HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE):  # not yet, or too many ask
            return None
        raise ClusterError(f"the workers' rendezvous at {self._place} answered with status {response.status}")


@dataclass(frozen=True)
class Connection:
    """A connection to another rank, which does not block; ``is_local``: on one host, so that memory can be shared."""

    socket: socket.socket
    is_local: bool


@dataclass(frozen=True)
class _Listeners:
    """Where a rank accepts others: at a TCP port, and for ranks of this host at a Unix socket without a file."""

    tcp: socket.socket
    unix: socket.socket | None
    host: str | None
    """What ranks that can share memory have in common: kernel, network namespace, and address."""

    @staticmethod
    def open(address: str, opened: ExitStack) -> _Listeners:
        tcp = opened.enter_context(socket.create_server((address, 0), backlog=_BACKLOG))
        host = _memory_domain(address)
        if host is None:
            return _Listeners(tcp, None, None)
        unix = opened.enter_context(socket.socket(socket.AF_UNIX))
        unix.bind(f"\0crossfade-{secrets.token_hex(16)}")
        unix.listen(_BACKLOG)
        return _Listeners(tcp, unix, host)

    def describe(self) -> bytes:
        """Return what the other ranks need."""
        unix = self.unix.getsockname()[1:].decode() if self.unix is not None else None
        return json.dumps({"tcp": self.tcp.getsockname()[:2], "unix": unix, "host": self.host}).encode()

    def connect(self, description: bytes, seconds: float) -> Connection:
        """Connect to the rank with a description, which accepts others once it has connected to the ranks below it."""
        there = json.loads(description)
        is_local = self.host is not None and there["host"] == self.host
        if not is_local:
            return Connection(socket.create_connection(tuple(there["tcp"]), timeout=seconds), is_local)
        connected = socket.socket(socket.AF_UNIX)
        connected.settimeout(seconds)
        connected.connect("\0" + there["unix"])
        return Connection(connected, is_local)


def _memory_domain(address: str) -> str | None:
    """Return what ranks of ``address`` that can share memory have in common; None where the system has no such memory.

    Pythons that were built for old versions of Linux lack ``memfd_create``.
    """
    if sys.platform != "linux" or not hasattr(os, "memfd_create"):
        return None
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/net').stat().st_ino} {address}"
    except OSError:
        return None


def connect_ranks(
    meeting: Meeting, secret: str, rank: int, num_ranks: int, address: str, timeout_seconds: float
) -> dict[int, Connection]:
    """Connect to all other ranks; return the connections by rank.

    Args:
        meeting: where the ranks of this job, and no others, find each other.
        secret: what they have in common.
        rank: this process's number.
        num_ranks: how many there are.
        address: the numeric address at which this process listens.
        timeout_seconds: how long to wait for the others.

    Raises:
        ClusterError: another rank did not join, or could not be reached.
    """
    key, deadline = secret.encode(), time.monotonic() + timeout_seconds
    connections: dict[int, Connection] = {}
    with ExitStack() as listening, ExitStack() as connected:
        try:
            listeners = _Listeners.open(address, listening)
            meeting.put(f"rank-{rank}", listeners.describe())
            for other in range(rank):
                connection = listeners.connect(meeting.get(f"rank-{other}"), max(1.0, deadline - time.monotonic()))
                connected.enter_context(connection.socket)
                _introduce(connection.socket, key, rank, other)
                connections[other] = connection
            for other, connection in _accept(listeners, key, rank, set(range(rank + 1, num_ranks)), deadline):
                connections[other] = connection
                connected.enter_context(connection.socket)
        except OSError as error:
            missing = sorted(set(range(num_ranks)) - {rank, *connections})
            raise ClusterError(
                f"worker {rank} at {address} could not connect to the others: {error or type(error).__name__}"
                + (f"; not connected to {', '.join(map(str, missing))}" if missing else "")
            ) from error
        for connection in connections.values():
            _prepare(connection)
        connected.pop_all()
    return connections


def _prepare(connection: Connection) -> None:
    if connection.is_local:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            connection.socket.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BYTES)
    else:  # the kernel adapts the buffers of TCP to the network, unless they are set
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.socket.setblocking(False)


def _proof(key: bytes, side: str, challenge: bytes, client: int, server: int) -> bytes:
    """Return the answer of a side to a challenge of the other."""
    return hmac.digest(key, f"{side} {client} {server} ".encode() + challenge, sha256)


def _introduce(connected: socket.socket, key: bytes, rank: int, other: int) -> None:
    """Prove to ``other``, to which this rank has connected, that it belongs to the job, and check the same of it."""
    challenge = secrets.token_bytes(_CHALLENGE_BYTES)
    connected.sendall(_HELLO.pack(rank, challenge))
    answer = _read(connected, _PROOF_BYTES + _CHALLENGE_BYTES)
    if not hmac.compare_digest(answer[:_PROOF_BYTES], _proof(key, "server", challenge, rank, other)):
        raise ConnectionError(f"what answers for worker {other} is not a worker of this job")
    connected.sendall(_proof(key, "client", answer[_PROOF_BYTES:], rank, other))


@dataclass
class _Unproved:
    """An accepted connection whose other end has yet to prove that it is a rank of this job."""

    connection: Connection
    until: float
    """When it is closed, by the monotonic clock."""
    rank: int = -1
    challenge: bytes = b""
    data: bytes = b""

    def advance(self, key: bytes, rank: int) -> bool:
        """Read what has arrived at ``rank``, and answer it; return whether the other end has proved itself.

        Raises:
            OSError: it has not, or the connection broke off.
        """
        expected = _PROOF_BYTES if self.challenge else _HELLO.size
        piece = self.connection.socket.recv(expected - len(self.data))
        if not piece:
            raise ConnectionResetError("the connection was closed")
        self.data += piece
        if len(self.data) < expected:
            return False
        if self.challenge:
            if not hmac.compare_digest(self.data, _proof(key, "client", self.challenge, self.rank, rank)):
                raise ConnectionError("it does not have the secret of this job")
            return True
        self.rank, challenge = _HELLO.unpack(self.data)
        self.challenge, self.data = secrets.token_bytes(_CHALLENGE_BYTES), b""
        self.connection.socket.sendall(_proof(key, "server", challenge, self.rank, rank) + self.challenge)
        return False


def _accept(
    listeners: _Listeners, key: bytes, rank: int, missing: set[int], deadline: float
) -> Iterator[tuple[int, Connection]]:
    """Accept the ranks that are ``missing``; yield each with its connection.

    Those that connect prove themselves at the same time, so that one that sends nothing delays no other.

    Raises:
        TimeoutError: a rank has not connected before the deadline.
    """
    sources = [listener for listener in (listeners.tcp, listeners.unix) if listener is not None]
    unproved: dict[int, _Unproved] = {}
    try:
        while missing:
            if time.monotonic() > deadline:
                raise TimeoutError("timed out")
            for number in _ready(sources, unproved, deadline):
                for listener in sources:
                    if listener.fileno() == number and (accepted := _accept_one(listeners, listener)) is not None:
                        unproved[accepted.connection.socket.fileno()] = accepted
                if number in unproved and (proved := _read_proof(unproved, number, key, rank)) is not None:
                    if proved.rank in missing:
                        missing.discard(proved.rank)
                        yield proved.rank, proved.connection
                    else:
                        proved.connection.socket.close()
            _close_expired(unproved, _MAX_UNPROVED + len(missing))
    finally:
        for each in unproved.values():
            each.connection.socket.close()


def _ready(sources: list[socket.socket], unproved: dict[int, _Unproved], deadline: float) -> list[int]:
    """Wait for a connection, for data, or for the next time limit; return the descriptors that can be read."""
    poll = select.poll()
    for number in (*(source.fileno() for source in sources), *unproved):
        poll.register(number, select.POLLIN)
    until = min([deadline, *(each.until for each in unproved.values())])
    return [number for number, _ in poll.poll(max(0.0, until - time.monotonic()) * 1000 + 1)]


def _accept_one(listeners: _Listeners, listener: socket.socket) -> _Unproved | None:
    """Accept a connection, unless it is gone."""
    try:
        accepted, _ = listener.accept()
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        return None
    accepted.setblocking(False)
    return _Unproved(Connection(accepted, listener is listeners.unix), time.monotonic() + _HANDSHAKE_SECONDS)


def _read_proof(unproved: dict[int, _Unproved], number: int, key: bytes, rank: int) -> _Unproved | None:
    """Read what a connection has sent; return it once it has proved itself. One that cannot is closed soon."""
    connection = unproved[number]
    try:
        if not connection.advance(key, rank):
            return None
    except BlockingIOError:
        return None
    except OSError:
        connection.until = 0.0
        return None
    return unproved.pop(number)


def _close_expired(unproved: dict[int, _Unproved], limit: int) -> None:
    """Close connections whose time is over, and the first ones if there are more than ``limit``."""
    now, excess = time.monotonic(), len(unproved) - limit
    for place, (number, connection) in enumerate(list(unproved.items())):
        if connection.until <= now or place < excess:
            del unproved[number]
            connection.connection.socket.close()


def _read(connected: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = connected.recv(size - len(data))
        if not piece:
            raise ConnectionResetError("the connection was closed")
        data += piece
    return data
