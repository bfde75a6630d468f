"""What surrounds every request: who may send it, and limits of its body and of all bodies together.

app.add_middleware(LimitedBodies)
app.add_middleware(PageAccess, access=access)       # a RestrictedAccess
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crossfade.deploy.access import SECURITY_HEADERS, Access
from crossfade.deploy.web.protocol import ADMIT, BREAK_OFF

MAX_BODY_BYTES, MAX_BODIES_BYTES = 8 << 20, 64 << 20
_UNCOUNTED_BYTES = 64 << 10
"""What each connection may send in any case: so much of a body does not count for ``MAX_BODIES_BYTES``."""
MAX_PARAMETERS = 128
_OWN_SITE = ("same-origin", "none")
# A connection cannot be used again where the body is not read.
_CLOSE = {"Connection": "close"}


def security_headers(policy: str) -> list[tuple[bytes, bytes]]:
    """Return the security headers of a response, with the content security ``policy``."""
    headers = {**SECURITY_HEADERS, "Content-Security-Policy": policy}
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


class RestrictedAccess:
    """Answers only requests that ``access`` allows, before their bodies are read; adds the security headers."""

    health: tuple[str, ...] = ("/healthz",)
    """Paths that answer everybody, by any name of the host."""
    challenge, how = "Bearer", "send it as 'Authorization: Bearer TOKEN'"
    """How to send the token: what a browser is asked for, and in words."""
    own = "send it from a program, or from /docs"
    """How to send a request that is not taken for a request of another site."""

    def __init__(
        self, app: ASGIApp, access: Access, policy: str = "default-src 'none'; frame-ancestors 'none'"
    ) -> None:
        self._app, self._access = app, access
        self._headers = security_headers(policy)

    def headers_of(self, path: str) -> list[tuple[bytes, bytes]]:
        """Return the security headers of the response to ``path``."""
        return self._headers

    def is_open(self, method: str, path: str) -> bool:
        """Return whether a request needs no token: its answer has nothing of a model or a run."""
        return False

    def may_be_linked(self, method: str, path: str) -> bool:
        """Return whether pages of other sites may send a request, as a link does."""
        return self.is_open(method, path)

    def is_foreign(self, headers: Headers, path: str) -> bool:
        """Return whether a page of another site has sent a request."""
        return headers.get("sec-fetch-site", "none") not in _OWN_SITE

    def has_token(self, authorization: str | None) -> bool:
        """Return whether a request with this header has the token, or needs none."""
        return self._access.has_token(authorization)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        added = self.headers_of(scope["path"])

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *added]
            await send(message)

        await (self._reject(scope) or self._app)(scope, receive, send_with_headers)

    def _reject(self, scope: Scope) -> Response | None:
        """Return the answer to a request that is not allowed; admit the connection of one that is."""
        headers, method, path = Headers(scope=scope), scope["method"], scope["path"]
        if method in ("GET", "HEAD") and path in self.health:
            return None
        if problem := self._access.host_problem(headers.get("host")):
            return _rejection(421, problem)
        if self.is_foreign(headers, path) and not self.may_be_linked(method, path):
            return _rejection(403, f"a page of another site may have sent this request; {self.own}")
        query = scope["query_string"]
        if query.count(b"&") >= MAX_PARAMETERS or not query.isascii():
            return _rejection(400, f"expected at most {MAX_PARAMETERS} parameters, in ASCII")
        if self.has_token(headers.get("authorization")):
            scope["state"][ADMIT]()
        elif not self.is_open(method, path):
            challenge = {"WWW-Authenticate": self.challenge}
            return _rejection(401, f"the token is missing or wrong; {self.how}", challenge)
        return None


def _rejection(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"detail": detail}, status, {**(headers or {}), **_CLOSE})


@dataclass
class _Arriving:
    """A body that is being received: the bytes of it that count, and what ends its connection."""

    break_off: Callable[[], None]
    counted: int = 0


class LimitedBodies:
    """Answers a body of more than ``max_bytes`` by 413, without reading the rest of it.

    All bodies of the process together have at most ``MAX_BODIES_BYTES``: for another one, those that have been arriving
    for the longest time are broken off. If the others are complete and wait, the new one gets 503.
    """

    def __init__(self, app: ASGIApp, max_bytes: int = MAX_BODY_BYTES) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._bytes = 0
        self._arriving: dict[int, _Arriving] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
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
            if len(body) > self._max_bytes:
                return _rejection(413, f"the body has more than {self._max_bytes:,} bytes; send several requests")
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
