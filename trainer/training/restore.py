"""Restore a run: its tables, dense layers and train state, from a checkpoint, from another run's, or new.

A warm start begins with the rows and dense layers of another run's checkpoint (``checkpoint.warm_start_from``). The
dataset may have grown since: entities have new rows, and rows of expired IDs may belong to other IDs. Those rows begin
near the rows that they occur with (``neighbor_start``), or with random values. A new run begins with random values, or
with singular vectors of its interactions (``spectral_start``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError

from crossfade.base.arrays import IntArray
from crossfade.base.errors import CheckpointError, ClusterError, InputError, Option, command
from crossfade.base.io.folder import Folder
from crossfade.base.validation import format_validation_error
from crossfade.kvstore.checkpoint.checkpoint import Checkpoint, open_checkpoint
from crossfade.kvstore.checkpoint.format import MANIFEST_NAME
from crossfade.kvstore.checkpoint.lifecycle import latest_checkpoint
from crossfade.kvstore.store import NO_RESETS, RowStore
from crossfade.trainer.config.loading import check_job
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.data.manifest import DatasetManifest, data_fingerprint
from crossfade.trainer.data.reader import InteractionReader
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.model.dense import DenseLayers
from crossfade.trainer.model.neighbor_start import NO_NEIGHBORS, NewRows, find_neighbors, has_neighbor_start
from crossfade.trainer.model.spec import ModelSpec
from crossfade.trainer.model.spectral_start import SpectralStart, interaction_matrix
from crossfade.trainer.runs.job_inputs import JobInputs, RowSelection
from crossfade.trainer.runs.resumption import check_same_data
from crossfade.trainer.training.checkpointing import CheckpointMetadata
from crossfade.trainer.training.state import TrainState


class _RunRecord(BaseModel):
    """The part of a checkpoint's manifest that ``CheckpointMetadata`` writes."""

    run: str
    job: dict[str, Any]
    data: int
    train_state: dict[str, Any]


def restore_train_state(metadata: CheckpointMetadata, uri: str, rank: int) -> TrainState:
    """Restore the train state of the checkpoint ``uri``. Only rank 0 keeps its counters, so sums count them once.

    Raises:
        CheckpointError: the checkpoint is incomplete.
        InputError: it is of other data, or of a job that ``metadata.job`` must not resume.
    """
    checkpoint = open_checkpoint(uri)
    manifest = checkpoint.manifest
    try:
        record = _RunRecord.model_validate(manifest.training)
        state = TrainState.from_record(record.train_state, keep_counters=rank == 0)
    except ValidationError as error:
        raise InputError(
            f"{uri}: has no train state; expected a checkpoint that {command('train')} wrote "
            f"({format_validation_error(error)})"
        ) from error
    check_same_data(checkpoint, metadata.job.data.path, metadata.data)
    saved_job = check_job(record.job, uri)
    if conflicts := metadata.job.resume_conflicts(saved_job):
        raise InputError(f"{uri}: cannot resume: {', '.join(conflicts)}")
    return state


def create_tables(
    inputs: JobInputs,
    metadata: CheckpointMetadata,
    store: RowStore,
    dense: DenseLayers,
    selection: RowSelection,
    checkpoint: str | None,
    progress: ProgressReporter,
) -> str | None:
    """Create the tables and dense layers: from ``checkpoint``, or from the job's warm start, or new.

    In a warm start, new rows begin near the rows that they occur with in ``selection``; other new rows are random.
    Every worker calls this. Returns the checkpoint that rows come from, if any. ``progress`` is advanced while what
    rows begin with is computed.

    Raises:
        InputError: the warm start cannot be used.
        CheckpointError: the checkpoint is incomplete.
        ClusterError: the workers have different dense layers.
    """
    # A checkpoint of this run already has the rows of its data.
    warm_start = None if checkpoint else open_warm_start(metadata.job, inputs.model, inputs.manifest)
    rows_from = warm_start.checkpoint if warm_start else checkpoint
    resets = warm_start.rows_to_reset(inputs.folder, inputs.manifest) if warm_start else NO_RESETS
    store.create(metadata.tables, metadata.optimizer, metadata.job.train.seed, rows_from, resets)
    if warm_start and has_neighbor_start(inputs.model):
        _assign_neighbor_start(inputs, selection, store, warm_start, resets, progress)
    if rows_from is None and inputs.job.model.initialization == "spectral":
        _assign_spectral_start(inputs, selection, store, progress)
    if rows_from and inputs.model.dense:
        dense.load(open_checkpoint(rows_from))
    check_dense_in_sync(dense, store)
    return rows_from


