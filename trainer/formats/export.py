"""Export a trained model as embeddings, in the format of another system, or to a database.

    result = export(ExportRequest("runs/lastfm", "numpy"), Path("exports/lastfm"), print, NullReporter())

    OUT/README.md           the model card
    OUT/export.json         format and files, unless the format is Parquet
    OUT/embeddings.json     files and checksums (embeddings/listing.py), if it is
    OUT/ENTITY/...          the files of the format

Parquet has the vectors of a checkpoint, exactly as the run would have written them at that step. The other formats have
those that ``crossfade recommend`` uses: the embeddings of a run if it has written any, otherwise the newest complete
checkpoint. They are read in blocks to their end, so corruption is detected before anything is moved into place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from crossfade.base.errors import InputError
from crossfade.base.io.regular_files import read_regular
from crossfade.base.io.replacing import check_replaceable
from crossfade.base.json_text import parse_json
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.embeddings.checkpoint_source import Log, locate_checkpoint
from crossfade.trainer.embeddings.files import staged_export
from crossfade.trainer.embeddings.listing import LISTING_FILE as EMBEDDINGS_LISTING
from crossfade.trainer.embeddings.listing import is_listing
from crossfade.trainer.embeddings.model_card import CARD_FILE, ExportedTable, ModelCard, is_model_card
from crossfade.trainer.embeddings.vector_origin import VectorOrigin, checkpoint_origin, embeddings_origin
from crossfade.trainer.formats import arrays, faiss_indexes, pgvector, search_engines
from crossfade.trainer.formats.exported_model import ExportedModel
from crossfade.trainer.recommend.trained_model import TrainedModel, with_trained_model

FormatName = Literal["parquet", "numpy", "safetensors", "faiss", "qdrant", "pgvector", "opensearch"]
LISTING_FILE = "export.json"
_KIND = "crossfade-export"
_EMBEDDINGS_FILE = re.compile(r"[^/]+/rows-\d{12,}\.parquet")
_MAX_LENGTH = 48
"""PostgreSQL's limit of 63 bytes, less the longest suffix of a constraint or an index."""
_PREFIX = re.compile(r"[a-z][a-z0-9_]*")
_UNTRAINED = (
    "those without an ID, and those without an interaction of positive weight in train, unless they have features."
)
_INCLUDED = (
    f"Every row is in the files. `trained` in `rows.parquet` is false for rows whose vector is random: {_UNTRAINED}"
)
_LEFT_OUT = f"Untrained rows are left out: {_UNTRAINED}"


@dataclass(frozen=True)
class Format:
    """A format of files.

    Attributes:
        write: writes the tables of a model into a folder, and returns Markdown on how to load them.
        untrained_note: what became of untrained rows.
        max_columns: what a database allows; None for other systems.
    """

    write: Callable[[ExportedModel, Path], str]
    untrained_note: str = _LEFT_OUT
    max_columns: int | None = None


FORMATS: dict[FormatName, Format] = {
    "parquet": Format(arrays.write_parquet, ""),
    "numpy": Format(arrays.write_numpy, _INCLUDED),
    "safetensors": Format(arrays.write_safetensors, _INCLUDED),
    "faiss": Format(faiss_indexes.write_faiss),
    "qdrant": Format(search_engines.write_qdrant, max_columns=search_engines.QDRANT_MAX_COLUMNS),
    "pgvector": Format(pgvector.write_pgvector, max_columns=pgvector.MAX_COLUMNS),
    "opensearch": Format(search_engines.write_opensearch, max_columns=search_engines.OPENSEARCH_MAX_COLUMNS),
}


@dataclass(frozen=True)
class ExportRequest:
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
    names: dict[str, str]


def export(
    request: ExportRequest, out: Path | None, log: Log, reporter: ProgressReporter, *, overwrite: bool = False
) -> ExportResult:
    """Write the files of ``request`` to the local folder ``out``; ``overwrite`` replaces an earlier export.

    Without ``out``, Parquet is written to the folder of embeddings of a run whose job writes none itself. ``log`` gets
    a line for the model and for each checkpoint that is skipped.

    Raises:
        CheckpointError: every checkpoint is corrupt or cannot be read.
        CrossfadeError: a file cannot be written.
        InputError: there is no model, its dataset is another one, or ``out`` may not be replaced.
        MissingExtraError: a package that the format needs is not installed.
    """
    target = out or locate_checkpoint(request.source).embeddings
    if target is None:
        raise InputError(
            f"{request.source}: name a new folder for the embeddings with --out; only a run with "
            "train.save_embeddings: none is exported to its own folder"
        )
    _check_free(target, overwrite)

    def write(exported: ExportedModel, origin: VectorOrigin) -> str:
        with staged_export(target, lambda: _check_free(target, overwrite)) as staging:
            loading = FORMATS[request.to].write(exported, staging)
            _card(exported, origin, request.to, loading).write(staging)
            _write_listing(staging, request.to)
        return str(target)

    return _export(request, log, reporter, write)


def push_to_pgvector(request: ExportRequest, uri: str, log: Log, reporter: ProgressReporter) -> ExportResult:
    """Replace tables in PostgreSQL at ``uri``, or at what libpq's environment names.

    Raises:
        CrossfadeError, InputError, MissingExtraError: as ``export`` and ``pgvector.push``.
    """
    pgvector.check_connection(uri)
    return _export(request, log, reporter, lambda exported, _: pgvector.push(exported, uri))


