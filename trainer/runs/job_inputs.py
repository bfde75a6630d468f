"""The inputs of a job: its dataset, the manifest, the model that fits both, and the interactions that it trains on.

These are all of train and of the replay, or those in the time range (``data.since``, ``data.until``). Every worker
counts them before the first step.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from crossfade.base.arrays import IntArray
from crossfade.base.errors import InputError, StorageUnavailableError
from crossfade.base.io.folder import Folder
from crossfade.trainer.config.auto_values import DatasetSize, resolve
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.data.lineage import LineageReader
from crossfade.trainer.data.manifest import DatasetManifest, read_manifest
from crossfade.trainer.data.reader import InteractionReader, RowGroup, row_groups, weigh_by_age
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.data.split_names import SplitName
from crossfade.trainer.data.time_range import AgeWeights, count_within
from crossfade.trainer.data.time_values import TimeSpan
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.model.spec import ModelSpec, make_model


class JobInputs(NamedTuple):
    """The folder of a dataset, its manifest, and the model that ``job``, without any ``auto``, trains on it."""

    folder: Folder
    manifest: DatasetManifest
    model: ModelSpec
    job: JobConfig

    def has_rows(self, split: SplitName) -> bool:
        """Return whether the dataset has ``split``, with rows in it."""
        return split in self.manifest.splits and self.manifest.splits[split].rows > 0


def dataset_size(manifest: DatasetManifest) -> DatasetSize:
    """Return the size of a dataset that is prepared."""
    queries, items = (manifest.entities[name].rows for name in (manifest.query, manifest.item))
    interactions = manifest.trained_on().rows if "train" in manifest.splits else 0
    size = DatasetSize(queries, items, interactions, manifest.is_grouped)
    if (found := manifest.co_occurrence) is not None:
        size = replace(size, lift=found.lift, items_per_query=found.items_per_query)
    return size


def open_lineage(job: JobConfig, folder: Folder, manifest: DatasetManifest) -> LineageReader:
    """Return a reader of the dataset in ``folder`` and of the earlier interactions that it carries."""
    return LineageReader(folder, manifest, job.data.reader_threads)


def open_inputs(job: JobConfig) -> JobInputs:
    """Load the inputs of a command that begins: storage that does not answer is reported as a wrong name.

    Raises:
        InputError: the dataset cannot be used or reached, or has nothing to train on.
    """
    try:
        return load_inputs(job)
    except StorageUnavailableError as error:
        raise InputError(*error.args) from error


def load_inputs(job: JobConfig) -> JobInputs:
    """Load the inputs of ``job``.

    Raises:
        InputError: the dataset cannot be used, or has nothing to train on.
        StorageUnavailableError: storage does not answer.
    """
    folder = Folder(job.data.path)
    manifest = read_manifest(folder)
    job = resolve(job, dataset_size(manifest))
    inputs = JobInputs(folder, manifest, make_model(job, manifest), job)
    if not inputs.has_rows("train"):
        raise InputError(f"{folder.uri}: its train split is empty: there is nothing to train on; prepare other data")
    return inputs


@dataclass(frozen=True)
class RowSelection:
    """The row groups to train on.

    Attributes:
        groups: the row groups, each with the number of its selected rows.
        has_time_range: whether the job has a time range, so that timestamps are read.
        ages: what the weights of the rows are multiplied by; None if the job has no half-life.
    """

    groups: Sequence[RowGroup]
    has_time_range: bool = False
    ages: AgeWeights | None = None

    @property
    def rows(self) -> int:
        """Return the interactions of an epoch."""
        return sum(group.rows for group in self.groups)


def select_rows(
    job: JobConfig,
    folder: Folder,
    manifest: DatasetManifest,
    progress: ProgressReporter,
) -> RowSelection:
    """Select the interactions of ``job`` in the dataset in ``folder``.

    Args:
        job: the job.
        folder: folder of its dataset.
        manifest: its manifest.
        progress: receives updates while rows are counted.

    Raises:
        InputError: no interaction is in the time range, the half-life has another unit than timestamps, or a file
            cannot be read.
        StorageUnavailableError: storage does not answer.
    """
    train, time_range, half_life = manifest.trained_on(), job.data.time_range(), job.train.half_life
    with closing(InteractionReader(folder, manifest, job.data.reader_threads)) as reader:
        row_counts = None if time_range is None else count_within(reader, manifest, train, time_range, progress)
        groups = row_groups(train, time_range, row_counts)
        ages = None if half_life is None else weigh_by_age(reader, groups, TimeSpan.parse(half_life))
    return RowSelection(groups, time_range is not None, ages)


def trained_counts(inputs: JobInputs, entity: str) -> IntArray:
    """Return how often each row of the query or item entity occurs in what is trained on, where weights are above 0.

    That is the count of the vocabulary and, what that leaves out, of the replay: int64 (R,).

    Raises:
        InputError: a file is missing or corrupt.
        StorageUnavailableError: storage does not answer.
    """
    folder, manifest = inputs.folder, inputs.manifest
    count_R = Vocabulary(folder, manifest, entity).counts()
    if manifest.replay is not None:
        with closing(InteractionReader(folder, manifest, inputs.job.data.reader_threads)) as reader:
            for part in reader.read_all(manifest.replay, ()):
                row_N = part.query_N if entity == manifest.query else part.item_N
                np.add.at(count_R, row_N[part.weight_N > 0], 1)
    return count_R
