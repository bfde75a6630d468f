"""Export a trained model as embeddings, in the format of another system, or to a database.

    result = export(ExportOptions.of(source="runs/lastfm", to="numpy", out="exports/lastfm"), print, NullReporter())

    OUT/embeddings.json     files and checksums (embeddings/listing.py), if the format is Parquet
    OUT/ENTITY/...          the files of the format

Parquet has the vectors of a checkpoint, exactly as the run would have written them at that step. The other formats have
those that ``crossfade recommend`` uses: the embeddings of a run if it has written any, otherwise the newest complete
checkpoint. They are read in blocks to their end, so corruption is detected before anything is moved into place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from crossfade.base.errors import InputError
from crossfade.base.io.regular_files import read_below
from crossfade.base.io.replacing import check_replaceable
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.embeddings.checkpoint_source import Log
from crossfade.trainer.embeddings.files import staged_export
from crossfade.trainer.embeddings.listing import LISTING_FILE, is_listing
from crossfade.trainer.formats import arrays, databases, mlflow_model
from crossfade.trainer.formats.exported_model import ExportedModel, ExportedTable
from crossfade.trainer.formats.options import DATABASES, ExportOptions, FormatName
from crossfade.trainer.formats.push import push
from crossfade.trainer.recommend.trained_model import TrainedModel, with_trained_model

_OWN_FILE = re.compile(r"[^/]+/(rows-\d{12,}\.parquet|rows\.parquet|vectors\.npy|vectors\.safetensors)")
_WRITERS: dict[FormatName, Callable[[ExportedModel, Path], object]] = {
    "parquet": arrays.write_parquet,
    "numpy": arrays.write_numpy,
    "safetensors": arrays.write_safetensors,
    "mlflow": mlflow_model.write,
}


@dataclass(frozen=True)
class ExportResult:
    """What was exported.

    Attributes:
        target: the folder, or the server and database.
        model: the embeddings or the checkpoint that were read.
        step: the step of the checkpoint; None for embeddings of a run.
        job: the name of the job.
        to: the format.
        score: what compares the vectors.
        tables: the rows.
        names: the tables, collections, or indexes of each entity in a database.
    """

    target: str
    model: str
    step: int | None
    job: str
    to: FormatName
    score: str
    tables: Sequence[ExportedTable]
    names: dict[str, str] = field(default_factory=dict)


def export(options: ExportOptions, log: Log, reporter: ProgressReporter) -> ExportResult:
    """Export to files, or to the database or tracking server at ``push``.

    ``log`` gets a line for the model and for each checkpoint that is skipped.

    Raises:
        CheckpointError: a checkpoint is corrupt or cannot be read.
        CrossfadeError: a file cannot be written, or the server failed or was lost.
        InputError: there is no model, its dataset is another one, the folder may not be replaced, or the server rejects
            a request.
        MissingExtraError: a package that the format needs is not installed.
    """
    if options.to == "mlflow":
        mlflow_model.check(options.push)
    if options.push is None:
        return _export_files(options, log, reporter)
    if options.to == "mlflow":

        def register(exported: ExportedModel) -> ExportResult:
            name = options.name or exported.model.job.name
            return _result(exported, options.to, mlflow_model.write(exported, None, name))

        return _export(options, log, reporter, register)
    with closing(databases.connect(options.to, options.push)) as database:

        def write(exported: ExportedModel) -> ExportResult:
            names = push(exported, database, options.name or exported.model.job.name, log)
            return replace(_result(exported, options.to, database.place), names=names)

        return _export(options, log, reporter, write)


def _export_files(options: ExportOptions, log: Log, reporter: ProgressReporter) -> ExportResult:
    assert options.out is not None
    target = Path(options.out)

    def check_free() -> None:
        check_replaceable(target, options.overwrite, "an export", lambda: _find_foreign(target))

    def write(exported: ExportedModel) -> ExportResult:
        with staged_export(target, check_free) as staging:
            _WRITERS[options.to](exported, staging)
        return _result(exported, options.to, str(target))

    check_free()
    return _export(options, log, reporter, write)


def _export(
    options: ExportOptions,
    log: Log,
    reporter: ProgressReporter,
    write: Callable[[ExportedModel], ExportResult],
) -> ExportResult:
    def use(model: TrainedModel) -> ExportResult:
        model = _with_popularity(model, options, log)
        log(f"exporting {model.uri} of job '{model.job.name}'")
        return write(ExportedModel(model, _tables(model, options), datetime.now(UTC), reporter))

    return with_trained_model(options, log, use, from_checkpoint=options.to == "parquet")


def _result(exported: ExportedModel, to: FormatName, target: str) -> ExportResult:
    model = exported.model
    tables = exported.exported_tables(complete=to not in DATABASES)
    return ExportResult(target, model.uri, model.step, model.job.name, to, model.job.model.score, tables)


def _with_popularity(model: TrainedModel, options: ExportOptions, log: Log) -> TrainedModel:
    """Return ``model`` with the popularity term as a column of its vectors, if the format can have it."""
    if model.popularity is None or options.to == "mlflow":
        return model
    if options.to != "s3-vectors" and not model.spec.context:  # queries add the vectors of their context
        return model.ranking_model()
    reason = "the model has context" if model.spec.context else f"{options.to} has no dot products"
    log(f"the vectors leave out the popularity term of scores, since {reason}")
    return replace(model, popularity=None)


def _tables(model: TrainedModel, options: ExportOptions) -> list[TableSpec]:
    """Select the tables of ``model`` by ``options``."""
    available = {table.name: table for table in model.spec.vectors}
    for name in options.entity:
        if name not in available:
            raise InputError(f"{model.uri}: has no table '{name}'; it has {', '.join(available)}")
    return [table for name, table in available.items() if name in options.entity or not options.entity]


def _find_foreign(out: Path) -> str | None:
    """Return a file in ``out`` that is not one of embeddings or an export; None if all are."""
    for path in sorted(out.rglob("*")):  # it does not follow a link to a folder
        if path.is_dir() and not path.is_symlink():
            continue
        relative = path.relative_to(out).as_posix()
        is_list = relative == LISTING_FILE and is_listing(read_below(out, LISTING_FILE))
        if not (is_list or _OWN_FILE.fullmatch(relative)):
            return relative
    return None
