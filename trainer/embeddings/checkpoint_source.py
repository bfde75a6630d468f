"""Find a checkpoint by the path or URI of a run, of a folder of checkpoints, or of the checkpoint, and its dataset.

source = locate_checkpoint("runs/lastfm")
NewestCheckpoint(source, print).open().manifest.step
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from crossfade.base.errors import CheckpointError, InputError, Option, StorageUnavailableError, command
from crossfade.base.io.folder import Folder
from crossfade.base.text import counted
from crossfade.kvstore.checkpoint.checkpoint import Checkpoint, open_checkpoint
from crossfade.kvstore.checkpoint.format import MANIFEST_NAME
from crossfade.kvstore.checkpoint.lifecycle import latest_checkpoint
from crossfade.trainer.config.loading import check_job
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.data.manifest import FILE_NAME as DATA_MANIFEST
from crossfade.trainer.data.manifest import VOCABULARY, DatasetManifest, data_fingerprint, read_manifest
from crossfade.trainer.runs.run_folder import JOB_FILE, RunFolder, similar_run

_EXPECTED = "expected a run folder, a folder of checkpoints, or a checkpoint such as checkpoints/step-000000123"

Log = Callable[[str], None]
"""Writes one line to the log."""
Result = TypeVar("Result")


@dataclass(frozen=True)
class CheckpointSource:
    """A checkpoint, or a folder of which the newest is used.

    Attributes:
        uri: of the checkpoint or folder.
        is_folder: whether it is a folder.
    """

    uri: str
    is_folder: bool


def locate_checkpoint(text: str) -> CheckpointSource:
    """Find the checkpoints that ``text``, a path or URI, names.

    Raises:
        InputError: there are none.
    """
    folder = Folder(text)
    try:
        names = folder.names()
    except NotADirectoryError as error:
        raise InputError(f"{text}: is a file; {_EXPECTED}") from error
    if not names:
        near = "" if "://" in text else similar_run(Path(text))
        raise InputError(f"{text}: no such folder, or an empty one{near or f'; {_EXPECTED}'}")
    if VOCABULARY in names:
        raise InputError(f"{text}: is a dataset; {_EXPECTED}")
    if MANIFEST_NAME in names or folder.name.startswith("step-"):
        return CheckpointSource(folder.uri, is_folder=False)
    if JOB_FILE not in names:
        return CheckpointSource(folder.uri, is_folder=True)
    if "://" in text:
        return CheckpointSource(folder.child("checkpoints").uri, is_folder=True)
    run = RunFolder(Path(text))
    return CheckpointSource(run.checkpoints(run.job()), is_folder=True)


class NewestCheckpoint:
    """Opens the newest complete checkpoint of a source, and an older one when that turns out to be corrupt."""

    def __init__(self, source: CheckpointSource, log: Log) -> None:
        """Open checkpoints of ``source``; ``log`` gets a line for each that is skipped."""
        self._source, self._log = source, log
        self._rejected: set[str] = set()
        self._logged: set[str] = set()

    def open(self) -> Checkpoint:
        """Open the newest checkpoint that was not rejected; log once why newer ones are skipped.

        Raises:
            CheckpointError: it is corrupt, or storage does not answer.
            InputError: there is none, or every one is corrupt.
        """
        source = self._source
        if not source.is_folder:
            return open_checkpoint(source.uri)
        checkpoint, reasons = latest_checkpoint(source.uri, self._rejected)
        for reason in reasons:
            if reason not in self._logged and not any(reason.startswith(f"{uri}:") for uri in self._rejected):
                self._logged.add(reason)
                self._log(f"skipped a checkpoint: {reason}")
        if checkpoint is not None:
            return checkpoint
        if reasons:
            raise InputError(f"{source.uri}: none of its {counted(len(reasons), 'checkpoint')} is complete")
        raise InputError(f"{source.uri}: holds no checkpoint; {_EXPECTED}")

    def reject(self, checkpoint: Checkpoint, error: CheckpointError) -> None:
        """Skip ``checkpoint`` from now on, if ``error`` is that it is corrupt and there may be others.

        Raises:
            CheckpointError: it is not; this is ``error``.
        """
        if not self._source.is_folder or error.checkpoint != checkpoint.uri:
            raise error
        self._log(f"skipped a checkpoint: {error}")
        self._rejected.add(checkpoint.uri)


def job_of(checkpoint: Checkpoint) -> JobConfig:
    """Return the job of the run that wrote ``checkpoint``.

    Raises:
        InputError: no training wrote it.
    """
    return check_job(_record(checkpoint, "job"), checkpoint.uri)


def _record(checkpoint: Checkpoint, key: str) -> Any:
    try:
        return checkpoint.manifest.training[key]
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{checkpoint.uri}: has no record of its dataset; expected a checkpoint that {command('train')} wrote"
        ) from error


def open_dataset_of(checkpoint: Checkpoint, data: Folder) -> DatasetManifest:
    """Read the manifest of the dataset that ``checkpoint`` was trained on, which has the IDs of its rows.

    Raises:
        InputError: there is no dataset in ``data``, or another one.
    """
    fix = ("name the dataset that the checkpoint was trained on, which has the IDs, with ", Option("data"))
    fingerprint = _record(checkpoint, "data")
    try:
        if not data.exists(DATA_MANIFEST):
            raise InputError(f"{data.uri}: is not a dataset; ", fix)
        manifest = read_manifest(data)
    except StorageUnavailableError as error:
        raise InputError(*error.args) from error
    except OSError as error:
        raise InputError(str(error)) from error
    for table in checkpoint.manifest.tables:
        rows = manifest.entities[table.name].rows if table.name in manifest.entities else 0
        if rows != table.rows:
            raise InputError(
                f"{data.uri}: its vocabulary of '{table.name}' has {rows:,} rows, but the table in {checkpoint.uri} "
                f"has {table.rows:,}; ",
                fix,
            )
    if fingerprint != data_fingerprint(data):
        raise InputError(
            f"{data.uri}: is another dataset than {checkpoint.uri} was trained on, or was prepared again; ", fix
        )
    return manifest
