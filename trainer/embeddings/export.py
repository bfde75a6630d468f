"""Embeddings from a checkpoint, as a run would have written them then: one table after another, in pieces.

    exported = export(Request("runs/lastfm", out=Path("embeddings")), say=print, progress=Silent())

All of a table's files are read to their end, so damage is found by their CRC-32 before anything is put into its place.
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


@dataclass(frozen=True)
class Request:
    """What to export: from ``source``, a path or URI, the tables ``entities`` (all, if there are none) to ``out``.

    ``data`` is where the data are that the checkpoint was trained on, if not where its job says.
    """

    source: str
    out: Path | None = None
    entities: Sequence[str] = ()
    data: str | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Exported:
    """What was exported, and where from."""

    out: Path
    checkpoint: str
    step: int
    job: str
    tables: Sequence[TableSpec]


@dataclass(frozen=True)
class _Source:
    """One checkpoint, or a folder of which the newest is meant; and where it is exported to if nobody says."""

    uri: str
    is_folder: bool
    out: Path | None = None


class CheckpointVectors:
    """The vectors that a checkpoint holds, for whoever takes them from front to back.

    Where ``towers`` make them of the values of features, those come in any order: their tables are copied to files
    below ``work`` that have no names, which the operating system pages.
    """

    def __init__(self, checkpoint: Checkpoint, progress: ProgressReporter, towers: Towers, work: Path) -> None:
        """Read from ``checkpoint``, and tell ``progress`` the rows."""
        self._checkpoint = checkpoint
        self._progress = progress
        self._towers = towers
        self._work = work
        self._copies: dict[str, FloatArray] = {}

    def prepare(self, entity: str) -> None:
        """Copy the tables of features that vectors of ``entity`` are made of."""
        of = self._towers.of(entity)
        for table in of.tower.features if of else ():
            if table.name not in self._copies:
                self._copies[table.name] = self._copy(table)

    def _copy(self, table: TableSpec) -> FloatArray:
        with tempfile.TemporaryFile(dir=self._work) as file:
            copy = np.memmap(file, dtype=np.float32, mode="w+", shape=(table.rows, table.dim))
        self._progress.phase(f"read {table.name}", table.rows, "row")
        for start in range(0, table.rows, GROUP_ROWS):
            stop = min(start + GROUP_ROWS, table.rows)
            copy[start:stop] = self._checkpoint.weights(table.name, start, stop)
            self._progress.advance(stop - start)
        return copy

    def vectors(self, entity: str, rows_N: IntArray) -> FloatArray:
        """Vectors of ``rows_N``, which are consecutive."""
        start, stop = int(rows_N[0]), int(rows_N[-1]) + 1
        assert stop - start == len(rows_N)
        self._progress.advance(len(rows_N))
        of = self._towers.of(entity)
        if of is None:
            return self._towers.dense.apply(entity, self._checkpoint.weights(entity, start, stop))
        inputs = of.inputs(rows_N)
        block = {name: self._copies[name][bag.values.rows_A] for name, bag in inputs.bags.items()}
        if of.tower.id_table is not None:
            block[entity] = self._checkpoint.weights(entity, start, stop)[inputs.uses_id_A]
        return self._towers.dense.apply(entity, inputs.combine(of.tower, block))


def export(request: Request, say: Log, progress: ProgressReporter) -> Exported:
    """Write the embeddings that ``request`` asks for; ``say`` gets a line for the checkpoint and each passed over.

    Raises:
        CheckpointError: the checkpoint, or every one of the folder, is damaged or cannot be read.
        InputError: something else than checkpoints, or the data, or what is at ``out``, is not what was expected.
    """
    source = _locate(request.source)
    out = request.out or source.out
    if out is None:
        raise InputError(
            f"{request.source}: name with --out a new folder for the embeddings; only a run whose job says "
            "train.save_embeddings: none gets them in its own"
        )
    _check_free(out, request.overwrite)
    refused: set[str] = set()
    said: set[str] = set()
    while True:
        checkpoint = _open(source, refused, said, say)
        try:
            with closing(checkpoint):
                return _export(checkpoint, request, out, say, progress)
        except CheckpointError as error:
            if not source.is_folder or error.checkpoint != checkpoint.uri:
                raise
            say(f"skipped a checkpoint: {error}")
            refused.add(checkpoint.uri)


def _locate(text: str) -> _Source:
    """What ``text`` names.

    Raises:
        InputError: nothing with checkpoints.
    """
    folder = Folder(text)
    try:
        names = folder.names()
    except NotADirectoryError as error:
        raise InputError(f"{text}: is a file; {_EXPECTED}") from error
    if not names:
        raise InputError(f"{text}: there is no such folder, or nothing in it; {_EXPECTED}")
    if VOCABULARY in names:
        raise InputError(f"{text}: holds prepared data; {_EXPECTED}")
    if MANIFEST_NAME in names or folder.name.startswith("step-"):
        return _Source(folder.uri, is_folder=False)
    if JOB_FILE not in names:
        return _Source(folder.uri, is_folder=True)
    if "://" in text:
        return _Source(folder.child("checkpoints").uri, is_folder=True)
    run = RunFolder(Path(text))
    job = run.job()
    # A run that writes embeddings itself keeps those: they are the ones that its report speaks of.
    return _Source(
        run.checkpoints(job), is_folder=True, out=run.embeddings if job.train.save_embeddings == "none" else None
    )


def _open(source: _Source, refused: set[str], said: set[str], say: Log) -> Checkpoint:
    """The checkpoint that ``source`` names; why newer ones are passed over is said once.

    Raises:
        CheckpointError: it is damaged, or every one is.
        InputError: there is none.
    """
    if not source.is_folder:
        return open_checkpoint(source.uri)
    checkpoint, reasons = latest_checkpoint(source.uri, refused)
    for reason in reasons:
        if reason not in said and not any(reason.startswith(f"{uri}:") for uri in refused):
            said.add(reason)
            say(f"skipped a checkpoint: {reason}")
    if checkpoint is not None:
        return checkpoint
    if reasons:
        raise CheckpointError(f"{source.uri}: none of its {len(reasons)} checkpoint(s) is whole")
    raise InputError(f"{source.uri}: there is no checkpoint in it; {_EXPECTED}")


def _export(checkpoint: Checkpoint, request: Request, out: Path, say: Log, progress: ProgressReporter) -> Exported:
    origin = _Origin.of(checkpoint)
    data = Folder(request.data or origin.job.data.path)
    manifest = _data_of(checkpoint, origin, data)
    model = make_model(origin.job, manifest)
    tables = _tables(checkpoint, model, request.entities)
    say(f"exporting {checkpoint.uri}: step {checkpoint.manifest.step:,} of job '{origin.job.name}'")
    with _staged(out, request.overwrite) as staging:
        towers = load_towers(origin.job, model, data, manifest)
        towers.dense.load(checkpoint)
        source = CheckpointVectors(checkpoint, progress, towers, staging.parent)
        for table in tables:
            source.prepare(table.name)
            progress.phase(table.name, table.rows, "row")
            write_table(staging, source, table, Vocabulary(data, manifest, table.name))
    return Exported(out, checkpoint.uri, checkpoint.manifest.step, origin.job.name, tables)


@dataclass(frozen=True)
class _Origin:
    """What a checkpoint says of the run that wrote it: its job, and how its data are known."""

    job: JobConfig
    fingerprint: int

    @staticmethod
    def of(checkpoint: Checkpoint) -> _Origin:
        training = checkpoint.manifest.training
        try:
            values, fingerprint = training["job"], training["data"]
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{checkpoint.uri}: does not say what data it was trained on; expected one that 'crossfade train' wrote"
            ) from error
        return _Origin(check_job(values, checkpoint.uri), fingerprint)


def _tables(checkpoint: Checkpoint, model: ModelSpec, entities: Sequence[str]) -> list[TableSpec]:
    """Those of the vectors of ``model`` that ``entities`` names, or all."""
    own = {table.name: table for table in checkpoint.manifest.tables}
    held = {table.name: own.get(table.name, table) for table in model.vectors}
    for name in entities:
        if name not in held:
            raise InputError(f"{checkpoint.uri}: has no table '{name}'; it has {', '.join(held)}")
    return [table for name, table in held.items() if name in entities or not entities]


def _data_of(checkpoint: Checkpoint, origin: _Origin, data: Folder) -> DatasetManifest:
    """The manifest of ``data``, which must be what the checkpoint was trained on: rows get their ids from there.

    Raises:
        InputError: there are no data, or others.
    """
    mend = "name the folder where the data are that the checkpoint was trained on with --data: ids come from there"
    try:
        if not data.exists(DATA_MANIFEST):
            raise InputError(f"{data.uri}: holds no prepared data; {mend}")
        manifest = read_manifest(data)
    except (OSError, StorageUnavailableError) as error:
        raise InputError(str(error)) from error
    for table in checkpoint.manifest.tables:
        rows = manifest.entities[table.name].rows if table.name in manifest.entities else 0
        if rows != table.rows:
            raise InputError(
                f"{data.uri}: its vocabulary of '{table.name}' has {rows:,} rows, but the table in {checkpoint.uri} "
                f"has {table.rows:,}; {mend}"
            )
    if data_fingerprint(data) != origin.fingerprint:
        raise InputError(
            f"{data.uri}: holds other data than {checkpoint.uri} was trained on, such as data that were prepared again"
            f"; {mend}"
        )
    return manifest


def _check_free(out: Path, overwrite: bool) -> None:
    """Refuse an ``out`` that exists, unless ``overwrite`` is given and it holds embeddings and nothing else.

    Raises:
        InputError: it may not be replaced.
    """
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise InputError(f"{out}: exists already; choose another --out, or replace embeddings with --overwrite")
    if out.is_symlink() or not out.is_dir():
        raise InputError(f"{out}: is not a folder of embeddings, so --overwrite leaves it alone; choose another --out")
    for path in sorted(out.iterdir()):
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        foreign = [file for file in files if path == file or not _EMBEDDINGS_FILE.fullmatch(file.name)]
        if foreign:
            raise InputError(f"{foreign[0]}: --overwrite would delete it, and it is no file of embeddings; move it")


@contextmanager
def _staged(out: Path, overwrite: bool) -> Iterator[Path]:
    """A folder beside ``out`` that becomes ``out`` when the block ends well, and vanishes when it does not.

    Raises:
        CrossfadeError: it cannot be written to its end.
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
        # Of writing: what goes wrong with reading has been said to be of the checkpoint or of the data.
        raise CrossfadeError(f"{out}: could not be written: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
