"""Export embeddings from a checkpoint, exactly as the run would have written them at that step.

    result = export(ExportRequest("runs/lastfm", out=Path("embeddings")), log=print, reporter=NullReporter())
    result.step, result.tables

Tables are exported one after another, in parts. All of a table's files are read to their end, so corruption is detected
by their CRC-32 before anything is moved into place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.kvstore.checkpoint.reader import Checkpoint
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.config.sections import ScoreKind
from crossfade.trainer.data.manifest import DatasetManifest
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.embeddings.checkpoint_source import Log, job_of, locate_checkpoint, open_dataset_of, use_newest
from crossfade.trainer.embeddings.checkpoint_vectors import CheckpointVectors
from crossfade.trainer.embeddings.export_folder import check_free
from crossfade.trainer.embeddings.files import staged_export, write_table
from crossfade.trainer.embeddings.listing import write_listing
from crossfade.trainer.embeddings.model_card import ExportedTable, ModelCard
from crossfade.trainer.embeddings.python_example import ArrayReader, choose_example, python_example
from crossfade.trainer.embeddings.vector_origin import checkpoint_origin
from crossfade.trainer.model.spec import ModelSpec, make_model
from crossfade.trainer.model.towers import load_towers

_PARQUET = ArrayReader(
    vectors='read_vectors("{}")',
    rows='pq.read_table("{}", columns=["{}"])',
    function=[
        "",
        "def read_vectors(entity):",
        '    column = pq.read_table(entity, columns=["vector"])["vector"].combine_chunks()',
        "    return column.flatten().to_numpy().reshape(len(column), -1)",
        "",
    ],
)


@dataclass(frozen=True)
class ExportRequest:
    """What to export.

    Attributes:
        source: path or URI of a run folder, of a folder of checkpoints, or of a checkpoint.
        out: the folder to write; None: that of the run, if its job writes no embeddings itself.
        entities: whose vectors to export; empty: all.
        data: the dataset that the checkpoint was trained on, if it is not at the job's data.path.
        overwrite: whether to replace embeddings at ``out``.
        history_from_this_dataset_only: whether to do without base datasets.
    """

    source: str
    out: Path | None = None
    entities: Sequence[str] = ()
    data: str | None = None
    overwrite: bool = False
    history_from_this_dataset_only: bool = False


@dataclass(frozen=True)
class ExportResult:
    """What was exported, and from which checkpoint."""

    out: Path
    checkpoint: str
    step: int
    job: str
    tables: Sequence[TableSpec]


def export(request: ExportRequest, log: Log, reporter: ProgressReporter) -> ExportResult:
    """Export the embeddings of ``request``; ``log`` gets a line for the checkpoint and for each that is skipped.

    Raises:
        CheckpointError: the checkpoint, or every one of the folder, is corrupt or cannot be read.
        InputError: the source has no checkpoints, the dataset is another one, or ``out`` may not be replaced.
    """
    source = locate_checkpoint(request.source)
    out = request.out or source.embeddings
    if out is None:
        raise InputError(
            f"{request.source}: name a new folder for the embeddings with --out; only a run with "
            "train.save_embeddings: none is exported to its own folder"
        )
    check_free(out, request.overwrite)
    return use_newest(source, log, lambda checkpoint: _export(checkpoint, request, out, log, reporter))


def _export(
    checkpoint: Checkpoint, request: ExportRequest, out: Path, log: Log, reporter: ProgressReporter
) -> ExportResult:
    job = job_of(checkpoint)
    if request.history_from_this_dataset_only:
        values = job.data.model_copy(update={"history_from_this_dataset_only": True})
        job = job.model_copy(update={"data": values})
    data = Folder(request.data or job.data.path)
    manifest = open_dataset_of(checkpoint, data)
    model = make_model(job, manifest)
    tables = _tables(checkpoint, model, request.entities)
    log(f"exporting {checkpoint.uri}: step {checkpoint.manifest.step:,} of job '{job.name}'")
    with staged_export(out, lambda: check_free(out, request.overwrite)) as staging:
        towers = load_towers(job, model, data, manifest)
        towers.dense.load(checkpoint)
        source = CheckpointVectors(checkpoint, reporter, towers, staging.parent)
        for table in tables:
            source.prepare(table.name)
            reporter.phase(table.name, table.rows, "row")
            write_table(staging, source, table, Vocabulary(data, manifest, table.name))
        write_listing(Folder(staging))
        ModelCard(
            job,
            data,
            manifest,
            checkpoint_origin(request.source, checkpoint.manifest.step),
            [ExportedTable(table.name, table.rows, table.dim) for table in tables],
            datetime.now(UTC),
            to="parquet",
            loading=_loading(job.model.score, model, manifest, tables),
        ).write(staging)
    return ExportResult(out, checkpoint.uri, checkpoint.manifest.step, job.name, tables)


def _tables(checkpoint: Checkpoint, model: ModelSpec, entities: Sequence[str]) -> list[TableSpec]:
    """Select the tables of ``model``'s vectors by ``entities``; empty: all."""
    stored = {table.name: table for table in checkpoint.manifest.tables}
    available = {table.name: stored.get(table.name, table) for table in model.vectors}
    for name in entities:
        if name not in available:
            raise InputError(f"{checkpoint.uri}: has no table '{name}'; it has {', '.join(available)}")
    return [table for name, table in available.items() if name in entities or not entities]


def _loading(score: ScoreKind, model: ModelSpec, manifest: DatasetManifest, tables: Sequence[TableSpec]) -> str:
    """Return Markdown on how to load the files."""
    example = python_example(
        score, choose_example(model, [table.name for table in tables]), _PARQUET, manifest.entities
    )
    return (
        "`ENTITY/rows-*.parquet` have `id`, `row`, `vector`, and `name` if the dataset has names. Vectors of rows "
        f"without an interaction in train are random.\n\n{example}"
    )
