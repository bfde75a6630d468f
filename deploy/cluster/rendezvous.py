"""Where the workers of a generation find each other for Horovod: a small store of what each says of itself.

    PUT     /SECRET:PORT/SCOPE/KEY   leave bytes there
    GET     /SECRET:PORT/SCOPE/KEY   what was left, or 404 as long as nothing was
    DELETE  /SECRET:PORT/SCOPE/KEY   it is not needed any more

That is what Horovod's Gloo asks for (``horovod/common/gloo/http_store.cc``). Its client sends no header of our
choosing, but takes HOST:PORT/SECRET for a host and writes the port and the path behind it: so whoever does not know the
secret, which is a new one in each generation, is told 403, and so is a worker that an earlier one has left behind.
Values are Gloo's own addresses, and nobody here looks into them.
"""

from __future__ import annotations

import hmac
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler

from deploy.topology import Address
from kvstore.errors import ClusterError
from trainer.monitoring.bounded_server import BoundedServer, Limits

MAX_KEY = 256
KEYS_OF_WORKER = 32
"""Horovod 0.28.1 leaves twelve: a host name and addresses for each of six groups of workers."""
VALUE_BYTES, VALUE_BYTES_OF_WORKER = 1024, 256
"""A worker leaves an address, of some 140 bytes, for each of the others in one value."""


class _Handler(BaseHTTPRequestHandler):
    """One request, in a thread of its own."""

    timeout = 5.0
    server: _Server
    values: dict[str, bytes]
    server_version, sys_version = "crossfade", ""

    def do_GET(self) -> None:
        """Give what was left there."""
        if (key := self._key()) is not None:
            found = self.values.get(key)
            self._answer(HTTPStatus.OK if found is not None else HTTPStatus.NOT_FOUND, found or b"")

    def do_PUT(self) -> None:
        """Leave something there."""
        if (key := self._key()) is None:
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            self._answer(HTTPStatus.LENGTH_REQUIRED)
        elif int(length) > self.server.most_bytes:
            self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        else:
            value = self.rfile.read(int(length))
            if len(value) < int(length):
                return  # it broke off
            kept = self.server.keep(self.values, key, value)
            self._answer(HTTPStatus.OK if kept else HTTPStatus.INSUFFICIENT_STORAGE)

    def do_DELETE(self) -> None:
        """Forget what was left there."""
        if (key := self._key()) is not None:
            self.values.pop(key, None)
            self._answer(HTTPStatus.OK)

    def _key(self) -> str | None:
        """The scope and key that are asked for; None if that was refused."""
        secret, self.values = self.server.generation
        prefix, key = f"/{secret}:{self.server.server_port}/", None
        given = self.path.encode("utf-8", errors="replace")
        if not hmac.compare_digest(given[: len(prefix)], prefix.encode()):
            self._answer(HTTPStatus.FORBIDDEN)
        elif len(given) > len(prefix) + MAX_KEY:
            self._answer(HTTPStatus.REQUEST_URI_TOO_LONG)
        else:
            key = self.path[len(prefix) :]
        return key

    def _answer(self, status: HTTPStatus, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: how the workers fare they say themselves."""


class _Server(BoundedServer):
    # Each worker asks 100 times a second until the last one has come.
    limits = Limits(connections=1024, connections_of_address=512)

    def __init__(self, host: str, workers: int) -> None:
        self.most_keys = KEYS_OF_WORKER * workers
        self.most_bytes = VALUE_BYTES + VALUE_BYTES_OF_WORKER * workers
        self._keeping = threading.Lock()
        self.new_generation()
        super().__init__(host, 0, _Handler)

    def new_generation(self) -> None:
        """Begin another generation, with nothing kept."""
        # One assignment: what comes late with the secret of the one before lands in its values.
        self.generation: tuple[str, dict[str, bytes]] = secrets.token_hex(16), {}

    def keep(self, values: dict[str, bytes], key: str, value: bytes) -> bool:
        """Keep ``value`` among ``values``, if there is room."""
        with self._keeping:
            if key not in values and len(values) >= self.most_keys:
                return False
            values[key] = value
            return True


class Rendezvous:
    """The store, as its owner has it."""

    def __init__(self, server: _Server, host: str) -> None:
        """What ``server`` keeps, which listens on ``host``."""
        self._server, self._host = server, host

    def new_generation(self) -> str:
        """Forget everything, for another generation; gives where its workers meet, as HOST:PORT/SECRET."""
        self._server.new_generation()
        return f"{Address(self._host, self._server.server_port)}/{self._server.generation[0]}"


@contextmanager
def serve_rendezvous(host: str, workers: int) -> Iterator[Rendezvous]:
    """Serve a rendezvous of ``workers`` at a free port of ``host`` while the context lasts.

    Raises:
        ClusterError: nothing can listen there.
    """
    try:
        server = _Server(host, workers)
    except OSError as error:
        raise ClusterError(f"the workers' rendezvous cannot listen on {host}: {error.strerror or error}") from error
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield Rendezvous(server, host)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
