"""What surrounds every request: who may send it, limits of its body and of all bodies together, and metrics."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crossfade.deploy.access import SECURITY_HEADERS, Access
from crossfade.deploy.serving.metrics import record_request
from crossfade.deploy.serving.protocol import ADMIT, BREAK_OFF

MAX_BODY_BYTES, MAX_BODIES_BYTES = 8 << 20, 64 << 20
_UNCOUNTED_BYTES = 64 << 10
"""What each connection may send in any case: so much of a body does not count for ``MAX_BODIES_BYTES``."""
_MAX_PARAMETERS = 128
_HEALTH = ("/healthz", "/ping")
_DOCUMENTATION = ("/docs", "/openapi.json", "/static-offline-docs/")
"""Paths that can be read without a token: they have nothing of the model."""
_OWN_SITE = ("same-origin", "none")


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
# A connection cannot be used again where the body is not read.
_CLOSE = {"Connection": "close"}


class RestrictedAccess:
    """Answers only requests that ``access`` allows, before their bodies are read; adds the security headers."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_documentation = scope["path"] == "/" or scope["path"].startswith(_DOCUMENTATION)
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
        may_read = reads and is_documentation
        if problem := self._access.host_problem(headers.get("host")):
            return _rejection(421, problem)
        # Pages of other sites may lead to the documentation, but send no other request.
        if not may_read and headers.get("sec-fetch-site", "none") not in _OWN_SITE:
            return _rejection(403, "a page of another site sent this request; send it from a program, or from /docs")
        if scope["query_string"].count(b"&") >= _MAX_PARAMETERS:
            return _rejection(400, f"expected at most {_MAX_PARAMETERS} parameters")
        if self._access.has_token(headers.get("authorization")):
            scope["state"][ADMIT]()
        elif not may_read:
            detail = "the token is missing or wrong; send it as 'Authorization: Bearer TOKEN'"
            return _rejection(401, detail, {"WWW-Authenticate": "Bearer"})
        return None


def _rejection(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"detail": detail}, status, {**(headers or {}), **_CLOSE})


@dataclass
class _Arriving:
    """A body that is being received: the bytes of it that count, and what ends its connection."""

    break_off: Callable[[], None]
    counted: int = 0


class LimitedBodies:
    """Answers a body of more than ``MAX_BODY_BYTES`` by 413, without reading the rest of it.

    All bodies of the process together have at most ``MAX_BODIES_BYTES``: for another one, those that have been arriving
    for the longest time are broken off. If the others are complete and wait, the new one gets 503.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._bytes = 0
        self._arriving: dict[int, _Arriving] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        arriving = _Arriving(scope["state"][BREAK_OFF])
        self._arriving[id(arriving)] = arriving
        try:
            body = await self._read(receive, arriving)
            self._arriving.pop(id(arriving), None)
            if isinstance(body, JSONResponse):
                await body(scope, receive, send)
            elif body is not None:
                messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
                del body

                async def replay() -> Message:
                    return messages.pop() if messages else await receive()

                await self._app(scope, replay, send)
        finally:
            self._arriving.pop(id(arriving), None)
            self._bytes -= arriving.counted

    async def _read(self, receive: Receive, arriving: _Arriving) -> bytes | JSONResponse | None:
        """Return the body, the answer to one that is too large, or None if the client has gone."""
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":  # the client has gone
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > MAX_BODY_BYTES:
                return _rejection(413, f"the body has more than {MAX_BODY_BYTES:,} bytes; send several requests")
            self._count(arriving, max(0, len(body) - _UNCOUNTED_BYTES))
            if self._bytes > MAX_BODIES_BYTES:
                return _rejection(
                    503, "too many large bodies are being answered; try again later", {"Retry-After": "1"}
                )
        return bytes(body)

    def _count(self, arriving: _Arriving, counted: int) -> None:
        """Note that ``counted`` bytes of a body count, and break off others if all bodies have too many."""
        self._bytes += counted - arriving.counted
        arriving.counted = counted
        for other in list(self._arriving.values()):
            if self._bytes <= MAX_BODIES_BYTES:
                return
            if other is not arriving and other.counted:
                other.break_off()
                self._bytes -= other.counted
                other.counted = 0
                del self._arriving[id(other)]


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
