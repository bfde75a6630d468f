"""Export a trained model as embeddings, in the format of another system, or to a database.

    result = export(ExportOptions.of(source="runs/lastfm", to="numpy", out="exports/lastfm"), print, NullReporter())

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
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from crossfade.base.errors import InputError, Option, OptionError
from crossfade.base.io.folder import Folder
from crossfade.base.io.regular_files import read_below
from crossfade.base.io.replacing import check_replaceable
from crossfade.base.json_text import parse_json
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.data.manifest import DataFile, data_fingerprint
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.embeddings.checkpoint_source import Log, locate_checkpoint
from crossfade.trainer.embeddings.current_run import run_of_version
from crossfade.trainer.embeddings.files import staged_export
from crossfade.trainer.embeddings.listing import LISTING_FILE as EMBEDDINGS_LISTING
from crossfade.trainer.embeddings.listing import is_listing, write_listing
from crossfade.trainer.embeddings.model_card import CARD_FILE, ExportedTable, ModelCard, is_model_card
from crossfade.trainer.embeddings.vector_origin import VectorOrigin, checkpoint_origin, embeddings_origin
from crossfade.trainer.formats import arrays, faiss_indexes, mlflow_model, pgvector, s3_vectors, search_engines
from crossfade.trainer.formats.exported_model import ExportedModel
from crossfade.trainer.formats.options import DATABASES, ExportOptions, FormatName
from crossfade.trainer.recommend.trained_model import TrainedModel, with_trained_model
from crossfade.trainer.runs.options import ModelSource, Shard
from crossfade.trainer.runs.shards import SHARDS_FOLDER, ShardFolder, check_files, shard_errors

LISTING_FILE = "export.json"
_KIND = "crossfade-export"
_EMBEDDINGS_FILE = re.compile(r"[^/]+/rows-\d{12,}\.parquet")
_MAX_LENGTH = 48
"""PostgreSQL's limit of 63 bytes, less the longest suffix of a constraint or an index."""
_UNTRAINED = (
    "those without an ID, and those without an interaction of positive weight in train, unless they have features or "
    "`model.start` gave them a vector."
)
_INCLUDED = (
    f"Every row is in the files. `trained` in `rows.parquet` is false for rows whose vector is random: {_UNTRAINED}"
)
_LEFT_OUT = f"Untrained rows are left out: {_UNTRAINED}"


@dataclass(frozen=True)
class Format:
    """A format of files, or of what is sent to a server, or both.

    Attributes:
        write: writes the tables of a model into a folder, and returns Markdown on how to load them.
        push: sends the tables of a model to a place, and returns the name of the place.
        check_place: checks the place before anything is read.
        untrained_note: what became of untrained rows.
        max_columns: what a database allows; None for other systems.
        popularity: how it has the popularity term of scores: as a column of vectors, by itself, or not at all.
    """

    write: Callable[[ExportedModel, Path], str] | None
    push: Callable[[ExportedModel, str], str] | None = None
    check_place: Callable[[str], None] | None = None
    untrained_note: str = _LEFT_OUT
    max_columns: int | None = None
    popularity: Literal["column", "itself", "none"] = "column"


