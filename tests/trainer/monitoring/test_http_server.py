"""Listeners whose clients hold on to connections and say nothing, or not much: with real sockets."""

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from scripted_agents import Cluster, Host
from waiting import wait_until

from deploy.cluster.agent import CoordinatorUnreachable
from deploy.cluster.coordinator_http import RemoteCoordinator, serve_coordinator
from deploy.topology import Address
from trainer.monitoring.bounded_server import BoundedServer, Limits
from trainer.monitoring.http import serve_metrics
from trainer.monitoring.registry import ProcessMetrics

TOKEN = "a-secret-of-this-test-alone"
OF_ADDRESS, IN_ALL = 4, 6


@contextmanager
def coordinator() -> Iterator[Address]:
    with serve_coordinator(Cluster(hosts=2).coordinator, Address("127.0.0.1", 0), TOKEN) as address:
        yield address


@contextmanager
def metrics() -> Iterator[Address]:
    with serve_metrics(ProcessMetrics("plays", "worker"), 0, None, "127.0.0.1") as listener:
        yield Address.parse(str(listener.address), "metrics")


@pytest.fixture(params=[coordinator, metrics])
def served(request: pytest.FixtureRequest) -> Iterator[Address]:
    with request.param() as address:
        yield address


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Leave room for ``IN_ALL`` connections, ``OF_ADDRESS`` from one address, each for so many seconds."""

    def limit(seconds: float) -> None:
        monkeypatch.setattr(BoundedServer, "limits", Limits(IN_ALL, OF_ADDRESS, seconds))

    return limit


def hold(address: Address, client: str, count: int, stack: ExitStack) -> list[socket.socket]:
    """``count`` connections from ``client`` that say nothing."""
    at = (address.host, address.port)
    return [stack.enter_context(socket.create_connection(at, 5, (client, 0))) for _ in range(count)]


def status(address: Address, client: str) -> int | None:
    """The status of an answer; None: the connection was broken off."""
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


def is_refused(address: Address, client: str) -> bool:
    return status(address, client) in {503, None}


def is_cut(held: socket.socket) -> bool:
    try:
        return held.recv(1) == b""
    except ConnectionError:
        return True


def test_an_address_has_so_many_connections_and_others_are_answered_all_the_same(
    served: Address, few: Callable[[float], None]
) -> None:
    few(60.0)
    with ExitStack() as stack:
        hold(served, "127.0.0.1", OF_ADDRESS, stack)
        wait_until(lambda: is_refused(served, "127.0.0.1"), 5, "no more of one address")
        assert is_answered(served, "127.0.0.2")
    wait_until(lambda: is_answered(served, "127.0.0.1"), 5, "room again")


def test_there_are_so_many_connections_and_no_more_threads(served: Address, few: Callable[[float], None]) -> None:
    few(60.0)
    before = threading.active_count()
    with ExitStack() as stack:
        for number in range(10):
            hold(served, f"127.0.0.{10 + number}", OF_ADDRESS, stack)
        wait_until(lambda: is_refused(served, "127.0.0.2"), 5, "no more at all")
        assert threading.active_count() - before <= IN_ALL
    wait_until(lambda: is_answered(served, "127.0.0.2"), 5, "room again")


def test_who_says_nothing_or_a_byte_now_and_then_is_cut_in_time(served: Address, few: Callable[[float], None]) -> None:
    few(0.5)
    before, begin = threading.active_count(), time.monotonic()
    with ExitStack() as stack:
        silent, dripping = hold(served, "127.0.0.1", 2, stack)
        dripping.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
        dripping.settimeout(0.05)

        def drips_in_vain() -> bool:
            try:
                dripping.sendall(b"x")
                return dripping.recv(1) == b""
            except TimeoutError:
                return False
            except ConnectionError:
                return True

        wait_until(drips_in_vain, 5, "the end of what drips")
        assert is_cut(silent)
        assert time.monotonic() - begin >= 0.4
        wait_until(lambda: threading.active_count() == before, 5, "the end of their threads")
    assert is_answered(served, "127.0.0.1")


def test_an_agent_that_finds_no_room_comes_again(few: Callable[[float], None]) -> None:
    few(60.0)
    cluster = Cluster(hosts=2)
    report = Host(cluster, "127.0.0.2").make_heartbeat()
    with serve_coordinator(cluster.coordinator, Address("127.0.0.1", 0), TOKEN) as address:
        remote = RemoteCoordinator(address, TOKEN)
        with ExitStack() as stack:
            hold(address, "127.0.0.1", OF_ADDRESS, stack)
            wait_until(lambda: is_refused(address, "127.0.0.1"), 5, "no more of one address")
            with pytest.raises(CoordinatorUnreachable):
                remote.send_heartbeat(report)
        wait_until(lambda: is_answered(address, "127.0.0.1"), 5, "room again")
        assert remote.send_heartbeat(report).action == "wait"
