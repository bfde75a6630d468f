"""Run the server: one process writes versions of the model and supervises the others, which answer requests.

    serve(source, ServerOptions(port=8090), reporter, on_listening=print)

The processes share one socket. Each opens the current version by itself; its files are mapped into memory, which the
processes therefore have in common. One that dies is replaced.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from crossfade.base.errors import CrossfadeError, MissingExtraError
from crossfade.base.io.disk_errors import write_error
from crossfade.deploy.access import Access
from crossfade.deploy.capacity.machine import usable_cores
from crossfade.deploy.cluster.role_variables import AGENT_VARIABLE
from crossfade.deploy.web.listening import UVICORN_OPTIONS, bound_socket, url_of
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.recommend.metadata_table import MetadataFile
from crossfade.trainer.serving.copies_folder import CopiesFolder, full_work_disk_error

_DRAIN_SECONDS, _HUNG_SECONDS = 30, 120
_METRICS_BYTES = 1 << 20
"""Free space that a server needs at least at its start."""
_METRICS = "metrics"
_THREAD_VARIABLES = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS")


@dataclass(frozen=True)
class ServerOptions:
    """How to serve.

    Attributes:
        host: the address to listen on.
        port: the port; 0: a free one.
        processes: how many processes answer requests.
        refresh_seconds: how often to look for a new version; 0: never.
        work: the folder for versions; None: a temporary one.
        access: decides which requests are answered.
    """

    host: str = "127.0.0.1"
    port: int = 8090
    processes: int = 1
    refresh_seconds: float = 30.0
    work: Path | None = None
    access: Access = field(default_factory=Access)


@dataclass(frozen=True)
class ModelOptions:
    """What to serve.

    Attributes:
        location: a run folder, a folder of checkpoints, or a checkpoint.
        data: the dataset, if it is not where the job names it.
        metadata: a file with further columns of items, for conditions.
        index_from: number of items from which requests search an index; None: they always rank exactly.
        history_from_this_dataset_only: whether to do without base datasets.
    """

    location: str
    data: str | None = None
    metadata: MetadataFile | None = None
    index_from: int | None = 50_000
    history_from_this_dataset_only: bool = False


def serve(
    model: ModelOptions, options: ServerOptions, reporter: ProgressReporter, on_listening: Callable[[str], None]
) -> None:
    """Serve until SIGINT or SIGTERM; requests that have begun are answered.

    ``reporter`` follows the first version being written, and ``on_listening`` receives the URL after it.

    Raises:
        MissingExtraError: FastAPI, uvicorn or FAISS is not installed.
        InputError: the address cannot be bound, or the model or its dataset is missing.
        CheckpointError: every checkpoint is corrupt or cannot be read.
        CrossfadeError: a process cannot start.
        OSError: the working folder cannot be written.
    """
    with bound_socket(options.host, options.port) as listener, _working_folder(options.work) as work:
        # Before the client of Prometheus is imported, which reads it then.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(work / _METRICS)
        try:
            from uvicorn import Config
            from uvicorn.config import STARTUP_FAILURE
            from uvicorn.supervisors import Multiprocess

            from crossfade.deploy.serving.app import VERSIONS_VARIABLE, make_app
            from crossfade.deploy.serving.versions import Refresher, Source, Versions
        except ImportError as error:
            raise MissingExtraError(error.name or "fastapi", extra="serve", purpose="crossfade serve") from error
        from crossfade.trainer.serving.version_folder import VersionOptions

        source = Source(
            model.location,
            model.data,
            VersionOptions(model.metadata, model.index_from),
            model.history_from_this_dataset_only,
        )
        refresher = Refresher(source, Versions(work))
        refresher.write_first(reporter)
        os.environ[VERSIONS_VARIABLE] = str(work)
        os.environ[AGENT_VARIABLE] = str(os.getpid())
        # The processes get the token by a pipe, with the application.
        config = Config(partial(make_app, options.access), **_process_options(options.processes))
        on_listening(url_of(listener))
        supervisor = Multiprocess(config, sockets=[listener])
        with refresher.running(options.refresh_seconds):
            supervisor.run()
        if any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes):
            raise CrossfadeError("a process of the server could not start; its error is above")


def _process_options(processes: int) -> dict[str, Any]:
    """Return uvicorn's options for ``processes`` processes, and divide the cores among them."""
    for variable in _THREAD_VARIABLES:
        os.environ.setdefault(variable, str(max(1, usable_cores() // processes)))
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
        raise write_error(f"--work-dir {place}", error, place) from error
    try:
        # The client of Prometheus maps its files into memory, and a process that writes such a page to a full disk is
        # killed by SIGBUS.
        if folder.free_bytes() < _METRICS_BYTES:
            raise full_work_disk_error(folder.path)
        (folder.path / _METRICS).mkdir()
        yield folder.path
    finally:
        folder.delete()