def _assign_neighbor_start(
    inputs: JobInputs,
    selection: RowSelection,
    store: RowStore,
    warm_start: WarmStart,
    resets: Mapping[str, IntArray],
    progress: ProgressReporter,
) -> None:
    """Replace the random values of rows that the checkpoint lacks by the directions of the rows that they occur with.

    Every worker takes part in each pull and assignment, since stores wait for all; rank 0 has the rows.
    """
    query, item, manifest = inputs.model.query, inputs.model.item, inputs.manifest
    found = NO_NEIGHBORS, NO_NEIGHBORS
    new_queries, new_items = (
        NewRows(
            warm_start.rows[table.name],
            table.rows,
            np.setdiff1d(resets.get(table.name, _NO_ROWS), manifest.entities[table.name].vacant_rows),
        )
        for table in (query, item)
    )
    if store.rank == 0 and (new_queries or new_items):
        groups = selection.groups
        if warm_start.lineage_index == len(manifest.lineage) - 1:
            # What is replayed is of the dataset of the checkpoint, or earlier, so that it has no new row.
            files = {file.path for file in manifest.splits["train"].files}
            groups = [group for group in groups if group.file.path in files]
        with closing(InteractionReader(inputs.folder, manifest, inputs.job.data.reader_threads)) as reader:
            found = find_neighbors(reader, groups, new_queries, new_items, progress)
    for table, known, neighbors in ((query, item, found[0]), (item, query, found[1])):
        parts, count = neighbors.parts(), len(neighbors.bounds()) - 1
        for _ in range(int(store.all_reduce(np.array([float(max(count, 0))]))[0])):
            part = next(parts, None)
            known_BD = store.pull({known.name: part.known_B if part else _NO_ROWS})[known.name]
            store.assign(table.name, *(part.start(known_BD) if part else (_NO_ROWS, known_BD)))


def _assign_spectral_start(
    inputs: JobInputs, selection: RowSelection, store: RowStore, progress: ProgressReporter
) -> None:
    """Replace random values by a spectral start, which rank 0 computes; every worker takes part in each assignment."""
    query, item = inputs.model.query, inputs.model.item
    start = None
    if store.rank == 0:
        with closing(InteractionReader(inputs.folder, inputs.manifest, inputs.job.data.reader_threads)) as reader:
            matrix = interaction_matrix(reader, selection.groups, query.rows, item.rows, progress)
        start = SpectralStart.of(matrix, query.dim, inputs.job.train.seed, progress)
    for table in (query, item):
        for first in range(0, table.rows, _ASSIGNED_ROWS):
            rows = _NO_ROWS, np.empty((0, table.dim), np.float32)
            if start is not None:
                part = start.queries if table is query else start.items
                rows = part(first, first + _ASSIGNED_ROWS)
            store.assign(table.name, *rows)


_NO_ROWS = np.empty(0, np.int64)
_ASSIGNED_ROWS = 1 << 16
"""Rows of an assignment, at most."""


def check_dense_in_sync(dense: DenseLayers, store: RowStore) -> None:
    """Check that all workers begin with the same dense layers; equal gradients then keep them equal.

    Raises:
        ClusterError: they differ.
    """
    local = float(dense.checksum())
    if dense.entities and store.all_reduce(np.array([local]))[0] != local * store.workers:
        raise ClusterError(
            "the workers do not begin with the same dense layers; expected the same results on all "
            "hosts: the same version of Crossfade and numpy on the same kind of processor"
        )


