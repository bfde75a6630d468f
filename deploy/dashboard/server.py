"""Serve the dashboard over HTTP.

    serve(DashboardOptions.of(port=8050), print)

uvicorn and Dash are imported only when the page is served.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextlib import closing

from crossfade.base.errors import MissingExtraError
from crossfade.deploy.dashboard.options import DashboardOptions
from crossfade.deploy.web.listening import UVICORN_OPTIONS, bound_socket, url_of

_DRAIN_SECONDS = 2
_SWITCH_SECONDS = 0.001
"""Seconds after which Python switches threads: the event loop, which answers ``/healthz``, waits for several."""


def serve(options: DashboardOptions, on_listening: Callable[[str], None]) -> None:
    """Serve the page until SIGINT or SIGTERM; ``on_listening`` receives its URL.

    Raises:
        MissingExtraError: Dash or uvicorn is not installed.
        InputError: a path is not a folder, the token is invalid, or the address is in use or cannot be bound.
    """
    runs, access = options.open_runs(), options.access()
    try:
        from uvicorn import Config, Server

        from crossfade.deploy.dashboard.app import content_policy, make_app
        from crossfade.deploy.dashboard.explored_models import ExploredModels
        from crossfade.deploy.dashboard.restricted_pages import restricted
    except ImportError as error:
        raise MissingExtraError(error.name or "dash", extra="dashboard", purpose="crossfade dashboard") from error
    # Invalid requests, which uvicorn logs as warnings, would fill the log.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    with (
        bound_socket(options.host, options.port) as listener,
        closing(ExploredModels()) as models,
    ):
        app = make_app(runs, models, options.source())
        asgi = restricted(app.server, access, content_policy(app))
        sys.setswitchinterval(_SWITCH_SECONDS)
        server = Server(Config(asgi, timeout_graceful_shutdown=_DRAIN_SECONDS, **UVICORN_OPTIONS))
        listener.listen(UVICORN_OPTIONS["backlog"])
        on_listening(url_of(listener))
        server.run(sockets=[listener])
