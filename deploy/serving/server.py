"""Run the server: one process writes versions of the model and supervises the others, which answer requests.

    serve(ServeOptions.of(source="runs/lastfm").located(), reporter, on_listening=print)

The processes share one socket. Each opens the current version by itself; its files are mapped into memory, which the
processes therefore have in common. One that dies is replaced.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from crossfade.base.errors import CrossfadeError, MissingExtraError, Option
from crossfade.base.io.disk_errors import write_error
from crossfade.base.machine import thread_variables
from crossfade.deploy.cluster.role_variables import AGENT_VARIABLE
from crossfade.deploy.serving.options import ServeOptions
from crossfade.deploy.web.listening import UVICORN_OPTIONS, bound_socket, url_of
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.serving.copies_folder import CopiesFolder, full_work_disk_error

_DRAIN_SECONDS, _HUNG_SECONDS = 30, 120
_METRICS_BYTES = 1 << 20
"""Free space that a server needs at least at its start."""
_METRICS = "metrics"


def serve(options: ServeOptions, reporter: ProgressReporter, on_listening: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; requests that have begun are answered. ``options`` are ``located``.

    ``reporter`` follows the first version being written, and ``on_listening`` receives the URL after it.

    Raises:
        MissingExtraError: FastAPI, uvicorn or FAISS is not installed.
        InputError: the address cannot be bound, or the model or its dataset is missing.
        CheckpointError: a checkpoint is corrupt or cannot be read.
        CrossfadeError: a process cannot start.
        OSError: the working folder cannot be written.
    """
    assert options.port is not None
    access = options.access()
    with (
        bound_socket(options.host, options.port) as listener,
        _working_folder(options.work_dir) as work,
        _restored_environment(),
    ):
        # Before the client of Prometheus is imported, which reads it then.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(work / _METRICS)
        try:
            from uvicorn import Config
            from uvicorn.config import STARTUP_FAILURE
            from uvicorn.supervisors import Multiprocess

            from crossfade.deploy.serving.app import VERSIONS_VARIABLE, make_app
            from crossfade.deploy.serving.versions import Refresher, Versions
        except ImportError as error:
            raise MissingExtraError(error.name or "fastapi", extra="serve", purpose="crossfade serve") from error
        refresher = Refresher(options, Versions(work))
        refresher.write_first(reporter)
        os.environ[VERSIONS_VARIABLE] = str(work)
        os.environ[AGENT_VARIABLE] = str(os.getpid())
        # The processes get the token by a pipe, with the application.
        config = Config(partial(make_app, access), **_process_options(options.processes))
        on_listening(url_of(listener))
        supervisor = Multiprocess(config, sockets=[listener])
        with refresher.running(options.refresh):
            supervisor.run()
        if any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes):
            raise CrossfadeError("a process of the server could not start; its error is above")


@contextmanager
def _restored_environment() -> Iterator[None]:
    """Restore the environment at the end: a later child of this process would look for the folder of metrics."""
    before = os.environ.copy()
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def _process_options(processes: int) -> dict[str, Any]:
    """Return uvicorn's options for ``processes`` processes, and divide the cores among them."""
    for variable, threads in thread_variables(processes).items():
        os.environ.setdefault(variable, threads)
    return {
        **UVICORN_OPTIONS,
        "factory": True,
        "workers": processes,
        "timeout_graceful_shutdown": _DRAIN_SECONDS,
        "timeout_worker_healthcheck": _HUNG_SECONDS,
    }


@contextmanager
def _working_folder(work: Path | None) -> Iterator[Path]:
    """Create a folder for versions and metrics, in ``work`` or the system's temporary folder; delete it at the end."""
    try:
        if work is not None:
            work.mkdir(parents=True, exist_ok=True)
        folder = CopiesFolder(work)
    except OSError as error:
        place = work or Path(tempfile.gettempdir())
        raise write_error(Option("work_dir", place), error, place) from error
    try:
        # The client of Prometheus maps its files into memory, and a process that writes such a page to a full disk is
        # killed by SIGBUS.
        if folder.free_bytes() < _METRICS_BYTES:
            raise full_work_disk_error(folder.path)
        (folder.path / _METRICS).mkdir()
        yield folder.path
    finally:
        folder.delete()
