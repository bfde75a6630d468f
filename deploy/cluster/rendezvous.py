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
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from crossfade.base.errors import ClusterError
from crossfade.deploy.topology import Address
from crossfade.trainer.monitoring.bounded_server import BoundedHandler, BoundedServer, Limits

MAX_KEY_BYTES, MAX_KEYS, MAX_VALUE_BYTES = 256, 1 << 14, 1 << 18
"""A worker of Horovod 0.28.1 stores twelve values, the largest of some 140 bytes for each of the others."""


class _Handler(BoundedHandler):
    server: Rendezvous
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
        length = self.content_length(MAX_VALUE_BYTES)
        if length is None:
            self.answer(HTTPStatus.LENGTH_REQUIRED, b"")
        elif length > MAX_VALUE_BYTES:
            self.answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, b"")
        else:
            value = self.rfile.read(length)
            if len(value) < length:
                return  # the connection broke off
            has_room = len(self.values) < MAX_KEYS
            if has_room:
                self.values[key] = value
            self.answer(HTTPStatus.OK if has_room else HTTPStatus.INSUFFICIENT_STORAGE, b"")

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


class Rendezvous(BoundedServer):
    """A running rendezvous."""

    # Each worker polls 100 times a second until the last one has arrived.
    limits = Limits(members=256)

    def __init__(self, host: str) -> None:
        """Listen at a free port of ``host``."""
        self._host = host
        super().__init__(host, 0, _Handler)
        self.new_generation()

    def new_generation(self) -> str:
        """Start another generation, with an empty store; return where its workers meet, as HOST:PORT/SECRET."""
        # One assignment: a late request with the previous secret stores into the previous values.
        self.generation: tuple[str, dict[str, bytes]] = secrets.token_hex(16), {}
        return f"{Address(self._host, self.server_port)}/{self.generation[0]}"


@contextmanager
def serve_rendezvous(host: str) -> Iterator[Rendezvous]:
    """Serve a rendezvous at a free port of ``host`` while the context lasts.

    Raises:
        ClusterError: nothing can listen there.
    """
    try:
        rendezvous = Rendezvous(host)
    except OSError as error:
        raise ClusterError(f"the workers' rendezvous cannot listen on {host}: {error.strerror or error}") from error
    with rendezvous.running():
        yield rendezvous
