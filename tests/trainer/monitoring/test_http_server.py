"""Bounded servers under clients that hold connections open, send little, or send no requests, with real sockets."""

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import pytest
from scripted_agents import Cluster, Host
from strangers import connect, idle_strangers, is_closed, send_garbage, send_slowly_until_closed
from waiting import wait_until

from crossfade.deploy.cluster.agent import CoordinatorUnreachable
from crossfade.deploy.cluster.coordinator_http import RemoteCoordinator, serve_coordinator
from crossfade.deploy.cluster.messages import DesiredState
from crossfade.deploy.cluster.rendezvous import serve_rendezvous
from crossfade.deploy.topology import Address
from crossfade.trainer.monitoring.bounded_server import MAX_HEAD_BYTES, BoundedServer, Limits
from crossfade.trainer.monitoring.http import serve_metrics
from crossfade.trainer.monitoring.registry import ProcessMetrics

TOKEN = "a-secret-of-this-test-alone"
STRANGERS, MEMBERS = 4, 3


@contextmanager
def coordinator() -> Iterator[Address]:
    with serve_coordinator(Cluster(hosts=2).coordinator, Address("127.0.0.1", 0), TOKEN) as address:
        yield address


@contextmanager
def metrics() -> Iterator[Address]:
    with serve_metrics(ProcessMetrics("plays", "worker"), 0, None, "127.0.0.1") as endpoint:
        yield Address.parse(str(endpoint.address), "metrics")


@contextmanager
def rendezvous() -> Iterator[Address]:
    with serve_rendezvous("127.0.0.1") as meeting:
        yield Address.parse(meeting.new_generation().partition("/")[0], "rendezvous")


Serve = Callable[[], AbstractContextManager[Address]]


every_server = pytest.mark.parametrize("serve", [coordinator, metrics, rendezvous])


@pytest.fixture
def serve() -> Serve:
    """Return a server with the fewest additions to the bounded one."""
    return metrics


def limit(monkeypatch: pytest.MonkeyPatch, limits: Limits) -> None:
    for server in (BoundedServer, *BoundedServer.__subclasses__()):
        monkeypatch.setattr(server, "limits", limits)


def status(address: Address, client: str = "127.0.0.1", path: str = "/healthz", **headers: str) -> int | None:
    """Return the status of an answer; None if the connection was broken off."""
    connection = http.client.HTTPConnection(address.host, address.port, timeout=5, source_address=(client, 0))
    try:
        connection.request("GET", path, headers=headers)
        return connection.getresponse().status
    except (ConnectionError, http.client.BadStatusLine):
        return None
    finally:
        connection.close()


def is_answered(address: Address, client: str = "127.0.0.1") -> bool:
    return status(address, client) in {200, 403, 501}


@pytest.mark.slow
@every_server
def test_300_idle_strangers_keep_no_member_out(serve: Serve) -> None:
    with serve() as address, idle_strangers(address, 300), idle_strangers(address, 300, "127.0.0.2"):
        assert is_answered(address)
        assert is_answered(address, "127.0.0.3")


def test_agent_joins_among_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, Limits(STRANGERS, MEMBERS, 60.0))
    cluster = Cluster(hosts=2)
    with (
        serve_coordinator(cluster.coordinator, Address("127.0.0.1", 0), TOKEN) as address,
        idle_strangers(address, 5 * STRANGERS) as held,
    ):
        desired = RemoteCoordinator(address, TOKEN).send_heartbeat(Host(cluster, "127.0.0.2").make_heartbeat())
        assert desired.action == "wait"
        wait_until(lambda: all(map(is_closed, held[:STRANGERS])), "the end of the oldest strangers")


def test_strangers_take_no_place_of_an_admitted_request(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, Limits(STRANGERS, MEMBERS, 60.0))
    admitted, admit = threading.Event(), BoundedServer.admit
    monkeypatch.setattr(BoundedServer, "admit", lambda server, request: (admit(server, request), admitted.set()))
    with coordinator() as address, connect(address) as member:
        body = Host(Cluster(hosts=2), "127.0.0.2").make_heartbeat().model_dump_json().encode()
        head = f"POST /v1/heartbeat HTTP/1.0\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {len(body)}\r\n\r\n"
        member.sendall(head.encode() + body[:-1])
        wait_until(admitted.is_set, "the admission of the request, whose body is incomplete")
        with idle_strangers(address, 5 * STRANGERS):
            assert is_answered(address)
            member.sendall(body[-1:])
            assert member.recv(1 << 16).startswith(b"HTTP/1.0 200 ")


def test_threads_are_bounded_and_strangers_of_other_hosts_remain(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, Limits(STRANGERS, MEMBERS, 60.0))
    with serve() as address, connect(address, "127.0.0.9") as other:
        before = threading.active_count()
        with ExitStack() as stack:
            for _ in range(5):
                stack.enter_context(idle_strangers(address, STRANGERS))
                assert threading.active_count() - before <= STRANGERS + MEMBERS
            assert is_answered(address, "127.0.0.3")
            assert not is_closed(other)


def test_silent_and_slow_clients_are_disconnected(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, Limits(STRANGERS, MEMBERS, 0.3))
    with serve() as address:
        before = threading.active_count()
        with idle_strangers(address, 1) as [silent]:
            send_slowly_until_closed(address, b"GET /healthz HTTP/1.1\r\nX: ")
            wait_until(lambda: is_closed(silent), "the end of the silent connection")
            wait_until(lambda: threading.active_count() <= before, "the end of their threads")
        assert is_answered(address)


def test_large_headers_are_rejected(serve: Serve) -> None:
    with serve() as address:
        large = {f"X-{number}": "x" * 10_000 for number in range(MAX_HEAD_BYTES // 10_000 + 1)}
        assert status(address, **large) == 431
        assert status(address, path="/" + "x" * MAX_HEAD_BYTES) == 414
        assert is_answered(address)


@pytest.mark.slow
@every_server
def test_garbage_ends_no_server(serve: Serve) -> None:
    with serve() as address:
        before = threading.active_count()
        send_garbage(address, 200)
        assert is_answered(address)
        wait_until(lambda: threading.active_count() <= before, "the end of its threads")


def test_busy_server_answers_503_and_the_agent_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, Limits(1, 1, 60.0))
    cluster, release = Cluster(hosts=2), threading.Event()
    answer = cluster.coordinator.handle_heartbeat

    def answer_later(*arguments: Any) -> DesiredState:
        release.wait()
        return answer(*arguments)

    monkeypatch.setattr(cluster.coordinator, "handle_heartbeat", answer_later)
    heartbeat = Host(cluster, "127.0.0.2").make_heartbeat()
    body = heartbeat.model_dump_json().encode()
    head = f"POST /v1/heartbeat HTTP/1.0\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {len(body)}\r\n\r\n"
    with serve_coordinator(cluster.coordinator, Address("127.0.0.1", 0), TOKEN) as address, ExitStack() as stack:
        remote = RemoteCoordinator(address, TOKEN)
        for _ in range(2):
            waiting = stack.enter_context(connect(address))
            waiting.sendall(head.encode() + body)
        try:
            wait_until(lambda: status(address) in {503, None}, "all threads are busy")
            with pytest.raises(CoordinatorUnreachable):
                remote.send_heartbeat(heartbeat)
        finally:
            release.set()
        wait_until(lambda: is_answered(address), "free threads")
        assert remote.send_heartbeat(heartbeat).action == "wait"