@dataclass(frozen=True)
class WarmStart:
    """A checkpoint to begin a run with.

    Attributes:
        checkpoint: path or URI of the checkpoint.
        rows: number of rows in the checkpoint, by table.
        lineage_index: position of the checkpoint's dataset in the lineage of the run's; later datasets came since.
    """

    checkpoint: str
    rows: Mapping[str, int]
    lineage_index: int

    def rows_to_reset(self, data: Folder, manifest: DatasetManifest) -> dict[str, IntArray]:
        """Find the rows that must not come from the checkpoint: those without an ID, or whose ID has changed.

        Args:
            data: folder of the run's dataset.
            manifest: its manifest.

        Returns:
            By table, sorted row numbers, int64; tables without such rows are absent.

        Raises:
            InputError: the vocabulary cannot be read.
        """
        resets = {}
        for name, rows in self.rows.items():
            entity = manifest.entities[name]
            rows_R = np.array(entity.vacant_rows, dtype=np.int64)
            if entity.has_last_seen:
                reassigned_R = Vocabulary(data, manifest, name).rows_assigned_after(self.lineage_index)
                rows_R = np.union1d(rows_R, reassigned_R[reassigned_R < rows])
            if len(rows_R):
                resets[name] = rows_R
        return resets


def open_warm_start(job: JobConfig, model: ModelSpec, manifest: DatasetManifest) -> WarmStart | None:
    """Open the checkpoint that ``checkpoint.warm_start_from`` names, or the newest complete one of a folder.

    Returns None if the job has no warm start.

    Raises:
        InputError: there is no such checkpoint, its tables or dense layers do not fit the model, or the IDs of its rows
            are unknown.
    """
    source = job.checkpoint.warm_start_from
    if source is None:
        return None
    try:
        checkpoint = _find_checkpoint(source)
        checkpoint.check_fits(model.tables, job.optimizer_spec)
        DenseLayers.of(job, model).load(checkpoint)
        names = {table.name for table in model.tables}
        rows = {table.name: table.rows for table in checkpoint.manifest.tables if table.name in names}
        return WarmStart(checkpoint.uri, rows, _lineage_index(checkpoint, job, manifest, list(rows)))
    except (CheckpointError, InputError, OSError) as error:
        reason = str(error) if isinstance(error, OSError) else error.args
        raise InputError("checkpoint.warm_start_from: ", reason) from error


def _find_checkpoint(source: str) -> Checkpoint:
    checkpoint, skipped = latest_checkpoint(source)
    if checkpoint is not None:
        return checkpoint
    if Folder(source).exists(MANIFEST_NAME):
        return open_checkpoint(source)
    reasons = f" ({'; '.join(skipped)})" if skipped else ""
    raise CheckpointError(
        f"{source}: found no complete checkpoint{reasons}; expected a checkpoint, or a folder of checkpoints such as "
        "runs/NAME/checkpoints"
    )


def _lineage_index(checkpoint: Checkpoint, job: JobConfig, manifest: DatasetManifest, entities: Sequence[str]) -> int:
    """Find the dataset of ``checkpoint`` in the lineage of the job's dataset, which itself comes last.

    Raises:
        InputError: it is not there, and rows of ``entities`` may have moved from one ID to another since.
    """
    lineage = [*manifest.lineage, data_fingerprint(Folder(job.data.path))]
    trained_on = checkpoint.manifest.training.get("data")
    if trained_on in lineage:
        return lineage.index(trained_on)
    if any(manifest.entities[name].has_last_seen for name in entities):
        raise InputError(
            f"{checkpoint.uri}: was trained on a dataset that {job.data.path} does not extend, so its rows may belong "
            "to other ids there (",
            Option("expire_after"),
            "); expected a checkpoint trained on this dataset or on "
            f"one of its base datasets ({command('prepare', base=True)})",
        )
    return len(manifest.lineage)
