"""What all web servers listen with: a socket, the URL that leads to it, and uvicorn's options.

with bound_socket("127.0.0.1", 8050) as listener:
    uvicorn.Server(uvicorn.Config(app, **UVICORN_OPTIONS)).run(sockets=[listener])
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from crossfade.base.errors import OptionError

UVICORN_OPTIONS: dict[str, Any] = {
    "http": "crossfade.deploy.web.protocol:BoundedProtocol",
    "ws": "none",
    "backlog": 2048,
    "access_log": False,
    "log_config": None,
    "lifespan": "on",
}


@contextmanager
def bound_socket(host: str, port: int) -> Iterator[socket.socket]:
    """Bind a socket, so that an address in use is reported at once; nobody can connect before a process listens.

    Raises:
        OptionError: it cannot be bound.
    """
    with ExitStack() as stack:
        try:
            family, _, _, _, address = socket.getaddrinfo(host or "0.0.0.0", port, type=socket.SOCK_STREAM)[0]  # noqa: S104
            listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError as error:
            reason = error.strerror or error
            raise OptionError(
                "port",
                problem=f"cannot listen on {host}:{port}: {reason}",
                fix="name another port, or 0 for a free one",
            ) from error
        yield listener


def url_of(listener: socket.socket) -> str:
    """Return the URL at which this machine reaches ``listener``."""
    host, port = listener.getsockname()[:2]
    shown = "127.0.0.1" if host == "0.0.0.0" else host  # noqa: S104 - compared with, not bound to
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/"
