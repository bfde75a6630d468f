"""The coordinator over HTTP, for the agents of other hosts: the server and the client.

    POST /v1/heartbeat   an agent's heartbeat; the answer is the desired state of its host

Both are JSON. The header ``Authorization: Bearer TOKEN`` is required. Nothing listens unless the job names an address.
The token crosses the network unencrypted: use a network that you trust, or a tunnel.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path

from pydantic import ValidationError

from crossfade.base.errors import ClusterError, InputError
from crossfade.base.validation import format_validation_error
from crossfade.deploy import access
from crossfade.deploy.cluster.agent import CoordinatorUnreachable
from crossfade.deploy.cluster.coordinator import Coordinator
from crossfade.deploy.cluster.messages import DesiredState, Heartbeat
from crossfade.deploy.topology import TOKEN_FILE_VARIABLE, TOKEN_VARIABLE, Address
from crossfade.trainer.monitoring.bounded_server import BoundedHandler, BoundedServer

HEARTBEAT_PATH = "/v1/heartbeat"
MAX_BODY_BYTES = 4 << 20
REQUEST_TIMEOUT_SECONDS = 2.0
"""Timeout of an agent's request. With the agent's own lease it is less than the coordinator's lease."""


def read_token(needed_by: str) -> str:
    """Return the token from the environment, or from the file that it names; ``needed_by`` requires it.

    Raises:
        InputError: there is none, or it can be guessed or cannot be sent.
    """
    file = None if os.environ.get(TOKEN_VARIABLE) else os.environ.get(TOKEN_FILE_VARIABLE)
    token = access.read_token(TOKEN_VARIABLE, Path(file) if file else None, TOKEN_FILE_VARIABLE)
    if token is None:
        raise InputError(
            f"{needed_by} needs the environment variable {TOKEN_VARIABLE}, or {TOKEN_FILE_VARIABLE} with the name of a "
            f"file; set it to the same secret on all hosts, as made by: export {TOKEN_VARIABLE}=$(openssl rand -hex 32)"
        )
    return token


_logger = logging.getLogger(__name__)


class _Handler(BoundedHandler):
    server: _Server

    def do_POST(self) -> None:
        """Answer a heartbeat with the desired state."""
        length = self.content_length(MAX_BODY_BYTES)
        try:
            status, body = self._answer_to(length)
        except Exception as error:  # an internal error: the agent gets it as an answer, and tries again
            _logger.exception("POST %s failed", self.path)
            status, body = HTTPStatus.INTERNAL_SERVER_ERROR, _error(f"{type(error).__name__}: {error}")
        self.answer(status, body.encode(), "application/json")
        if status != HTTPStatus.OK:
            self._drain(min(length or 0, MAX_BODY_BYTES))

    def _answer_to(self, length: int | None) -> tuple[HTTPStatus, str]:
        """Return the status and body of the answer to a request whose body has ``length`` bytes."""
        if not self.server.access.has_token(self.headers.get("Authorization")):
            return HTTPStatus.UNAUTHORIZED, _error(f"the token is missing or wrong; see {TOKEN_VARIABLE}")
        self.admit()
        if self.path != HEARTBEAT_PATH:
            return HTTPStatus.NOT_FOUND, _error(f"there is no POST {self.path[:80]}")
        if length is None:
            return HTTPStatus.LENGTH_REQUIRED, _error("Content-Length is missing")
        if length > MAX_BODY_BYTES:
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, _error(f"more than {MAX_BODY_BYTES} bytes")
        try:
            heartbeat = Heartbeat.model_validate_json(self.rfile.read(length))
        except ValidationError as error:
            problem = format_validation_error(error, root="body")
            return HTTPStatus.BAD_REQUEST, _error(f"not a heartbeat: {problem}")
        desired = self.server.coordinator.handle_heartbeat(heartbeat, str(self.client_address[0]))
        return HTTPStatus.OK, desired.model_dump_json()

    def _drain(self, left: int) -> None:
        """Read the rest of the body: closing before that could break the connection before the answer arrives."""
        with suppress(OSError):
            while left > 0 and (data := self.rfile.read(min(left, 1 << 16))):
                left -= len(data)


