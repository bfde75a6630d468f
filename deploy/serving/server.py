"""Run the server, which answers requests from a version of the model, and follows newer ones.

serve(ServeOptions.of(source="runs/lastfm").located(), reporter, on_listening=print)
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from crossfade.base.errors import CrossfadeError, MissingExtraError, Option
from crossfade.base.io.disk_errors import write_error
from crossfade.base.signals import StopSignal
from crossfade.deploy.serving.options import ServeOptions
from crossfade.deploy.web.listening import UVICORN_OPTIONS, bound_socket, url_of
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.serving.copies_folder import CopiesFolder

_DRAIN_SECONDS = 30


def serve(options: ServeOptions, reporter: ProgressReporter, on_listening: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; requests that have begun are answered. ``options`` are ``located``.

    ``reporter`` follows the first version being written, and ``on_listening`` receives the URL after it.

    Raises:
        MissingExtraError: FastAPI, uvicorn or FAISS is not installed.
        InputError: the address cannot be bound, or the model or its dataset is missing.
        CheckpointError: a checkpoint is corrupt or cannot be read.
        CrossfadeError: the server cannot start.
        OSError: the working folder cannot be written.
    """
    assert options.port is not None
    access = options.access()
    with bound_socket(options.host, options.port) as listener, _working_folder(options.work_dir) as folder:
        try:
            from uvicorn import Config, Server

            from crossfade.deploy.serving.app import make_app
            from crossfade.deploy.serving.current import CurrentVersion
            from crossfade.deploy.serving.refresher import Refresher
        except ImportError as error:
            raise MissingExtraError(error.name or "fastapi", extra="serve", purpose="crossfade serve") from error
        # Invalid requests, which uvicorn logs as warnings, would fill the log.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        refresher = Refresher(options, folder)
        app = make_app(access, CurrentVersion(refresher.write_first(reporter)), refresher)
        server = Server(Config(app, timeout_graceful_shutdown=_DRAIN_SECONDS, **UVICORN_OPTIONS))
        listener.listen(UVICORN_OPTIONS["backlog"])
        on_listening(url_of(listener))
        with suppress(StopSignal):  # uvicorn raises the signal again once it has ended
            server.run(sockets=[listener])
        if not server.started:
            raise CrossfadeError("the server could not start; its error is above")


@contextmanager
def _working_folder(work: Path | None) -> Iterator[CopiesFolder]:
    """Create a folder for versions, in ``work`` or the system's temporary folder; delete it at the end."""
    try:
        if work is not None:
            work.mkdir(parents=True, exist_ok=True)
        folder = CopiesFolder(work)
    except OSError as error:
        place = work or Path(tempfile.gettempdir())
        raise write_error(Option("work_dir", place), error, place) from error
    try:
        yield folder
    finally:
        folder.delete()
