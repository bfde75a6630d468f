"""Write a run as an event file of TensorBoard, with the package ``tensorboard`` and without TensorFlow.

A run that resumes adds a file. The reader drops the steps of earlier files that the new one repeats.
"""

from __future__ import annotations

import io
import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.tracking.background import TrackingError
from crossfade.trainer.tracking.records import Point, Record, report_point

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event


class TensorBoardFile:
    """An event file in ``folder`` for a run of ``job`` with the ID ``run_id``."""

    def __init__(self, folder: Path, job: JobConfig, run_id: str) -> None:
        self.name = f"tracking.tensorboard: {folder}"
        self._folder, self._job, self._run_id = folder, job, run_id
        self._file: BinaryIO | None = None
        # Now, since importing takes the interpreter's lock, which would delay steps later.
        import tensorboard.plugins.hparams.summary_v2  # noqa: F401

    def start(self) -> None:
        """Create the file, with the job as hyperparameters."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb

        now = time.time()
        if self._file is None:
            name = f"events.out.tfevents.{int(now)}.{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}"
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._file = (self._folder / name).open("xb", buffering=0)
            except OSError as error:
                raise TrackingError(f"cannot be written: {error.strerror}", temporary=True) from error
        values = {key: value if _is_plain(value) else json.dumps(value) for key, value in self._job.values().items()}
        hyperparameters = hparams_pb(values, trial_id=self._run_id, start_time_secs=now)
        self._append(
            Event(wall_time=now, file_version="brain.Event:2"),
            Event(wall_time=now, summary=hyperparameters),
        )

    def write(self, records: Sequence[Record]) -> None:
        """Append the records."""
        self._append(*map(_event, records))

    def finish(self, state: str, report: Mapping[str, Any] | None) -> None:
        """Append the report and close the file; TensorBoard has no state of runs."""
        assert self._file is not None, "not started"
        if report is not None:
            self._append(_event(report_point(report, time.time())))
        self._file.close()

    def _append(self, *events: Event) -> None:
        """Write ``events`` completely or, on a full disk, none of them."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        assert self._file is not None, "not started"
        buffer = io.BytesIO()
        writer = RecordWriter(buffer)
        for event in events:
            writer.write(event.SerializeToString())
        end = self._file.tell()
        try:
            if self._file.write(buffer.getbuffer()) < buffer.tell():
                raise OSError(None, "the disk is full")
        except OSError as error:
            self._file.truncate(end)
            self._file.seek(end)
            raise TrackingError(f"cannot be written: {error.strerror}", temporary=True) from error


def _is_plain(value: object) -> bool:
    return isinstance(value, bool | int | float | str)


def _event(record: Record) -> Event:
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary

    if isinstance(record, Point):
        values = [Summary.Value(tag=name, simple_value=value) for name, value in record.values.items()]
        return Event(wall_time=record.time, step=record.step, summary=Summary(value=values))
    # The reader drops what earlier files have from this step on.
    return Event(wall_time=record.time, step=record.step + 1, session_log=SessionLog(status=SessionLog.START))
