"""Run a WSGI application, such as that of Dash, within an ASGI application.

    Mount("/", WsgiInThreads(flask_app, threads=8))

The complete answer is made in a thread, then sent by the event loop. So no thread waits for a client that reads slowly,
nor for an event loop that has ended, as it would where each chunk is handed over by itself.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

from starlette.requests import Request
from starlette.types import Receive, Scope, Send
from werkzeug.wrappers import Response


class WsgiInThreads:
    """An ASGI application that answers requests by a WSGI application."""

    def __init__(self, app: Callable[..., Any], threads: int) -> None:
        self._app = app
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="wsgi")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        environ = _environ(scope, await Request(scope, receive).body())
        response = await asyncio.get_running_loop().run_in_executor(self._threads, self._answer, environ)
        headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in response.headers]
        await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": response.get_data()})

    def _answer(self, environ: dict[str, Any]) -> Response:
        response = Response.from_app(self._app, environ, buffered=True)
        response.get_data()
        return response

    def close(self) -> None:
        """End the threads, each after the request that it answers; further requests have no answer."""
        self._threads.shutdown(wait=False, cancel_futures=True)


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
