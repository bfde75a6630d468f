"""Export a trained model in the format of another system, or push it to a database.

    result = export_format(FormatRequest("runs/lastfm", "numpy"), Path("exports/lastfm"), print, NullReporter())

Vectors are those that ``crossfade recommend`` uses: the embeddings of a run if it has written any, otherwise the newest
complete checkpoint. They are read in blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from crossfade.base.errors import InputError
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.embeddings.checkpoint_source import Log
from crossfade.trainer.embeddings.export_folder import check_free, write_listing
from crossfade.trainer.embeddings.files import staged_export
from crossfade.trainer.embeddings.model_card import ExportedTable, ModelCard
from crossfade.trainer.embeddings.vector_origin import VectorOrigin, checkpoint_origin, embeddings_origin
from crossfade.trainer.formats import arrays, faiss_indexes, opensearch, pgvector, pgvector_push, pgvector_sql, qdrant
from crossfade.trainer.formats.database_names import database_names
from crossfade.trainer.formats.exported_model import ExportedModel
from crossfade.trainer.recommend.trained_model import TrainedModel, with_trained_model

FormatName = Literal["numpy", "safetensors", "faiss", "qdrant", "pgvector", "opensearch"]


@dataclass(frozen=True)
class Format:
    """A format of files.

    Attributes:
        write: writes the tables of a model into a folder.
        loading: returns Markdown on how to load what was written into a folder.
        complete: whether untrained rows are written, too.
        max_columns: what a database allows; None for other systems.
    """

    write: Callable[[ExportedModel, Path], None]
    loading: Callable[[ExportedModel, Path], str]
    complete: bool = False
    max_columns: int | None = None

    @property
    def is_database(self) -> bool:
        """Whether the files are loaded into a database."""
        return self.max_columns is not None

    @property
    def untrained_note(self) -> str:
        """What became of untrained rows."""
        return arrays.UNTRAINED_NOTE if self.complete else faiss_indexes.UNTRAINED_NOTE


FORMATS: dict[FormatName, Format] = {
    "numpy": Format(arrays.write_numpy, lambda exported, _: arrays.numpy_loading(exported), complete=True),
    "safetensors": Format(
        arrays.write_safetensors, lambda exported, _: arrays.safetensors_loading(exported), complete=True
    ),
    "faiss": Format(faiss_indexes.write_faiss, faiss_indexes.faiss_loading),
    "qdrant": Format(
        qdrant.write_qdrant, lambda exported, _: qdrant.qdrant_loading(exported), max_columns=qdrant.MAX_COLUMNS
    ),
    "pgvector": Format(
        pgvector.write_pgvector,
        lambda exported, _: pgvector.pgvector_loading(exported),
        max_columns=pgvector_sql.MAX_COLUMNS,
    ),
    "opensearch": Format(
        opensearch.write_opensearch,
        lambda exported, _: opensearch.opensearch_loading(exported),
        max_columns=opensearch.MAX_COLUMNS,
    ),
}


@dataclass(frozen=True)
class FormatRequest:
    """What to export.

    Attributes:
        source: path or URI of a run folder, of a folder of checkpoints, or of a checkpoint.
        to: the format.
        entities: whose vectors to export; empty: all.
        data: the dataset that the model was trained on, if it is not at the job's data.path.
        name: what names in databases begin with; None: the name of the job.
        history_from_this_dataset_only: whether to do without base datasets.
    """

    source: str
    to: FormatName
    entities: Sequence[str] = ()
    data: str | None = None
    name: str | None = None
    history_from_this_dataset_only: bool = False


@dataclass(frozen=True)
class FormatResult:
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
    names: dict[str, str]


def export_format(
    request: FormatRequest, out: Path, log: Log, reporter: ProgressReporter, *, overwrite: bool = False
) -> FormatResult:
    """Write the files of ``request`` to the local folder ``out``; ``overwrite`` replaces an earlier export.

    ``log`` gets a line for the model and for each checkpoint that is skipped.

    Raises:
        CheckpointError: every checkpoint is corrupt or cannot be read.
        CrossfadeError: a file cannot be written.
        InputError: there is no model, its dataset is another one, or ``out`` may not be replaced.
        MissingExtraError: a package that the format needs is not installed.
    """
    check_free(out, overwrite)

    def write(exported: ExportedModel, origin: VectorOrigin) -> str:
        with staged_export(out, lambda: check_free(out, overwrite)) as staging:
            FORMATS[request.to].write(exported, staging)
            _card(exported, origin, request.to, staging).write(staging)
            write_listing(staging, request.to)
        return str(out)

    return _export(request, log, reporter, write)


def push_to_pgvector(request: FormatRequest, uri: str, log: Log, reporter: ProgressReporter) -> FormatResult:
    """Replace tables in PostgreSQL at ``uri``, or at what libpq's environment names.

    Raises:
        CrossfadeError, InputError, MissingExtraError: as ``export_format`` and ``pgvector_push.push``.
    """
    pgvector_push.check_connection(uri)
    return _export(request, log, reporter, lambda exported, _: pgvector_push.push(exported, uri))


def _export(
    request: FormatRequest,
    log: Log,
    reporter: ProgressReporter,
    write: Callable[[ExportedModel, VectorOrigin], str],
) -> FormatResult:
    def use(model: TrainedModel) -> FormatResult:
        job, step = model.job, model.step
        tables = _tables(model, request)
        names = _database_names(request, job.name, tables)
        origin = embeddings_origin(request.source, job) if step is None else checkpoint_origin(request.source, step)
        log(f"exporting {model.uri}: {origin} of job '{job.name}'")
        exported = ExportedModel(model, tables, names, datetime.now(UTC), reporter)
        target = write(exported, origin)
        written = exported.exported_tables(complete=FORMATS[request.to].complete)
        return FormatResult(target, model.uri, step, job.name, request.to, job.model.score, written, names)

    only = request.history_from_this_dataset_only
    return with_trained_model(request.source, request.data, log, use, history_from_this_dataset_only=only)


def _database_names(request: FormatRequest, job: str, tables: Sequence[TableSpec]) -> dict[str, str]:
    if not FORMATS[request.to].is_database:
        return {}
    entities = [table.name for table in tables]
    return database_names(request.name or job, entities, is_option=request.name is not None)


def _tables(model: TrainedModel, request: FormatRequest) -> list[TableSpec]:
    """Select the tables of ``model`` by ``request``."""
    available = {table.name: table for table in model.spec.vectors}
    for name in request.entities:
        if name not in available:
            raise InputError(f"{model.uri}: has no table '{name}'; it has {', '.join(available)}")
    limit, dim = FORMATS[request.to].max_columns, model.job.model.dim
    if limit is not None and dim > limit:
        raise InputError(
            f"{model.uri}: its vectors have {dim:,} columns, but {request.to} allows {limit:,}; export to another "
            "format, or train with a smaller model.dim"
        )
    return [table for name, table in available.items() if name in request.entities or not request.entities]


def _card(exported: ExportedModel, origin: VectorOrigin, to: FormatName, folder: Path) -> ModelCard:
    model, form = exported.model, FORMATS[to]
    return ModelCard(
        model.job,
        model.data,
        model.manifest,
        origin,
        exported.exported_tables(complete=form.complete),
        exported.date,
        to=to,
        loading=form.loading(exported, folder),
        untrained_note=form.untrained_note,
    )
