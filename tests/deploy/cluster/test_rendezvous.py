"""The rendezvous of workers: its store over HTTP, and the network interface of a worker."""

from collections.abc import Iterator

import pytest
import requests

from crossfade.deploy.cluster import rendezvous
from crossfade.deploy.cluster.rendezvous import Rendezvous, serve_rendezvous
from crossfade.deploy.topology import Address


@pytest.fixture
def rendezvous_server() -> Iterator[Rendezvous]:
    with serve_rendezvous("127.0.0.1") as rendezvous_server:
        yield rendezvous_server


def ask(where: str, method: str, key: str, body: bytes = b"") -> tuple[int, bytes]:
    """Send a request as Horovod does, which takes ``where`` for a host: http://WHERE:PORT/KEY."""
    address = Address.parse(where.partition("/")[0], "a test")
    path = f"{where.partition('/')[2]}:{address.port}/{key}"
    response = requests.request(method, f"http://{address}/{path}", data=body, timeout=60)
    return response.status_code, response.content


def test_value_is_found_until_it_is_deleted_or_another_generation_begins(rendezvous_server: Rendezvous) -> None:
    before = rendezvous_server.new_generation()
    assert ask(before, "GET", "global/0") == (404, b"")
    for value in (b"\0address\xff", b"another"):
        assert ask(before, "PUT", "global/0", value) == (200, b"")
        assert ask(before, "GET", "global/0") == (200, value)
    assert ask(before, "GET", "cross_0/0")[0] == 404
    assert ask(before, "DELETE", "global/0") == (200, b"")
    assert ask(before, "GET", "global/0") == (404, b"")
    assert ask(before, "PUT", "global/0", b"address") == (200, b"")
    now = rendezvous_server.new_generation()
    for method in ("GET", "PUT", "DELETE"):
        assert ask(now, "GET", "global/0") == (404, b"")
        assert ask(before, method, "global/0", b"address"[: 7 * (method == "PUT")]) == (403, b"")
        assert ask(now.partition("/")[0] + "/", method, "global/0") == (403, b"")


def test_keys_and_values_are_bounded(rendezvous_server: Rendezvous, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "MAX_KEYS", 2)
    address = rendezvous_server.new_generation()
    assert ask(address, "PUT", "global/0", bytes(rendezvous.MAX_VALUE_BYTES)) == (200, b"")
    assert ask(address, "PUT", "global/1", bytes(rendezvous.MAX_VALUE_BYTES + 1))[0] == 413
    assert ask(address, "GET", "k" * (rendezvous.MAX_KEY_BYTES + 1))[0] == 414
    assert ask(address, "PUT", "global/1", b"address") == (200, b"")
    assert ask(address, "PUT", "global/2", b"address")[0] == 507
