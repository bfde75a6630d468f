"""Export embeddings from a checkpoint, exactly as the run would have written them at that step.

    result = export(ExportRequest("runs/lastfm", out=Path("embeddings")), log=print, reporter=NullReporter())
    result.step, result.tables

Tables are exported one after another, in parts. All of a table's files are read to their end, so corruption is detected
by their CRC-32 before anything is moved into place.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvstore.arrays import FloatArray, IntArray
from kvstore.checkpoint.files import MANIFEST_NAME
from kvstore.checkpoint.lifecycle import latest_checkpoint
from kvstore.checkpoint.reader import Checkpoint, open_checkpoint
from kvstore.errors import CheckpointError, CrossfadeError, InputError, StorageUnavailableError
from kvstore.io.folder import Folder
from kvstore.store import TableSpec
from trainer.config.loading import check_job
from trainer.config.schema import JobConfig
from trainer.data.manifest import FILE_NAME as DATA_MANIFEST
from trainer.data.manifest import VOCABULARY, DatasetManifest, data_fingerprint, read_manifest
from trainer.data.reporter import ProgressReporter
from trainer.data.vocabulary import Vocabulary
from trainer.embeddings.files import GROUP_ROWS, replace_folder, write_table
from trainer.model.spec import ModelSpec, make_model
from trainer.model.towers import Towers, load_towers
from trainer.runs.folder import JOB_FILE, RunFolder

_EXPECTED = "expected a run folder, a folder of checkpoints, or a checkpoint such as checkpoints/step-000000123"
_EMBEDDINGS_FILE = re.compile(r"rows-\d{12,}\.parquet")

Log = Callable[[str], None]
"""Writes one line to the log."""


@dataclass(frozen=True)
class ExportRequest:
    """What to export.

    Attributes:
        source: path or URI of a run folder, of a folder of checkpoints, or of a checkpoint.
        out: the folder to write; None: that of the run, if its job writes no embeddings itself.
        entities: whose vectors to export; empty: all.
        data: the dataset that the checkpoint was trained on, if it is not at the job's data.path.
        overwrite: whether to replace embeddings at ``out``.
    """

    source: str
    out: Path | None = None
    entities: Sequence[str] = ()
    data: str | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class ExportResult:
    """What was exported, and from which checkpoint."""

    out: Path
    checkpoint: str
    step: int
    job: str
    tables: Sequence[TableSpec]


@dataclass(frozen=True)
class _Source:
    """A checkpoint, or a folder of which the newest is used; ``out`` is the default output."""

    uri: str
    is_folder: bool
    out: Path | None = None


class CheckpointVectors:
    """Provides the vectors of a checkpoint, for sequential access.

    The embeddings of features are accessed in random order, so their tables are first copied to unnamed files in
    ``scratch``, which the operating system pages.
    """

    def __init__(self, checkpoint: Checkpoint, reporter: ProgressReporter, towers: Towers, scratch: Path) -> None:
        """Read from ``checkpoint`` and combine by ``towers``; report rows to ``reporter``."""
        self._checkpoint = checkpoint
        self._reporter = reporter
        self._towers = towers
        self._scratch = scratch
        self._copies: dict[str, FloatArray] = {}

    def prepare(self, entity: str) -> None:
        """Copy the tables of the features of ``entity``."""
        of = self._towers.of(entity)
        for table in of.tower.features if of else ():
            if table.name not in self._copies:
                self._copies[table.name] = self._copy(table)

    def _copy(self, table: TableSpec) -> FloatArray:
        with tempfile.TemporaryFile(dir=self._scratch) as file:
            copy = np.memmap(file, dtype=np.float32, mode="w+", shape=(table.rows, table.dim))
        self._reporter.phase(f"read {table.name}", table.rows, "row")
        for start in range(0, table.rows, GROUP_ROWS):
            stop = min(start + GROUP_ROWS, table.rows)
            copy[start:stop] = self._checkpoint.weights(table.name, start, stop)
            self._reporter.advance(stop - start)
        return copy

    def vectors(self, entity: str, rows_N: IntArray) -> FloatArray:
        """Return the vectors of ``rows_N``, which must be consecutive: float32 (N, D)."""
        start, stop = int(rows_N[0]), int(rows_N[-1]) + 1
        assert stop - start == len(rows_N)
        self._reporter.advance(len(rows_N))
        of = self._towers.of(entity)
        if of is None:
            return self._towers.dense.apply(entity, self._checkpoint.weights(entity, start, stop))
        inputs = of.inputs(rows_N)
        block = {name: self._copies[name][bag.values.rows_A] for name, bag in inputs.bags.items()}
        if of.tower.id_table is not None:
            block[entity] = self._checkpoint.weights(entity, start, stop)[inputs.uses_id_A]
        return self._towers.dense.apply(entity, inputs.combine(of.tower, block))


def export(request: ExportRequest, log: Log, reporter: ProgressReporter) -> ExportResult:
    """Export the embeddings of ``request``; ``log`` gets a line for the checkpoint and for each that is skipped.

    Raises:
        CheckpointError: the checkpoint, or every one of the folder, is corrupt or cannot be read.
        InputError: the source has no checkpoints, the dataset is another one, or ``out`` may not be replaced.
    """
    source = _locate(request.source)
    out = request.out or source.out
    if out is None:
        raise InputError(
            f"{request.source}: name a new folder for the embeddings with --out; only a run with "
            "train.save_embeddings: none is exported to its own folder"
        )
    _check_free(out, request.overwrite)
    rejected: set[str] = set()
    logged: set[str] = set()
    while True:
        checkpoint = _open(source, rejected, logged, log)
        try:
            with closing(checkpoint):
                return _export(checkpoint, request, out, log, reporter)
        except CheckpointError as error:
            if not source.is_folder or error.checkpoint != checkpoint.uri:
                raise
            log(f"skipped a checkpoint: {error}")
            rejected.add(checkpoint.uri)


def _locate(text: str) -> _Source:
    """Find the checkpoints that ``text`` names.

    Raises:
        InputError: there are none.
    """
    folder = Folder(text)
    try:
        names = folder.names()
    except NotADirectoryError as error:
        raise InputError(f"{text}: is a file; {_EXPECTED}") from error
    if not names:
        raise InputError(f"{text}: no such folder, or an empty one; {_EXPECTED}")
    if VOCABULARY in names:
        raise InputError(f"{text}: is a dataset; {_EXPECTED}")
    if MANIFEST_NAME in names or folder.name.startswith("step-"):
        return _Source(folder.uri, is_folder=False)
    if JOB_FILE not in names:
        return _Source(folder.uri, is_folder=True)
    if "://" in text:
        return _Source(folder.child("checkpoints").uri, is_folder=True)
    run = RunFolder(Path(text))
    job = run.job()
    # A run that writes embeddings itself keeps them, since its report describes those.
    return _Source(
        run.checkpoints(job), is_folder=True, out=run.embeddings if job.train.save_embeddings == "none" else None
    )


def _open(source: _Source, rejected: set[str], logged: set[str], log: Log) -> Checkpoint:
    """Open the checkpoint of ``source``; log once why newer ones are skipped.

    Raises:
        CheckpointError: it is corrupt, or every one is.
        InputError: there is none.
    """
    if not source.is_folder:
        return open_checkpoint(source.uri)
    checkpoint, reasons = latest_checkpoint(source.uri, rejected)
    for reason in reasons:
        if reason not in logged and not any(reason.startswith(f"{uri}:") for uri in rejected):
            logged.add(reason)
            log(f"skipped a checkpoint: {reason}")
    if checkpoint is not None:
        return checkpoint
    if reasons:
        raise CheckpointError(f"{source.uri}: none of its {len(reasons)} checkpoint(s) is complete")
    raise InputError(f"{source.uri}: holds no checkpoint; {_EXPECTED}")


def _export(
    checkpoint: Checkpoint, request: ExportRequest, out: Path, log: Log, reporter: ProgressReporter
) -> ExportResult:
    origin = _Origin.of(checkpoint)
    data = Folder(request.data or origin.job.data.path)
    manifest = _open_dataset(checkpoint, origin, data)
    model = make_model(origin.job, manifest)
    tables = _tables(checkpoint, model, request.entities)
    log(f"exporting {checkpoint.uri}: step {checkpoint.manifest.step:,} of job '{origin.job.name}'")
    with _staged(out, request.overwrite) as staging:
        towers = load_towers(origin.job, model, data, manifest)
        towers.dense.load(checkpoint)
        source = CheckpointVectors(checkpoint, reporter, towers, staging.parent)
        for table in tables:
            source.prepare(table.name)
            reporter.phase(table.name, table.rows, "row")
            write_table(staging, source, table, Vocabulary(data, manifest, table.name))
    return ExportResult(out, checkpoint.uri, checkpoint.manifest.step, origin.job.name, tables)


@dataclass(frozen=True)
class _Origin:
    """The run that wrote a checkpoint: its job, and the fingerprint of its dataset."""

    job: JobConfig
    fingerprint: int

    @staticmethod
    def of(checkpoint: Checkpoint) -> _Origin:
        training = checkpoint.manifest.training
        try:
            values, fingerprint = training["job"], training["data"]
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{checkpoint.uri}: has no record of its dataset; expected a checkpoint that 'crossfade train' wrote"
            ) from error
        return _Origin(check_job(values, checkpoint.uri), fingerprint)


def _tables(checkpoint: Checkpoint, model: ModelSpec, entities: Sequence[str]) -> list[TableSpec]:
    """Select the tables of ``model``'s vectors by ``entities``; empty: all."""
    stored = {table.name: table for table in checkpoint.manifest.tables}
    available = {table.name: stored.get(table.name, table) for table in model.vectors}
    for name in entities:
        if name not in available:
            raise InputError(f"{checkpoint.uri}: has no table '{name}'; it has {', '.join(available)}")
    return [table for name, table in available.items() if name in entities or not entities]


