"""Serving the page: what it needs beyond the project's own packages is imported here and in ``app.py`` alone."""

from __future__ import annotations

import logging
from collections.abc import Callable

from deploy.dashboard.runs import Runs
from kvstore.errors import InputError, MissingExtraError

_THREADS = 8


def serve(runs: Runs, what: str, host: str, port: int, listening: Callable[[str], None]) -> None:
    """Serve the page of ``runs``, called ``what``, at ``port`` (0: a free one) of ``host``, until an exception ends it.

    ``listening`` is told the page's address.

    Raises:
        MissingExtraError: Dash or Waitress is not installed.
        InputError: nothing can listen there.
    """
    try:
        from waitress.server import create_server

        from deploy.dashboard.app import make_app
    except ImportError as error:
        raise MissingExtraError(error.name or "dash", extra="dashboard", purpose="crossfade dashboard") from error
    # A viewer with many tabs makes requests wait a moment, which is no news.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    app = make_app(runs, what)
    try:
        server = create_server(app.server, host=host, port=port, threads=_THREADS, ident="crossfade")
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise InputError(
            f"--port: cannot listen on {host}:{port}: {reason}; name another, or 0 for a free one"
        ) from error
    listening(f"http://{'127.0.0.1' if host in _ANYWHERE else host}:{server.effective_port}/")
    try:
        server.run()
    finally:
        server.close()


_ANYWHERE = {"", "0.0.0.0"}  # noqa: S104 - compared with, not bound to
