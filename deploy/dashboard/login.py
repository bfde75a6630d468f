"""Access to the dashboard: who may send requests, and the page to sign in with the token.

    asgi = restricted(app.server, access, policy)

A browser signs in once, with the token in a form, and gets a cookie, whose value is new in each process. Programs send
``Authorization: Bearer TOKEN``.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import sys
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from functools import partial
from html import escape
from http import HTTPStatus
from io import BytesIO
from queue import SimpleQueue
from typing import Any
from urllib.parse import parse_qs, urlencode

from flask import Flask
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send
from werkzeug.wrappers import Response as WsgiResponse

from crossfade.deploy.access import Access
from crossfade.deploy.web.middleware import LimitedBodies, RestrictedAccess
from crossfade.deploy.web.protocol import Bounds
from crossfade.trainer.monitoring.bounded_server import Places

_THREADS = 8
_MAX_BODY_BYTES, _MAX_FORM_BYTES = 64 << 10, 8 << 10
"""Of requests for callbacks, which have the names of some runs, and of the form with the token."""
_HEALTH = "/healthz"
_CONNECTIONS = 128
"""Of strangers, and of members: each may have a large file of Plotly that waits to be read."""
_LOGIN = "/login"
_OPEN = ("/assets/", "/_favicon.ico")
"""What the page to sign in loads; it has nothing of the runs."""
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Sign in: Crossfade</title>
<link rel="icon" href="/_favicon.ico">
<link rel="stylesheet" href="/assets/page.css">
<link rel="stylesheet" href="/assets/explore.css">
<script src="/assets/early_theme.js"></script>
</head>
<body>
<header><div><span class="brand">Crossfade</span></div></header>
<main class="explore">
  <h1>Sign in</h1>
  <form method="post" class="controls card">
    <div class="field">
      <label for="token">Token</label>
      <div class="joined">
        <input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
        <button type="submit">Sign in</button>
      </div>
      <p class="hint" role="alert">{problem}</p>
    </div>
    <input name="next" type="hidden" value="{target}">
  </form>
</main>
</body>
</html>
"""


class _PageAccess(RestrictedAccess):
    """The cookie of a browser that has signed in stands for the token, which others are asked for."""

    def __init__(self, app: ASGIApp, access: Access, policy: str, session: str) -> None:
        super().__init__(app, access, policy)
        self._session = session

    def is_open(self, method: str, path: str) -> bool:
        return path == _LOGIN or path.startswith(_OPEN)

    def may_be_linked(self, method: str, path: str) -> bool:
        return method in ("GET", "HEAD") or self.is_open(method, path)

    def is_signed_in(self, scope: Scope) -> bool:
        cookie = HTTPConnection(scope).cookies.get(_cookie_name(scope), "")
        return hmac.compare_digest(cookie.encode(), self._session.encode()) or super().is_signed_in(scope)

    def ask_for_token(self, scope: Scope) -> Response:
        if scope["method"] != "GET" or "text/html" not in HTTPConnection(scope).headers.get("accept", ""):
            return super().ask_for_token(scope)
        query = scope["query_string"].decode()
        target = f"{scope['path']}?{query}" if query else scope["path"]
        return RedirectResponse(f"{_LOGIN}?{urlencode({'next': target})}", HTTPStatus.SEE_OTHER)


def restricted(pages: Flask, access: Access, policy: str) -> Starlette:
    """Return the application that answers requests for ``pages``, in threads, as far as ``access`` allows them.

    ``policy`` is the content security policy of all pages. If a token is needed, there is a page to sign in with it.
    """
    session, in_threads = secrets.token_urlsafe(32), WsgiInThreads(pages, _THREADS)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Any]]:
        yield Bounds(Places(_CONNECTIONS, _CONNECTIONS)).state()
        in_threads.close()

    sign_in = Route(_LOGIN, partial(_sign_in, access, session), methods=["GET", "POST"])
    return Starlette(
        routes=[Route(_HEALTH, _is_healthy), *([] if access.token is None else [sign_in]), Mount("/", in_threads)],
        middleware=[
            Middleware(_PageAccess, access=access, policy=policy, session=session),
            Middleware(LimitedBodies, max_bytes=_MAX_BODY_BYTES),
        ],
        lifespan=lifespan,
    )


async def _is_healthy(_: Request) -> Response:
    """Answer from the event loop: threads may all be busy with the runs."""
    return PlainTextResponse("OK")


async def _sign_in(access: Access, session: str, request: Request) -> Response:
    """Show the form, or check the token in it and lead back to the page that needs it."""
    if request.method != "POST":
        return _form(request.query_params.get("next", "/"), "")
    body = await request.body()
    if len(body) > _MAX_FORM_BYTES:
        return _form("/", "This is more than a token.", HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    given = parse_qs(body.decode(errors="replace"))
    target, token = (given.get(name, [default])[0] for name, default in (("next", "/"), ("token", "")))
    if not access.is_token(token):
        return _form(target, "This is not the token.", HTTPStatus.UNAUTHORIZED)
    response = RedirectResponse(target if _is_local(target) else "/", HTTPStatus.SEE_OTHER)
    is_secure = request.url.scheme == "https"
    response.set_cookie(_cookie_name(request.scope), session, httponly=True, samesite="strict", secure=is_secure)
    return response


def _form(target: str, problem: str, status: HTTPStatus = HTTPStatus.OK) -> Response:
    return HTMLResponse(_PAGE.format(problem=problem, target=escape(target)), status)


def _cookie_name(scope: Scope) -> str:
    """Return the name of the cookie: browsers send the cookies of a host to all its ports."""
    return f"crossfade_{scope['server'][1]}"


def _is_local(target: str) -> bool:
    """Return whether ``target`` is a path of this server: two slashes of either kind lead to another one."""
    return target.startswith("/") and not target.startswith(("//", "/\\")) and target.isprintable()


class WsgiInThreads:
    """An ASGI application that answers requests by a WSGI application, such as that of Dash.

    The complete answer is made in a thread, then sent by the event loop. So no thread waits for a client that reads
    slowly, nor for an event loop that has ended, as it would where each chunk is handed over by itself. The process
    does not wait for its threads when it ends: one may hang in a file system.
    """

    def __init__(self, app: Callable[..., Any], threads: int) -> None:
        self._app, self._threads = app, threads
        self._requests: SimpleQueue[tuple[Future[WsgiResponse], dict[str, Any]] | None] = SimpleQueue()
        for _ in range(threads):
            threading.Thread(target=self._work, name="wsgi", daemon=True).start()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        environ = _environ(scope, await Request(scope, receive).body())
        answer: Future[WsgiResponse] = Future()
        self._requests.put((answer, environ))
        try:
            response = await asyncio.wrap_future(answer)
        except asyncio.CancelledError:  # the server ends
            response = WsgiResponse("the dashboard is ending\n", HTTPStatus.SERVICE_UNAVAILABLE)
        headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in response.headers]
        await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": response.get_data()})

    def _work(self) -> None:
        """Answer requests until ``None`` comes."""
        while (request := self._requests.get()) is not None:
            answer, environ = request
            if answer.set_running_or_notify_cancel():
                try:
                    answer.set_result(self._answer(environ))
                except Exception as error:
                    answer.set_exception(error)

    def _answer(self, environ: dict[str, Any]) -> WsgiResponse:
        response = WsgiResponse.from_app(self._app, environ, buffered=True)
        response.get_data()
        return response

    def close(self) -> None:
        """End the threads, each after the request that it answers; further requests have no answer."""
        for _ in range(self._threads):
            self._requests.put(None)


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
