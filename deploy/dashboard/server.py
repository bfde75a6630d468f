"""Serve the dashboard over HTTP.

    serve(Runs([Path("runs")]), "runs", "127.0.0.1", 8050, Access(), print)

Waitress and Dash are imported only when the page is served.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from crossfade.base.errors import InputError, MissingExtraError
from crossfade.deploy.access import Access
from crossfade.deploy.dashboard.runs import Runs

_THREADS = 8


def serve(
    runs: Runs,
    source: str,
    host: str,
    port: int,
    access: Access,
    on_listening: Callable[[str], None],
    *,
    history_from_this_dataset_only: bool = False,
) -> None:
    """Serve the page of ``runs`` at ``port`` (0: a free one) of ``host`` until an exception ends it.

    ``access`` decides which requests are answered. ``source`` names the folders of the runs in the page's header;
    ``on_listening`` receives the page's URL. ``history_from_this_dataset_only`` has Explore do without base datasets.

    Raises:
        MissingExtraError: Dash or Waitress is not installed.
        InputError: the address is in use or cannot be bound.
    """
    try:
        from crossfade.deploy.dashboard.app import make_app
        from crossfade.deploy.dashboard.bounded_waitress import BoundedWaitress
        from crossfade.deploy.dashboard.explored_models import ExploredModels
    except ImportError as error:
        raise MissingExtraError(error.name or "dash", extra="dashboard", purpose="crossfade dashboard") from error
    # A browser with many tabs makes requests queue for a moment, which Waitress would log as a warning.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    models = ExploredModels(history_from_this_dataset_only=history_from_this_dataset_only)
    app = make_app(runs, models, source, access)
    try:
        server = BoundedWaitress(app.server, host=host, port=port, threads=_THREADS)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise InputError(
            f"--port: cannot listen on {host}:{port}: {reason}; name another port, or 0 for a free one"
        ) from error
    on_listening(f"http://{'127.0.0.1' if host in _ALL_INTERFACES else host}:{server.effective_port}/")
    try:
        server.run()
    finally:
        server.close()
        models.close()


_ALL_INTERFACES = {"", "0.0.0.0"}  # noqa: S104 - compared with, not bound to
