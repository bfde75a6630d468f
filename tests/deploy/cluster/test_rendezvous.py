"""The rendezvous for Horovod: its store over HTTP, and the environment of a worker."""

import http.client
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from crossfade.base.errors import ClusterError
from crossfade.deploy.cluster import rendezvous
from crossfade.deploy.cluster.rendezvous import Rendezvous, serve_rendezvous
from crossfade.deploy.cluster.role_environment import interface_of
from crossfade.deploy.topology import Address

WORKERS = 2


@pytest.fixture
def rendezvous_server() -> Iterator[Rendezvous]:
    with serve_rendezvous("127.0.0.1", WORKERS) as rendezvous_server:
        yield rendezvous_server


def ask(where: str, method: str, key: str, body: bytes = b"") -> tuple[int, bytes]:
    """Send a request as Horovod does, which takes ``where`` for a host: http://WHERE:PORT/KEY."""
    address = Address.parse(where.partition("/")[0], "a test")
    connection = http.client.HTTPConnection(address.host, address.port, timeout=60)
    try:
        connection.request(method, f"/{where.partition('/')[2]}:{address.port}/{key}", body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_stored_value_is_found_until_deleted(rendezvous_server: Rendezvous) -> None:
    address = rendezvous_server.new_generation()
    assert ask(address, "GET", "global/0") == (404, b"")
    assert ask(address, "PUT", "global/0", b"\0address\xff") == (200, b"")
    assert ask(address, "GET", "global/0") == (200, b"\0address\xff")
    assert ask(address, "GET", "cross_0/0")[0] == 404
    assert ask(address, "PUT", "global/0", b"another") == (200, b"")
    assert ask(address, "GET", "global/0") == (200, b"another")
    assert ask(address, "DELETE", "global/0") == (200, b"")
    assert ask(address, "GET", "global/0") == (404, b"")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_new_generation_is_empty_and_rejects_the_earlier_secret(rendezvous_server: Rendezvous, method: str) -> None:
    before = rendezvous_server.new_generation()
    assert ask(before, "PUT", "global/0", b"address") == (200, b"")
    now = rendezvous_server.new_generation()
    assert ask(now, "GET", "global/0") == (404, b"")
    assert ask(before, method, "global/0", b"address"[: 7 * (method == "PUT")]) == (403, b"")
    assert ask(now.partition("/")[0] + "/", method, "global/0") == (403, b"")
    assert ask(now, "GET", "global/0") == (404, b"")


def test_keys_and_values_are_bounded(rendezvous_server: Rendezvous) -> None:
    address = rendezvous_server.new_generation()
    longest = rendezvous.VALUE_BYTES + WORKERS * rendezvous.VALUE_BYTES_PER_WORKER
    assert ask(address, "PUT", "global/0", bytes(longest)) == (200, b"")
    assert ask(address, "PUT", "global/1", bytes(longest + 1))[0] == 413
    assert ask(address, "GET", "k" * (rendezvous.MAX_KEY_BYTES + 1))[0] == 414
    for number in range(1, WORKERS * rendezvous.KEYS_PER_WORKER):
        assert ask(address, "PUT", f"global/{number}", b"address") == (200, b"")
    assert ask(address, "PUT", "global/one-more", b"address")[0] == 507
    assert ask(address, "PUT", "global/0", b"again") == (200, b"")


@pytest.mark.parametrize(("length", "status"), [("", 411), ("-1", 411), ("much", 411), ("9" * 5000, 413)])
def test_value_of_no_valid_length_is_rejected(rendezvous_server: Rendezvous, length: str, status: int) -> None:
    where, _, scope = rendezvous_server.new_generation().partition("/")
    address = Address.parse(where, "rendezvous")
    key = f"/{scope}:{address.port}/global/0"
    with closing(http.client.HTTPConnection(address.host, address.port, timeout=10)) as connection:
        connection.putrequest("PUT", key)
        connection.putheader("Content-Length", length)
        connection.endheaders()
        assert connection.getresponse().status == status


def test_interrupted_request_stores_nothing(rendezvous_server: Rendezvous) -> None:
    address = rendezvous_server.new_generation()
    host, port = address.partition("/")[0].split(":")
    path = f"/{address.partition('/')[2]}:{port}/global/0"
    with socket.create_connection((host, int(port)), 5) as connection:
        connection.sendall(f"PUT {path} HTTP/1.1\r\nContent-Length: 9\r\n\r\nhalf".encode())
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    assert ask(address, "GET", "global/0") == (404, b"")


def test_address_without_interface_is_rejected() -> None:
    with pytest.raises(ClusterError, match=r"no network interface of this host has the address 192\.0\.2\.1"):
        interface_of("192.0.2.1")  # reserved for documentation: RFC 5737
