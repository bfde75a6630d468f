"""What surrounds every request: who may send it, a limit of its body, and metrics."""

from __future__ import annotations

import time

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crossfade.deploy.access import SECURITY_HEADERS, Access
from crossfade.deploy.serving.metrics import record_request
from crossfade.deploy.serving.protocol import ADMIT

MAX_BODY_BYTES = 8 << 20
_HEALTH = ("/healthz", "/ping")
_DOCUMENTATION = ("/docs", "/openapi.json", "/static-offline-docs/")
"""Paths that can be read without a token: they have nothing of the model."""


def _headers(policy: str) -> list[tuple[bytes, bytes]]:
    headers = {**SECURITY_HEADERS, "Content-Security-Policy": policy}
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


_HEADERS = _headers("default-src 'none'; frame-ancestors 'none'")
_DOCUMENTATION_HEADERS = _headers(
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
"""The page of /docs has an inline script, but nothing that a client or a model could choose."""
_UNKNOWN_ROUTE = "other"
_NO_RESPONSE = 500


class RestrictedAccess:
    """Answers only requests that ``access`` allows, before their bodies are read; adds the security headers."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_documentation = scope["path"].startswith(_DOCUMENTATION)
        added = _DOCUMENTATION_HEADERS if is_documentation else _HEADERS

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *added]
            await send(message)

        rejection = self._reject(scope, is_documentation)
        await (rejection or self._app)(scope, receive, send_with_headers)

    def _reject(self, scope: Scope, is_documentation: bool) -> JSONResponse | None:
        """Return the answer to a request that is not allowed; admit the connection of one that is."""
        headers, reads = Headers(scope=scope), scope["method"] in ("GET", "HEAD")
        if reads and scope["path"] in _HEALTH:
            return None
        # The connection cannot be used again, since the body is not read.
        close = {"Connection": "close"}
        if problem := self._access.host_problem(headers.get("host")):
            return JSONResponse({"detail": problem}, 421, close)
        if self._access.has_token(headers.get("authorization")):
            scope["state"][ADMIT]()
            return None
        if reads and is_documentation:
            return None
        detail = "the token is missing or wrong; send it as 'Authorization: Bearer TOKEN'"
        return JSONResponse({"detail": detail}, 401, {"WWW-Authenticate": "Bearer", **close})


class LimitedBodies:
    """Answers a request with a body of more than ``MAX_BODY_BYTES`` by 413, without reading the rest of it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        body = bytearray()
        more = True
        while more and len(body) <= MAX_BODY_BYTES:
            message = await receive()
            if message["type"] != "http.request":  # the client has gone
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if len(body) > MAX_BODY_BYTES:
            detail = f"the body has more than {MAX_BODY_BYTES:,} bytes; send several requests"
            # The connection cannot be used again, since the rest of the body is not read.
            await JSONResponse({"detail": detail}, 413, {"Connection": "close"})(scope, receive, send)
            return
        messages: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        await self._app(scope, replay, send)


class RecordedRequests:
    """Records route, status and duration of every request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), _NO_RESPONSE

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        finally:
            route = scope.get("route")
            # Unknown paths have one label together, so that their number is bounded.
            record_request(getattr(route, "path", _UNKNOWN_ROUTE), status, time.perf_counter() - start)