FORMATS: dict[FormatName, Format] = {
    "parquet": Format(arrays.write_parquet, untrained_note=""),
    "numpy": Format(arrays.write_numpy, untrained_note=_INCLUDED),
    "safetensors": Format(arrays.write_safetensors, untrained_note=_INCLUDED),
    "faiss": Format(faiss_indexes.write_faiss),
    "qdrant": Format(search_engines.write_qdrant, max_columns=search_engines.QDRANT_MAX_COLUMNS),
    "pgvector": Format(
        pgvector.write_pgvector, pgvector.push, pgvector.check_connection, max_columns=pgvector.MAX_COLUMNS
    ),
    "opensearch": Format(search_engines.write_opensearch, max_columns=search_engines.OPENSEARCH_MAX_COLUMNS),
    "s3-vectors": Format(
        None, s3_vectors.push, s3_vectors.check_bucket, max_columns=s3_vectors.MAX_COLUMNS, popularity="none"
    ),
    "mlflow": Format(mlflow_model.write_mlflow, mlflow_model.push, mlflow_model.check_place, popularity="itself"),
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
    names: dict[str, str]


def export(options: ExportOptions, log: Log, reporter: ProgressReporter) -> ExportResult:
    """Export to files, or to the place of ``push``: PostgreSQL, a vector bucket, or a registered model.

    Without a folder, Parquet is written to the folder of embeddings of a run whose job writes none itself. ``log`` gets
    a line for the model and for each checkpoint that is skipped.

    Raises:
        CheckpointError: a checkpoint is corrupt or cannot be read.
        CrossfadeError: a file cannot be written, or the server failed or was lost.
        InputError: there is no model, its dataset is another one, the folder may not be replaced, or the server rejects
            a statement.
        MissingExtraError: a package that the format needs is not installed.
    """
    form = FORMATS[options.to]
    if (place := options.push) is not None:
        assert form.push is not None, "checked by the options"
        assert form.check_place is not None
        push = form.push
        form.check_place(place)
        return _export(options, log, reporter, lambda exported, _: push(exported, place))
    assert form.write is not None, "checked by the options"
    write_files = form.write
    target = Path(options.out) if options.out else locate_checkpoint(options.source).embeddings
    if target is None:
        raise InputError(
            f"{options.source}: name a new folder for the embeddings with ",
            Option("out"),
            "; only a run with train.save_embeddings: none is exported to its own folder",
        )
    _check_free(target, options.overwrite)

    def write(exported: ExportedModel, origin: VectorOrigin) -> str:
        with staged_export(target, lambda: _check_free(target, options.overwrite)) as staging:
            loading = write_files(exported, staging)
            _card(exported, origin, options.to, loading).write(staging)
            _write_listing(staging, options.to)
        return str(target)

    return _export(options, log, reporter, write)


def export_shard(options: ExportOptions, shard: Shard, log: Log, reporter: ProgressReporter) -> int:
    """Write the Parquet files of ``shard`` to the folder ``out``, unless they are there; return how many rows it has.

    Raises:
        CheckpointError: a checkpoint is corrupt or cannot be read.
        CrossfadeError: a file cannot be written.
        InputError: there is no model, its dataset is another one, or the folder has shards of another request.
        StorageUnavailableError: storage does not answer.
    """

    def use(model: TrainedModel) -> int:
        _log_origin(model, options, log)
        out, shards, exported = _open_shards(model, options, reporter)
        if _has_listing(out):
            raise _holds_embeddings(out)
        has_begun, found = shards.has_begun(shard), shards.begin(shard)
        with shard_errors(out):
            sizes = out.sizes()
        listed = None if found is None else {file["path"]: file["bytes"] for file in found["files"]}
        kept = {path for path, size in sizes.items() if has_begun and (listed is None or listed.get(path) == size)}
        if listed is None or not kept.issuperset(listed):
            with shard_errors(out):
                files = list(arrays.write_parquet_shard(exported, out, shard, kept))
            found = {"rows": sum(file.rows for file in files), "files": [file.model_dump() for file in files]}
            shards.complete(shard, found)
        assert found is not None, "it is complete"
        return int(found["rows"])

    return with_trained_model(options, log, use, from_checkpoint=True)


def merge_export(options: ExportOptions, log: Log, reporter: ProgressReporter) -> ExportResult:
    """Verify that the folder ``out`` has all shards, whole, and complete it by the list of files and the model card.

    Raises:
        CheckpointError: a checkpoint is corrupt or cannot be read.
        InputError: a shard is missing, incomplete, or of another request, or a file is damaged or of something else.
        StorageUnavailableError: storage does not answer.
    """

    def write(exported: ExportedModel, origin: VectorOrigin) -> str:
        out, shards, _ = _open_shards(exported.model, options, reporter)
        if _has_listing(out):
            if not shards.discard():  # else an earlier merge was interrupted before the end
                raise _holds_embeddings(out)
            return out.uri
        files = [DataFile.model_validate(file) for result in shards.results() for file in result["files"]]
        check_files(out, files, pages=False)  # readers of embeddings verify the pages they read
        card = _card(exported, origin, options.to, arrays.parquet_loading(exported))
        with shard_errors(out):
            out.write(CARD_FILE, card.text().encode())
            write_listing(out)
            out.child(SHARDS_FOLDER).delete()
        return out.uri

    return _export(options, log, reporter, write)


def _open_shards(
    model: TrainedModel, options: ExportOptions, reporter: ProgressReporter
) -> tuple[Folder, ShardFolder, ExportedModel]:
    """Return the folder of the shards of ``model``, the shards, and what they write."""
    out, tables = Folder(str(options.out)), _tables(model, options)
    entities = [table.name for table in tables]
    made_from = {"vectors": model.fingerprint, "data": data_fingerprint(model.data), "entities": entities}
    exported = ExportedModel(model, tables, {}, datetime.now(UTC), reporter)
    return out, ShardFolder(out, "export", made_from), exported


def _has_listing(out: Folder) -> bool:
    with shard_errors(out):
        return out.exists(EMBEDDINGS_LISTING)


def _holds_embeddings(out: Folder) -> OptionError:
    fix = ("choose another ", Option("out"))
    return OptionError("out", found=out.uri, problem="holds embeddings", fix=fix)


def _export(
    options: ExportOptions,
    log: Log,
    reporter: ProgressReporter,
    write: Callable[[ExportedModel, VectorOrigin], str],
) -> ExportResult:
    def use(model: TrainedModel, since: TrainedModel | None = None) -> ExportResult:
        model, since = _with_popularity(model, options, log), since and _with_popularity(since, options, log)
        job, origin = model.job, _log_origin(model, options, log)
        tables = _tables(model, options)
        entities = [table.name for table in tables] if options.to in DATABASES else []
        names = database_names(options.name or job.name, entities, options.to)
        if since is not None:
            _check_earlier(model, since)
        exported = ExportedModel(model, tables, names, datetime.now(UTC), reporter, since)
        target = write(exported, origin)
        written = exported.exported_tables(complete=_is_complete(options.to))
        return ExportResult(target, model.uri, model.step, job.name, options.to, job.model.score, written, names)

    def use_since(since: TrainedModel) -> ExportResult:
        return with_trained_model(options, log, lambda model: use(model, since), from_checkpoint=from_checkpoint)

    from_checkpoint = options.to == "parquet"
    if options.since is None:
        return with_trained_model(options, log, use, from_checkpoint=from_checkpoint)
    run, data = options.since, None
    if options.since.isdecimal():
        run, data, _ = run_of_version(options.source, int(options.since))
    return with_trained_model(ModelSource.of(source=run, data=data), log, use_since, from_checkpoint=from_checkpoint)


def _with_popularity(model: TrainedModel, options: ExportOptions, log: Log) -> TrainedModel:
    """Return ``model`` with the popularity term as a column of its vectors, if the format can have it."""
    how = FORMATS[options.to].popularity
    if model.popularity is None or how == "itself":
        return model
    if how == "column" and not model.spec.context:  # queries add the vectors of their context
        return model.ranking_model()
    reason = "the model has context" if model.spec.context else f"{options.to} has no dot products"
    log(f"the vectors leave out the popularity term of scores, since {reason}")
    return replace(model, popularity=None)


def _log_origin(model: TrainedModel, options: ExportOptions, log: Log) -> VectorOrigin:
    """Log what is exported, and return it."""
    step, source = model.step, options.source
    origin = embeddings_origin(source, model.job) if step is None else checkpoint_origin(source, step)
    log(f"exporting {model.uri}: {origin} of job '{model.job.name}'")
    return origin


def _check_earlier(model: TrainedModel, since: TrainedModel) -> None:
    """Check that rows of ``since`` are those of ``model``: one dataset is the other, or extends it.

    Raises:
        InputError: they are not, or a table has other columns.
    """
    fingerprints = [data_fingerprint(each.data) for each in (model, since)]
    is_related = fingerprints[0] in (fingerprints[1], *since.manifest.lineage)
    columns = [
        {table.name: (table.dim, each.manifest.entities[table.name].has_names) for table in each.spec.vectors}
        for each in (model, since)
    ]
    if not (is_related or fingerprints[1] in model.manifest.lineage) or columns[0] != columns[1]:
        raise OptionError(
            "since",
            found=since.uri,
            problem=f"its rows or columns are not those of {model.uri}",
            fix=("export all rows, without ", Option("since")),
        )


def _is_complete(to: FormatName) -> bool:
    """Return whether untrained rows are written, too."""
    return FORMATS[to].untrained_note is not _LEFT_OUT


def _tables(model: TrainedModel, options: ExportOptions) -> list[TableSpec]:
    """Select the tables of ``model`` by ``options``."""
    available = {table.name: table for table in model.spec.vectors}
    for name in options.entity:
        if name not in available:
            raise InputError(f"{model.uri}: has no table '{name}'; it has {', '.join(available)}")
    limit, dim = FORMATS[options.to].max_columns, max(table.dim for table in available.values())
    if limit is not None and dim > limit:
        raise InputError(
            f"{model.uri}: its vectors have {dim:,} columns, but {options.to} allows {limit:,}; export to another "
            "format, or train with a smaller model.dim"
        )
    return [table for name, table in available.items() if name in options.entity or not options.entity]


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


def database_names(prefix: str, entities: Iterable[str], to: FormatName) -> dict[str, str]:
    """Return the name of each entity for ``to``, which begins with ``prefix``, the name of the option or of the job.

    Raises:
        InputError: a name is too long or occurs twice.
    """
    names = {entity: f"{_plain(prefix)}_{_plain(entity)}" for entity in entities}
    most, system = _MAX_LENGTH, "PostgreSQL"
    if to == "s3-vectors":
        names = {entity: name.replace("_", "-") for entity, name in names.items()}
        most, system = s3_vectors.MAX_NAME_LETTERS, "S3 Vectors"
    for entity, name in names.items():
        if len(name) > most:
            raise InputError(
                f"'{name}' would have {len(name)} characters, of {most} at most in {system}; choose a shorter prefix "
                "with ",
                Option("name"),
            )
        if list(names.values()).count(name) > 1:
            alone = Option("entity", entity)
            raise InputError(f"'{name}' would hold several entities; export '{entity}' by itself, with ", alone)
    return names


def _plain(name: str) -> str:
    """Return ``name``, letters, digits, - and _, in lower case and with _ only."""
    return name.lower().replace("-", "_")


def _check_free(out: Path, overwrite: bool) -> None:
    """Reject an existing ``out``, unless ``overwrite`` is given and it holds nothing but embeddings or an export.

    Raises:
        InputError: it may not be replaced.
    """
    check_replaceable(out, overwrite, "an export", lambda: _find_foreign(out))


def _find_foreign(out: Path) -> str | None:
    """Return a file in ``out`` that is not one of embeddings or an export; None if all are."""
    listed = _listed_files(out)
    for path in _files(out):
        relative = path.relative_to(out).as_posix()
        is_card = relative == CARD_FILE and is_model_card(path)
        is_card |= relative == EMBEDDINGS_LISTING and is_listing(read_below(out, EMBEDDINGS_LISTING))
        if not (is_card or relative in listed or _EMBEDDINGS_FILE.fullmatch(relative)):
            return relative
    return None


def _write_listing(folder: Path, to: str) -> None:
    """Write the list of the files in ``folder``, which are in the format ``to``, unless it has one of embeddings."""
    if (folder / EMBEDDINGS_LISTING).exists():
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
        listing = parse_json(read_below(out, LISTING_FILE))
    except (OSError, ValueError):
        return set()
    files = listing.get("files") if isinstance(listing, dict) and listing.get("format") == _KIND else None
    return {LISTING_FILE, *files} if isinstance(files, dict) else set()
