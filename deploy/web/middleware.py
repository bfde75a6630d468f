"""What surrounds every request: who may send it, and the limit of its body.

app.add_middleware(LimitedBodies, max_bytes=128 << 10)
app.add_middleware(PageAccess, access=access)       # a RestrictedAccess
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crossfade.deploy.access import SECURITY_HEADERS, Access
from crossfade.deploy.web.protocol import ADMIT

MAX_PARAMETERS = 128
_MAX_READ_BYTES = 8 << 20
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


class LimitedBodies:
    """Answers a body of more than ``max_bytes`` by 413.

    A connection has one body at a time, so the bodies of all connections are bounded too. What is beyond the limit is
    dropped, so that the client gets the answer; a body of more than ``_MAX_READ_BYTES`` is not read to its end.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body, size, more = bytearray(), 0, True
        while more and size <= _MAX_READ_BYTES:
            message = await receive()
            if message["type"] != "http.request":  # the client has gone
                return
            chunk, more = message.get("body", b""), message.get("more_body", False)
            size += len(chunk)
            if size <= self._max_bytes:
                body += chunk
        if size > self._max_bytes:
            answer = _rejection(413, f"the body has more than {self._max_bytes:,} bytes; send several requests")
            await answer(scope, receive, send)
            return
        messages: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]
        del body

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        await self._app(scope, replay, send)
