"""The coordinator over HTTP, for the agents of other hosts: the server's side and the agent's.

    POST /v1/report   an agent's report; the answer is its order
    GET  /v1/status   where the job stands, for people and their tools

Both are JSON and need the header ``Authorization: Bearer TOKEN``. Nothing listens unless the job says where. The token
crosses the network as it is: this is for networks that one trusts, or a tunnel.
"""

from __future__ import annotations

import hmac
import http.client
import json
import os
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from pydantic import ValidationError

from deploy.cluster.agent import CoordinatorUnreachable
from deploy.cluster.coordinator import Coordinator
from deploy.cluster.messages import DesiredState, Heartbeat
from deploy.topology import TOKEN_FILE_VARIABLE, TOKEN_VARIABLE, Address
from kvstore.errors import ClusterError, InputError
from kvstore.validation_errors import format_validation_error
from trainer.monitoring.bounded_server import BoundedServer

SHORTEST_TOKEN = 16
MAX_BODY_BYTES = 4 << 20
SERVER_SECONDS = 5.0
"""How long a client may make the server wait for its next bytes."""
REQUEST_SECONDS = 2.0
"""How long an agent waits for an answer; together with an agent's own lease less than the coordinator's."""


def read_token(needed_by: str) -> str:
    """The token of the environment, or of the file that it names, which ``needed_by`` needs.

    Raises:
        InputError: there is none, or it can be guessed or cannot be sent.
    """
    token = os.environ.get(TOKEN_VARIABLE, "") or _token_of_file()
    how = f"set it to the same secret on all hosts, as made by: export {TOKEN_VARIABLE}=$(openssl rand -hex 32)"
    if not token:
        variables = f"{TOKEN_VARIABLE}, or {TOKEN_FILE_VARIABLE} with the name of a file"
        raise InputError(f"{needed_by} needs the environment variable {variables}; {how}")
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise InputError(f"{TOKEN_VARIABLE} must be {SHORTEST_TOKEN} or more printable ASCII characters; {how}")
    return token


def _token_of_file() -> str:
    name = os.environ.get(TOKEN_FILE_VARIABLE)
    if not name:
        return ""
    try:
        return Path(name).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{TOKEN_FILE_VARIABLE}: {name} cannot be read as a token: {error}") from error


class _Refused(Exception):  # noqa: N818 - an answer, not a fault of ours
    """A request that gets an error for an answer."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    """One connection, in a thread of its own."""

    timeout = SERVER_SECONDS
    server: _Server
    server_version, sys_version = "crossfade", ""

    def do_GET(self) -> None:
        """Answer /v1/status."""
        self._answer("/v1/status", lambda: json.dumps(self.server.coordinator.status()))

    def do_POST(self) -> None:
        """Answer /v1/report."""
        self._answer("/v1/report", lambda: self.server.coordinator.report(self._report()).model_dump_json())

    def _answer(self, path: str, make: Callable[[], str]) -> None:
        try:
            self._check_token()
            if self.path != path:
                raise _Refused(HTTPStatus.NOT_FOUND, f"there is no {self.command} {self.path[:80]}")
            status, body = HTTPStatus.OK, make()
        except _Refused as refused:
            status, body = refused.status, json.dumps({"error": str(refused)})
        except Exception as error:  # a fault of ours, which the agent is told and comes again
            traceback.print_exc()
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            body = json.dumps({"error": f"{type(error).__name__}: {error}"})
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())
        if status != HTTPStatus.OK:
            self._drain()

    def _drain(self) -> None:
        """Read what was not: closing before that would break the connection before the answer has arrived."""
        length = self.headers.get("Content-Length", "")
        left = min(int(length), MAX_BODY_BYTES) if length.isdecimal() and self.command == "POST" else 0
        with suppress(OSError):
            while left > 0 and (data := self.rfile.read(min(left, 1 << 16))):
                left -= len(data)

    def _check_token(self) -> None:
        given = self.headers.get("Authorization", "").encode("utf-8", errors="replace")
        if not hmac.compare_digest(given, b"Bearer " + self.server.token.encode()):
            raise _Refused(HTTPStatus.UNAUTHORIZED, f"the token is missing or wrong; see {TOKEN_VARIABLE}")

    def _report(self) -> Heartbeat:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "Content-Length is missing")
        if int(length) > MAX_BODY_BYTES:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {MAX_BODY_BYTES} bytes")
        try:
            return Heartbeat.model_validate_json(self._body(int(length)))
        except ValidationError as error:
            problem = format_validation_error(error, root="body")
            raise _Refused(HTTPStatus.BAD_REQUEST, f"not a report: {problem}") from None

    def _body(self, length: int) -> bytes:
        try:
            return self.rfile.read(length)
        except OSError as error:
            raise _Refused(HTTPStatus.REQUEST_TIMEOUT, f"the request broke off: {error}") from error

    def log_message(self, *_: object) -> None:
        """Say nothing: the coordinator's events say what matters."""


class _Server(BoundedServer):
    def __init__(self, listen: Address, coordinator: Coordinator, token: str) -> None:
        self.coordinator, self.token = coordinator, token
        super().__init__(listen.host, listen.port, _Handler)


@contextmanager
def serving(coordinator: Coordinator, listen: Address, token: str) -> Iterator[Address]:
    """Answer for ``coordinator`` at ``listen`` while the context lasts; gives the address, with the port if that was 0.

    Raises:
        InputError: nothing can listen there.
    """
    try:
        server = _Server(listen, coordinator, token)
    except OSError as error:
        raise InputError(
            f"cluster.coordinator_address: cannot listen on {listen}: {error.strerror or error}"
        ) from error
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield Address(listen.host, server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class RemoteCoordinator:
    """The coordinator of a job, as an agent on another host reaches it."""

    def __init__(self, address: Address, token: str) -> None:
        """Reach it at ``address``."""
        self._address, self._token = address, token

    def report(self, report: Heartbeat) -> DesiredState:
        """Send ``report``; gives the order.

        Raises:
            Unreachable: there is no answer just now.
            InputError: the token is not the coordinator's.
            ClusterError: what answers is no coordinator, or one of another version.
        """
        # http.client, since urllib would send the token to a proxy that the environment names.
        connection = http.client.HTTPConnection(self._address.host, self._address.port, timeout=REQUEST_SECONDS)
        try:
            headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
            connection.request("POST", "/v1/report", report.model_dump_json().encode(), headers)
            response = connection.getresponse()
            body = response.read(MAX_BODY_BYTES)
        except (OSError, http.client.HTTPException) as error:
            reason = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
            raise CoordinatorUnreachable(f"the coordinator at {self._address} cannot be reached: {reason}") from error
        finally:
            connection.close()
        if response.status == HTTPStatus.UNAUTHORIZED:
            raise InputError(f"the coordinator at {self._address} refuses the token in {TOKEN_VARIABLE}")
        if response.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            said = body[:200].decode(errors="replace")
            raise CoordinatorUnreachable(
                f"the coordinator at {self._address} answers with error {response.status}: {said}"
            )
        try:
            if response.status != HTTPStatus.OK:
                raise ValueError(f"{response.status} {body[:200].decode(errors='replace')}")
            return DesiredState.model_validate_json(body)
        except ValueError as error:
            raise ClusterError(
                f"what answers at {self._address} is not a coordinator of this version: {' '.join(str(error).split())}"
            ) from error