def _open_dataset(checkpoint: Checkpoint, origin: _Origin, data: Folder) -> DatasetManifest:
    """Read the manifest of the dataset that the checkpoint was trained on, which has the IDs of its rows.

    Raises:
        InputError: there is no dataset, or another one.
    """
    fix = "name the dataset that the checkpoint was trained on, which has the IDs, with --data"
    try:
        if not data.exists(DATA_MANIFEST):
            raise InputError(f"{data.uri}: is not a dataset; {fix}")
        manifest = read_manifest(data)
    except (OSError, StorageUnavailableError) as error:
        raise InputError(str(error)) from error
    for table in checkpoint.manifest.tables:
        rows = manifest.entities[table.name].rows if table.name in manifest.entities else 0
        if rows != table.rows:
            raise InputError(
                f"{data.uri}: its vocabulary of '{table.name}' has {rows:,} rows, but the table in {checkpoint.uri} "
                f"has {table.rows:,}; {fix}"
            )
    if data_fingerprint(data) != origin.fingerprint:
        raise InputError(
            f"{data.uri}: is another dataset than {checkpoint.uri} was trained on, or was prepared again; {fix}"
        )
    return manifest


def _check_free(out: Path, overwrite: bool) -> None:
    """Reject an existing ``out``, unless ``overwrite`` is given and it holds nothing but embeddings.

    Raises:
        InputError: it may not be replaced.
    """
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise InputError(f"{out}: already exists; choose another --out, or replace embeddings with --overwrite")
    if out.is_symlink() or not out.is_dir():
        raise InputError(
            f"{out}: is not a folder of embeddings, so --overwrite does not replace it; choose another --out"
        )
    for path in sorted(out.iterdir()):
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        foreign = [file for file in files if path == file or not _EMBEDDINGS_FILE.fullmatch(file.name)]
        if foreign:
            raise InputError(
                f"{foreign[0]}: --overwrite would delete this file, which is not one of embeddings; move it"
            )


@contextmanager
def _staged(out: Path, overwrite: bool) -> Iterator[Path]:
    """Create a folder next to ``out`` that replaces it when the block succeeds, and is deleted when it fails.

    Raises:
        CrossfadeError: writing fails.
        InputError: ``out`` may not be replaced, or its parent cannot be written.
    """
    out = out.absolute()
    staging = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{out.parent}: cannot be written: {error.strerror}; choose another --out") from error
    try:
        yield staging
        _check_free(out, overwrite)
        replace_folder(out, staging)
    except OSError as error:
        # An error of writing: errors of reading have been turned into those of the checkpoint or the dataset.
        raise CrossfadeError(f"{out}: could not be written: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
