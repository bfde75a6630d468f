"""Restore a run: its tables, dense layers and train state, from a checkpoint or new."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.errors import ClusterError, InputError, option_named
from crossfade.base.validation import format_validation_error
from crossfade.kvstore.checkpoint.reader import open_checkpoint
from crossfade.kvstore.store import NO_RESETS, RowStore
from crossfade.trainer.config.loading import check_job
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.model.dense import DenseLayers
from crossfade.trainer.model.given_vectors import open_given_vectors
from crossfade.trainer.runs.events import EventSink, KernelsDiffer
from crossfade.trainer.runs.inputs import JobInputs
from crossfade.trainer.training.checkpoint_metadata import CheckpointMetadata
from crossfade.trainer.training.state import TrainState
from crossfade.trainer.training.warm_start import open_warm_start


class _RunRecord(BaseModel):
    """The part of a checkpoint's manifest that ``CheckpointMetadata`` writes."""

    run: str
    job: dict[str, Any]
    data: int
    kernels: str | None = None  # checkpoints of earlier versions have none
    train_state: dict[str, Any]


def restore_train_state(
    metadata: CheckpointMetadata, uri: str, rank: int, on_event: EventSink = lambda _: None
) -> TrainState:
    """Restore the train state of the checkpoint ``uri``. Only rank 0 keeps its counters, so sums count them once.

    ``on_event`` receives an event if the checkpoint was written with other kernels.

    Raises:
        CheckpointError: the checkpoint is incomplete.
        InputError: it is of other data, or of a job that ``metadata.job`` must not resume.
    """
    manifest = open_checkpoint(uri).manifest
    try:
        record = _RunRecord.model_validate(manifest.training)
        state = TrainState.from_record(record.train_state, keep_counters=rank == 0)
    except ValidationError as error:
        raise InputError(
            f"{uri}: has no train state; expected a checkpoint that 'crossfade train' wrote "
            f"({format_validation_error(error)})"
        ) from error
    saved_job = check_job(record.job, uri)
    if conflicts := metadata.job.resume_conflicts(saved_job):
        raise InputError(f"{uri}: cannot resume: {', '.join(conflicts)}")
    if record.data != metadata.data:
        raise InputError(
            f"{uri}: cannot resume: {metadata.job.data.path} has changed since; to continue from its tables, start "
            f"another run without {option_named('resume')}: {option_named('run_dir', 'NEW')} "
            f"{option_named('set', f'checkpoint.warm_start_from={uri}')} (rows without an id are reset)"
        )
    if problem := state.conflict(manifest.step, saved_job.train.epochs, metadata.job.evaluate.best_metric):
        raise InputError(f"{uri}: cannot resume: its train state {problem}; resume from another checkpoint")
    if record.kernels not in (None, metadata.kernels):
        on_event(KernelsDiffer(kernels=metadata.kernels, expected=record.kernels, checkpoint=uri))
    return state


def create_tables(
    inputs: JobInputs, metadata: CheckpointMetadata, store: RowStore, dense: DenseLayers, checkpoint: str | None
) -> str | None:
    """Create the tables and dense layers: from ``checkpoint``, or from the job's warm start, or new.

    New rows begin with the vectors of ``model.start`` or random values. Every worker calls this. Returns the checkpoint
    that rows come from, if any.

    Raises:
        InputError: the warm start or the given vectors cannot be used.
        CheckpointError: the checkpoint is incomplete.
        ClusterError: the workers have different dense layers.
    """
    # A checkpoint of this run already has the rows of its data.
    warm_start = None if checkpoint else open_warm_start(metadata.job, inputs.model, inputs.manifest)
    rows_from = warm_start.checkpoint if warm_start else checkpoint
    resets = warm_start.rows_to_reset(inputs.folder, inputs.manifest) if warm_start else NO_RESETS
    store.create(metadata.tables, metadata.optimizer, metadata.job.train.seed, rows_from, resets)
    if not checkpoint:
        _assign_given_vectors(inputs, metadata.job, store, warm_start.rows if warm_start else {}, resets)
    if rows_from and inputs.model.dense:
        dense.load(open_checkpoint(rows_from))
    check_dense_in_sync(dense, store)
    return rows_from


def _assign_given_vectors(
    inputs: JobInputs, job: JobConfig, store: RowStore, loaded: Mapping[str, int], resets: Mapping[str, IntArray]
) -> None:
    """Replace the random values of rows by given vectors, except of the ``loaded`` rows of a warm start.

    Only rank 0 reads them. Every worker takes part in each block, since servers wait for all.
    """
    if not job.model.start:
        return
    folder, manifest, model, _ = inputs
    given = open_given_vectors(job, model, folder, manifest) if store.rank == 0 else {}
    for table in (table for table in model.tables if table.name in job.model.start):
        name, count = table.name, 0
        blocks: Iterator[tuple[IntArray, FloatArray]] = iter(())
        if store.rank == 0:
            wanted_R = np.arange(table.rows) >= loaded.get(name, 0)
            wanted_R[resets.get(name, [])] = True
            blocks, count = given[name].blocks(wanted_R), given[name].count_blocks()
        no_rows = np.empty(0, np.int64), np.empty((0, table.dim), np.float32)
        for _ in range(int(store.all_reduce(np.array([float(count)]))[0])):
            store.assign(name, *next(blocks, no_rows))


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