def _error(message: str) -> str:
    return json.dumps({"error": message})


class _Server(BoundedServer):
    def __init__(self, listen: Address, coordinator: Coordinator, token: str) -> None:
        self.coordinator, self.access = coordinator, access.Access(token=token)
        super().__init__(listen.host, listen.port, _Handler)


@contextmanager
def serve_coordinator(coordinator: Coordinator, listen: Address, token: str) -> Iterator[Address]:
    """Serve ``coordinator`` at ``listen`` while the context lasts; yield the address, with the port if that was 0.

    Raises:
        InputError: nothing can listen there.
    """
    try:
        server = _Server(listen, coordinator, token)
    except OSError as error:
        raise InputError(
            f"cluster.coordinator_address: cannot listen on {listen}: {error.strerror or error}"
        ) from error
    with server.running():
        yield Address(listen.host, server.server_port)


REQUEST_DEADLINE_SECONDS = 2 * REQUEST_TIMEOUT_SECONDS
"""Maximum duration of a request as a whole: that of its steps, each with its own timeout, has no bound."""


class RemoteCoordinator:
    """The client of a coordinator on another host."""

    def __init__(self, address: Address, token: str) -> None:
        """Connect to ``address`` with ``token``, with a new connection for each heartbeat."""
        self._address, self._token = address, token
        self._request: Future[tuple[int, bytes]] | None = None

    def send_heartbeat(self, heartbeat: Heartbeat) -> DesiredState:
        """Send ``heartbeat`` and return the answer, within a few seconds even if DNS or the network is silent.

        Raises:
            CoordinatorUnreachable: there was no answer; try again.
            InputError: the coordinator rejects the token.
            ClusterError: the server is not a coordinator, or one of another version.
        """
        try:
            status, body = self._exchange(heartbeat.model_dump_json().encode())
        except (OSError, http.client.HTTPException) as error:
            reason = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
            raise CoordinatorUnreachable(f"the coordinator at {self._address} cannot be reached: {reason}") from error
        if status == HTTPStatus.UNAUTHORIZED:
            raise InputError(f"the coordinator at {self._address} rejects the token in {TOKEN_VARIABLE}")
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            reason = body[:200].decode(errors="replace")
            raise CoordinatorUnreachable(f"the coordinator at {self._address} answers with error {status}: {reason}")
        try:
            if status != HTTPStatus.OK:
                raise ValueError(f"{status} {body[:200].decode(errors='replace')}")
            return DesiredState.model_validate_json(body)
        except ValueError as error:
            raise ClusterError(
                f"{self._address}: not a coordinator of this version: {' '.join(str(error).split())}"
            ) from error

    def _exchange(self, body: bytes) -> tuple[int, bytes]:
        """Post ``body`` and return status and body of the answer.

        In a thread, since the agent must not wait for DNS, whose timeouts exceed its lease. An answer that comes too
        late counts as lost. There is one request at a time, however long DNS takes.

        Raises:
            TimeoutError: there was no answer by the deadline.
            OSError, HTTPException: the request failed.
        """
        if self._request is None or self._request.done():
            self._request = Future()
            threading.Thread(target=self._post, args=(body, self._request), daemon=True).start()
            return self._request.result(REQUEST_DEADLINE_SECONDS)
        raise TimeoutError

    def _post(self, body: bytes, result: Future[tuple[int, bytes]]) -> None:
        # http.client, since urllib would send the token to a proxy that the environment names.
        connection = http.client.HTTPConnection(self._address.host, self._address.port, timeout=REQUEST_TIMEOUT_SECONDS)
        try:
            headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
            connection.request("POST", HEARTBEAT_PATH, body, headers)
            response = connection.getresponse()
            result.set_result((response.status, response.read(MAX_BODY_BYTES)))
        except Exception as error:
            result.set_exception(error)
        finally:
            connection.close()