def _export(
    request: ExportRequest,
    log: Log,
    reporter: ProgressReporter,
    write: Callable[[ExportedModel, VectorOrigin], str],
) -> ExportResult:
    def use(model: TrainedModel) -> ExportResult:
        job, step = model.job, model.step
        tables = _tables(model, request)
        is_database = FORMATS[request.to].max_columns is not None
        entities = [table.name for table in tables] if is_database else []
        names = database_names(request.name or job.name, entities, is_option=request.name is not None)
        origin = embeddings_origin(request.source, job) if step is None else checkpoint_origin(request.source, step)
        log(f"exporting {model.uri}: {origin} of job '{job.name}'")
        exported = ExportedModel(model, tables, names, datetime.now(UTC), reporter)
        target = write(exported, origin)
        written = exported.exported_tables(complete=_is_complete(request.to))
        return ExportResult(target, model.uri, step, job.name, request.to, job.model.score, written, names)

    return with_trained_model(
        request.source,
        request.data,
        log,
        use,
        history_from_this_dataset_only=request.history_from_this_dataset_only,
        from_checkpoint=request.to == "parquet",
    )


def _is_complete(to: FormatName) -> bool:
    """Return whether untrained rows are written, too."""
    return FORMATS[to].untrained_note is not _LEFT_OUT


def _tables(model: TrainedModel, request: ExportRequest) -> list[TableSpec]:
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


def _card(exported: ExportedModel, origin: VectorOrigin, to: FormatName, loading: str) -> ModelCard:
    model = exported.model
    return ModelCard(
        model.job,
        model.data,
        model.manifest,
        origin,
        exported.exported_tables(complete=_is_complete(to)),
        exported.date,
        to=to,
        loading=loading,
        untrained_note=FORMATS[to].untrained_note,
    )


def database_names(prefix: str, entities: Iterable[str], *, is_option: bool = True) -> dict[str, str]:
    """Return the name of each entity; ``prefix`` is the value of --name, or the name of the job if not ``is_option``.

    Raises:
        InputError: ``prefix`` has other characters than a-z, 0-9, and _, or a name is too long or occurs twice.
    """
    if not is_option:
        prefix = _plain(prefix)
    elif not _PREFIX.fullmatch(prefix):
        raise InputError(f"--name {prefix}: expected a lower-case letter, then letters a-z, digits, and '_'")
    names = {entity: f"{prefix}_{_plain(entity)}" for entity in entities}
    for entity, name in names.items():
        if len(name) > _MAX_LENGTH:
            raise InputError(
                f"'{name}' would have {len(name)} characters, of {_MAX_LENGTH} at most in PostgreSQL; choose a shorter "
                "prefix with --name"
            )
        if list(names.values()).count(name) > 1:
            raise InputError(f"'{name}' would hold several entities; export '{entity}' by itself, with --entity")
    return names


def _plain(name: str) -> str:
    """Return ``name``, letters, digits, - and _, in lower case and with _ only."""
    return name.lower().replace("-", "_")


def _check_free(out: Path, overwrite: bool) -> None:
    """Reject an existing ``out``, unless ``overwrite`` is given and it holds nothing but embeddings or an export.

    Raises:
        InputError: it may not be replaced.
    """
    check_replaceable(
        out,
        overwrite,
        exists=f"{out}: already exists; choose another --out, or replace embeddings with --overwrite",
        no_folder=f"{out}: is not a folder of embeddings, so --overwrite does not replace it; choose another --out",
        find_foreign=lambda: _find_foreign(out),
    )


def _find_foreign(out: Path) -> str | None:
    """Return a message on a file in ``out`` that is not one of embeddings or an export; None if all are."""
    listed = _listed_files(out)
    for path in _files(out):
        relative = path.relative_to(out).as_posix()
        is_card = relative == CARD_FILE and is_model_card(path)
        is_card |= relative == EMBEDDINGS_LISTING and is_listing(read_regular(path))
        if not (is_card or relative in listed or _EMBEDDINGS_FILE.fullmatch(relative)):
            return f"{path}: --overwrite would delete this file, which is not one of embeddings; move it"
    return None


def _write_listing(folder: Path, to: str) -> None:
    """Write the list of the files in ``folder``, which are in the format ``to``, unless it has one of embeddings."""
    if to == "parquet":
        return
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in _files(folder)}
    # An edited card is recognized by its content, or kept.
    sizes.pop(CARD_FILE, None)
    listing = {"format": _KIND, "version": 1, "to": to, "files": sizes}
    (folder / LISTING_FILE).write_text(json.dumps(listing, indent=1) + "\n", encoding="utf-8")


def _files(folder: Path) -> Iterator[Path]:
    """Yield everything below ``folder`` but folders, sorted; a link to a folder is not followed."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            yield from _files(path)
        else:
            yield path


def _listed_files(out: Path) -> set[str]:
    """Return the files of the export in ``out`` with its list; none if there is no list of an export."""
    try:
        listing = parse_json(read_regular(out / LISTING_FILE))
    except (OSError, ValueError):
        return set()
    files = listing.get("files") if isinstance(listing, dict) and listing.get("format") == _KIND else None
    return {LISTING_FILE, *files} if isinstance(files, dict) else set()
