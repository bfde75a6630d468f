"""The pages of the dashboard as an ASGI application, for those who have the token.

    asgi = restricted(app.server, access, policy)

Browsers ask for the token as a password (HTTP Basic, RFC 7617), and send it to this address until they end. Programs
may send ``Authorization: Bearer TOKEN`` instead.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import sys
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from http import HTTPStatus
from io import BytesIO
from typing import Any

from flask import Flask
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send
from werkzeug.wrappers import Response as WsgiResponse

from crossfade.deploy.access import Access
from crossfade.deploy.dashboard.page import EXPLORE_PATH
from crossfade.deploy.web.middleware import LimitedBodies, RestrictedAccess
from crossfade.deploy.web.protocol import Bounds
from crossfade.trainer.monitoring.bounded_server import Places

_THREADS = 8
_MAX_BODY_BYTES = 64 << 10
"""Of requests for callbacks, which have the names of some runs."""
_CONNECTIONS = 128
"""Of strangers, and of members: each may have a large file of Plotly that waits to be read."""
_QUESTIONS = f"{EXPLORE_PATH}/api/"
"""What begins to prepare a model by a GET."""
_PAGES = ("/", EXPLORE_PATH, f"{EXPLORE_PATH}/")


class _PageAccess(RestrictedAccess):
    """Pages of other sites may lead to pages, and send nothing else: browsers add the password to their requests."""

    challenge = 'Basic realm="Crossfade: the token is the password, with any name"'
    how = "give it as the password, with any name, or send it as 'Authorization: Bearer TOKEN'"
    own = "send it from a page of the dashboard, or from a program with the header X-Requested-With"

    def may_be_linked(self, method: str, path: str) -> bool:
        return method in ("GET", "HEAD") and path in _PAGES

    def is_foreign(self, headers: Headers, path: str) -> bool:
        # Browsers do not say whose page a request is from to a server without TLS on another machine; pages of other
        # sites cannot send the second header.
        said = "sec-fetch-site" in headers or "x-requested-with" in headers
        # Flask ignores further slashes at the beginning.
        return super().is_foreign(headers, path) or (f"/{path.lstrip('/')}".startswith(_QUESTIONS) and not said)

    def has_token(self, authorization: str | None) -> bool:
        return super().has_token(authorization) or self._access.is_token(_password(authorization or ""))


def _password(authorization: str) -> str:
    """Return the password of HTTP Basic; empty if there is none."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(encoded).partition(b":")[2].decode()
    except (binascii.Error, ValueError):
        return ""


def restricted(pages: Flask, access: Access, policy: str) -> Starlette:
    """Return the application that answers requests for ``pages``, in threads, as far as ``access`` allows them.

    ``policy`` is the content security policy of all pages.
    """

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Any]]:
        yield Bounds(Places(_CONNECTIONS, _CONNECTIONS)).state()

    return Starlette(
        routes=[Route("/healthz", _is_healthy), Mount("/", WsgiInThreads(pages, _THREADS))],
        middleware=[
            Middleware(_PageAccess, access=access, policy=policy),
            Middleware(LimitedBodies, max_bytes=_MAX_BODY_BYTES),
        ],
        lifespan=lifespan,
    )


async def _is_healthy(_: Request) -> Response:
    """Answer from the event loop: threads may all be busy with the runs."""
    return PlainTextResponse("OK")


class WsgiInThreads:
    """An ASGI application that answers requests by a WSGI application, such as Dash.

    The complete answer is made in a thread, then sent by the event loop, so no thread waits for a client that reads
    slowly. The process does not wait for its threads when it ends, as it does for threads of a pool: one may hang in a
    file system.
    """

    def __init__(self, app: Callable[..., Any], threads: int) -> None:
        self._app, self._places = app, asyncio.Semaphore(threads)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        environ = _environ(scope, await Request(scope, receive).body())
        answer: Future[WsgiResponse] = Future()
        answer.set_running_or_notify_cancel()
        try:
            async with self._places:
                threading.Thread(target=self._answer, args=(environ, answer), name="wsgi", daemon=True).start()
                response = await asyncio.wrap_future(answer)
        except asyncio.CancelledError:  # the server ends
            response = WsgiResponse("the dashboard is ending\n", HTTPStatus.SERVICE_UNAVAILABLE)
        headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in response.headers]
        await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": response.get_data()})

    def _answer(self, environ: dict[str, Any], answer: Future[WsgiResponse]) -> None:
        try:
            response = WsgiResponse.from_app(self._app, environ, buffered=True)
            response.get_data()
            answer.set_result(response)
        except Exception as error:  # the event loop raises it
            answer.set_exception(error)


def _environ(scope: Scope, body: bytes) -> dict[str, Any]:
    """Return the environment of a request in WSGI, whose texts have a byte in each character."""
    host, port = scope["server"]
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": "",
        "PATH_INFO": scope["path"].encode().decode("latin-1"),
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_NAME": host,
        "SERVER_PORT": str(port),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope["scheme"],
        "wsgi.input": BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, value in scope["headers"]:
        key = name.decode("latin-1").upper().replace("-", "_")
        environ[key if key == "CONTENT_TYPE" else f"HTTP_{key}"] = value.decode("latin-1")
    return environ
