"""A web server of the test's own application, with the connections that the dashboard and ``crossfade serve`` have."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp
from waiting import wait_until

from crossfade.deploy.topology import Address
from crossfade.deploy.web.listening import UVICORN_OPTIONS, bound_socket


@contextmanager
def serving(app: ASGIApp) -> Iterator[Address]:
    """Serve ``app``, whose lifespan yields the bounds of its connections, on loopback while the context lasts."""
    with bound_socket("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(app, **UVICORN_OPTIONS))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            wait_until(lambda: server.started, "the server")
            yield Address("127.0.0.1", listener.getsockname()[1])
        finally:
            server.force_exit = server.should_exit = True
            thread.join()
