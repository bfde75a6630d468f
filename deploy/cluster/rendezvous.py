"""A rendezvous: a small key-value store over HTTP where the workers of a generation find each other.

    PUT     /SECRET:PORT/SCOPE/KEY   store the body
    GET     /SECRET:PORT/SCOPE/KEY   return the stored bytes, or 404 as long as there are none
    DELETE  /SECRET:PORT/SCOPE/KEY   remove them

Workers that hold the tables (``kvstore/sharded/``) use it, and Horovod's Gloo, whose protocol this is
(``horovod/common/gloo/http_store.cc``). Horovod's client sends no header of our choosing, but takes HOST:PORT/SECRET
for a host and appends the port and the path. So a client without the secret, which is new in each generation, gets 403,
and so does a worker left over from an earlier generation. Values are the workers' addresses; nothing here parses them.
"""

from __future__ import annotations

import hmac
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from crossfade.base.errors import ClusterError
from crossfade.deploy.topology import Address
from crossfade.trainer.monitoring.bounded_server import BoundedHandler, BoundedServer, Limits

MAX_KEY_BYTES = 256
KEYS_PER_WORKER = 32
"""Horovod 0.28.1 stores twelve: a host name and addresses for each of six groups of workers. A worker that
holds tables stores one."""
VALUE_BYTES, VALUE_BYTES_PER_WORKER = 1024, 256
"""A worker of Horovod stores an address, of some 140 bytes, for each of the others in one value; one that holds tables
stores some 200 bytes."""


class _Handler(BoundedHandler):
    server: _Server
    values: dict[str, bytes]

    def do_GET(self) -> None:
        """Return the value of a key."""
        if (key := self._key()) is not None:
            found = self.values.get(key)
            self.answer(HTTPStatus.OK if found is not None else HTTPStatus.NOT_FOUND, found or b"")

    def do_PUT(self) -> None:
        """Store a value."""
        if (key := self._key()) is None:
            return
        length = self.content_length(self.server.max_value_bytes)
        if length is None:
            self.answer(HTTPStatus.LENGTH_REQUIRED, b"")
        elif length > self.server.max_value_bytes:
            self.answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, b"")
        else:
            value = self.rfile.read(length)
            if len(value) < length:
                return  # the connection broke off
            stored = self.server.store(self.values, key, value)
            self.answer(HTTPStatus.OK if stored else HTTPStatus.INSUFFICIENT_STORAGE, b"")

    def do_DELETE(self) -> None:
        """Remove a value."""
        if (key := self._key()) is not None:
            self.values.pop(key, None)
            self.answer(HTTPStatus.OK, b"")

    def _key(self) -> str | None:
        """Return the requested scope and key; None if the request was rejected."""
        secret, self.values = self.server.generation
        prefix, key = f"/{secret}:{self.server.server_port}/", None
        given = self.path.encode("utf-8", errors="replace")
        if not hmac.compare_digest(given[: len(prefix)], prefix.encode()):
            self.answer(HTTPStatus.FORBIDDEN, b"")
        elif len(given) > len(prefix) + MAX_KEY_BYTES:
            self.answer(HTTPStatus.REQUEST_URI_TOO_LONG, b"")
        else:
            self.admit()
            key = self.path[len(prefix) :]
        return key


class _Server(BoundedServer):
    # Each worker polls 100 times a second until the last one has arrived.
    limits = Limits(members=256)

    def __init__(self, host: str, workers: int) -> None:
        self.max_keys = KEYS_PER_WORKER * workers
        self.max_value_bytes = VALUE_BYTES + VALUE_BYTES_PER_WORKER * workers
        self._store_lock = threading.Lock()
        self.new_generation()
        super().__init__(host, 0, _Handler)

    def new_generation(self) -> None:
        """Start another generation, with an empty store."""
        # One assignment: a late request with the previous secret stores into the previous values.
        self.generation: tuple[str, dict[str, bytes]] = secrets.token_hex(16), {}

    def store(self, values: dict[str, bytes], key: str, value: bytes) -> bool:
        """Store ``value`` in ``values``; return whether there was room."""
        with self._store_lock:
            if key not in values and len(values) >= self.max_keys:
                return False
            values[key] = value
            return True


class Rendezvous:
    """A running rendezvous."""

    def __init__(self, server: _Server, host: str) -> None:
        """Control ``server``, which listens on ``host``."""
        self._server, self._host = server, host

    def new_generation(self) -> str:
        """Start another generation; return where its workers meet, as HOST:PORT/SECRET."""
        self._server.new_generation()
        return f"{Address(self._host, self._server.server_port)}/{self._server.generation[0]}"


@contextmanager
def serve_rendezvous(host: str, workers: int) -> Iterator[Rendezvous]:
    """Serve a rendezvous for ``workers`` workers at a free port of ``host`` while the context lasts.

    Raises:
        ClusterError: nothing can listen there.
    """
    try:
        server = _Server(host, workers)
    except OSError as error:
        raise ClusterError(f"the workers' rendezvous cannot listen on {host}: {error.strerror or error}") from error
    with server.running():
        yield Rendezvous(server, host)
