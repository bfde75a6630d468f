"""EC2's instance metadata service on loopback: an HTTP server that requires a token, as EC2's does.

with running_metadata() as metadata:
    started("train", job, "--spot", variables=metadata.variables)
    metadata.interrupt()                          # two minutes' notice
    metadata.expire_tokens()                      # they expire
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MAX_TOKEN_SECONDS = 21600
_PREFIX = "/latest/meta-data/"


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_PUT(self) -> None:
        """Issue a token."""
        seconds = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
        is_valid = seconds.isdecimal() and 1 <= int(seconds) <= MAX_TOKEN_SECONDS
        if self.path == "/latest/api/token" and is_valid:
            self._answer(HTTPStatus.OK, self.server.metadata.issue_token())
        else:
            self._answer(HTTPStatus.BAD_REQUEST, "")

    def do_GET(self) -> None:
        """Return a value, if the request has a valid token."""
        metadata = self.server.metadata
        if self.headers.get("X-aws-ec2-metadata-token") not in metadata.tokens:
            self._answer(HTTPStatus.UNAUTHORIZED, "")
            return
        name = self.path.removeprefix(_PREFIX)
        metadata.requested.append(name)
        value = metadata.values.get(name.rstrip("/")) if self.path.startswith(_PREFIX) else None
        self._answer(*((HTTPStatus.NOT_FOUND, "not here") if value is None else (HTTPStatus.OK, value)))

    def _answer(self, status: HTTPStatus, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Log nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, metadata: Metadata) -> None:
        self.metadata = metadata
        super().__init__(("127.0.0.1", 0), _Handler)


class Metadata:
    """The metadata of one instance: ``values`` by their names below latest/meta-data/."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.requested: list[str] = []
        self.tokens: set[str] = set()
        self.endpoint = ""

    @property
    def variables(self) -> dict[str, str]:
        """Return the environment of a process on the instance."""
        return {"AWS_EC2_METADATA_SERVICE_ENDPOINT": self.endpoint}

    def issue_token(self) -> str:
        """Issue a new token."""
        token = secrets.token_urlsafe()
        self.tokens.add(token)
        return token

    def expire_tokens(self) -> None:
        """Invalidate all tokens."""
        self.tokens.clear()

    def interrupt(self, action: str = "terminate", when: str = "2017-09-18T08:22:00Z") -> None:
        """Publish an interruption notice, as "instance-action" of the EC2 user guide."""
        self.values["spot/instance-action"] = json.dumps({"action": action, "time": when})


@contextmanager
def running_metadata() -> Iterator[Metadata]:
    """Run a metadata service without notices."""
    metadata = Metadata()
    server = _Server(metadata)
    metadata.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield metadata
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
