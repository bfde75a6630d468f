"""Bounded servers under clients that hold connections open and send little or nothing, with real sockets."""

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from scripted_agents import Cluster, Host
from waiting import wait_until

from crossfade.deploy.cluster.agent import CoordinatorUnreachable
from crossfade.deploy.cluster.coordinator_http import RemoteCoordinator, serve_coordinator
from crossfade.deploy.topology import Address
from crossfade.trainer.monitoring.bounded_server import BoundedServer, Limits
from crossfade.trainer.monitoring.http import serve_metrics
from crossfade.trainer.monitoring.registry import ProcessMetrics

TOKEN = "a-secret-of-this-test-alone"
PER_ADDRESS, TOTAL = 4, 6


@contextmanager
def coordinator() -> Iterator[Address]:
    with serve_coordinator(Cluster(hosts=2).coordinator, Address("127.0.0.1", 0), TOKEN) as address:
        yield address


@contextmanager
def metrics() -> Iterator[Address]:
    with serve_metrics(ProcessMetrics("plays", "worker"), 0, None, "127.0.0.1") as endpoint:
        yield Address.parse(str(endpoint.address), "metrics")


@pytest.fixture(params=[coordinator, metrics])
def served(request: pytest.FixtureRequest) -> Iterator[Address]:
    with request.param() as address:
        yield address


@pytest.fixture
def set_limits(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Limit connections to ``TOTAL``, ``PER_ADDRESS`` from one address, each for so many seconds."""

    def limit(seconds: float) -> None:
        monkeypatch.setattr(BoundedServer, "limits", Limits(TOTAL, PER_ADDRESS, seconds))

    return limit


def hold(address: Address, client: str, count: int, stack: ExitStack) -> list[socket.socket]:
    """Open ``count`` connections from ``client`` that send nothing."""
    at = (address.host, address.port)
    return [stack.enter_context(socket.create_connection(at, 5, (client, 0))) for _ in range(count)]


def status(address: Address, client: str) -> int | None:
    """Return the status of an answer; None if the connection was broken off."""
    connection = http.client.HTTPConnection(address.host, address.port, 5, source_address=(client, 0))
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status
    except (ConnectionError, http.client.BadStatusLine):
        return None
    finally:
        connection.close()


def is_answered(address: Address, client: str) -> bool:
    return status(address, client) in {200, 401}


def is_rejected(address: Address, client: str) -> bool:
    return status(address, client) in {503, None}


def is_closed(held: socket.socket) -> bool:
    try:
        return held.recv(1) == b""
    except ConnectionError:
        return True


def test_connections_per_address_are_limited_and_other_addresses_answered(
    served: Address, set_limits: Callable[[float], None]
) -> None:
    set_limits(60.0)
    with ExitStack() as stack:
        hold(served, "127.0.0.1", PER_ADDRESS, stack)
        wait_until(lambda: is_rejected(served, "127.0.0.1"), 5, "the limit per address")
        assert is_answered(served, "127.0.0.2")
    wait_until(lambda: is_answered(served, "127.0.0.1"), 5, "free connections")


def test_total_connections_and_threads_are_limited(served: Address, set_limits: Callable[[float], None]) -> None:
    set_limits(60.0)
    before = threading.active_count()
    with ExitStack() as stack:
        for number in range(10):
            hold(served, f"127.0.0.{10 + number}", PER_ADDRESS, stack)
        wait_until(lambda: is_rejected(served, "127.0.0.2"), 5, "the total limit")
        assert threading.active_count() - before <= TOTAL
    wait_until(lambda: is_answered(served, "127.0.0.2"), 5, "free connections")


def test_silent_and_slow_clients_are_disconnected(served: Address, set_limits: Callable[[float], None]) -> None:
    set_limits(0.5)
    before, begin = threading.active_count(), time.monotonic()
    with ExitStack() as stack:
        silent, slow = hold(served, "127.0.0.1", 2, stack)
        slow.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
        slow.settimeout(0.05)

        def is_slow_closed() -> bool:
            try:
                slow.sendall(b"x")
                return slow.recv(1) == b""
            except TimeoutError:
                return False
            except ConnectionError:
                return True

        wait_until(is_slow_closed, 5, "the end of the slow connection")
        assert is_closed(silent)
        assert time.monotonic() - begin >= 0.4
        wait_until(lambda: threading.active_count() == before, 5, "the end of their threads")
    assert is_answered(served, "127.0.0.1")


def test_agent_retries_after_connection_limit(set_limits: Callable[[float], None]) -> None:
    set_limits(60.0)
    cluster = Cluster(hosts=2)
    heartbeat = Host(cluster, "127.0.0.2").make_heartbeat()
    with serve_coordinator(cluster.coordinator, Address("127.0.0.1", 0), TOKEN) as address:
        remote = RemoteCoordinator(address, TOKEN)
        with ExitStack() as stack:
            hold(address, "127.0.0.1", PER_ADDRESS, stack)
            wait_until(lambda: is_rejected(address, "127.0.0.1"), 5, "the limit per address")
            with pytest.raises(CoordinatorUnreachable):
                remote.send_heartbeat(heartbeat)
        wait_until(lambda: is_answered(address, "127.0.0.1"), 5, "free connections")
        assert remote.send_heartbeat(heartbeat).action == "wait"
