"""Track a run: pass its events on to the destinations that the job names.

tracker = open_tracker(job, folder, log)
tracker.take(event)                   # for each event; returns at once
tracker.end("done", report)           # returns when everything is sent, after seconds at most
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from crossfade.base.errors import MissingExtraError
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.runs.events import Event
from crossfade.trainer.runs.run_folder import RunFolder
from crossfade.trainer.tracking.background import BackgroundSender, Destination
from crossfade.trainer.tracking.mlflow_run import MlflowRun
from crossfade.trainer.tracking.records import EventRecords
from crossfade.trainer.tracking.tensorboard_file import TensorBoardFile


class RunTracker:
    """Sends the events of a run to some destinations, which may be none."""

    def __init__(self, destinations: Sequence[Destination], log: Callable[[str], None]) -> None:
        self._senders = [BackgroundSender(destination, log) for destination in destinations]
        self._records = EventRecords()

    def take(self, event: Event) -> None:
        """Send what is to be recorded of ``event``; this returns at once."""
        if self._senders and (record := self._records.of(event, time.time())) is not None:
            for sender in self._senders:
                sender.put(record)

    def end(self, state: str, report: Mapping[str, Any] | None = None) -> None:
        """Send the end of the run, which is ``done``, ``stopped`` or ``failed``, and its report if it is done."""
        for sender in self._senders:
            sender.end(state, report)
        for sender in self._senders:
            sender.wait()


def check_tracking(job: JobConfig) -> None:
    """Check that what the tracking of ``job`` needs is installed.

    Raises:
        MissingExtraError: a package is missing.
    """
    if job.tracking.mlflow is not None and find_spec("mlflow") is None:
        raise MissingExtraError("mlflow-skinny", extra="mlflow", purpose="tracking.mlflow")
    if job.tracking.tensorboard is not False and find_spec("tensorboard") is None:
        raise MissingExtraError("tensorboard", extra="tensorboard", purpose="tracking.tensorboard")


def open_tracker(job: JobConfig, folder: RunFolder, log: Callable[[str], None]) -> RunTracker:
    """Open the tracker of a run of ``job`` in ``folder``; ``log`` receives a line when a destination fails."""
    return RunTracker(list(_destinations(job, folder)), log)


def _destinations(job: JobConfig, folder: RunFolder) -> Iterator[Destination]:
    if job.tracking.mlflow is not None:
        yield MlflowRun(job, folder)
    match job.tracking.tensorboard:
        case True:
            yield TensorBoardFile(folder.tensorboard, job, folder.run_id())
        case str(path):
            yield TensorBoardFile(Path(path) / f"{job.name}-{folder.run_id()}", job, folder.run_id())
