"""The inputs of a job: its dataset, the manifest, the model that fits both, and the interactions that it trains on.

These are all of train and of the replay, or those in the time range (``data.since``, ``data.until``). All workers need
the number of rows before the first step. The command counts them once and leaves the counts in the run folder, where
the workers of every generation find them. A worker that finds none counts for itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from crossfade.base.arrays import IntArray
from crossfade.base.errors import InputError, StorageUnavailableError, command
from crossfade.base.io.durable_file import replace_file
from crossfade.base.io.folder import Folder
from crossfade.base.io.regular_files import read_below
from crossfade.base.json_text import validate_json
from crossfade.trainer.config.schema import DatasetSize, JobConfig, resolve
from crossfade.trainer.data.lineage import LineageReader
from crossfade.trainer.data.manifest import DatasetManifest, Split, read_manifest
from crossfade.trainer.data.reader import InteractionReader, RowGroup, row_groups, weigh_by_age
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.data.split_names import SplitName
from crossfade.trainer.data.time_range import AgeWeights, count_within
from crossfade.trainer.data.time_values import TimeSpan
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.model.spec import ModelSpec, make_model
from crossfade.trainer.runs.run_folder import ROW_COUNTS_FILE


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
    check_row_groups(job, folder, manifest)
    return inputs


@dataclass(frozen=True)
class RowSelection:
    """The row groups to train on.

    Attributes:
        groups: the row groups, each with the number of its selected rows.
        row_counts: selected rows of each row group of each file; None if the job has no time range.
        ages: what the weights of the rows are multiplied by; None if the job has no half-life.
    """

    groups: Sequence[RowGroup]
    row_counts: list[list[int]] | None = None
    ages: AgeWeights | None = None

    @property
    def rows(self) -> int:
        """Return the interactions of an epoch."""
        return sum(group.rows for group in self.groups)

    def write(self, run_dir: Path, job: JobConfig, fingerprint: int) -> None:
        """Write the counts, if there are any, to the folder of a run of ``job``, for ``load_row_counts``."""
        if self.row_counts is None:
            return
        record = {**_selection_of(job, fingerprint), "row_counts": self.row_counts}
        replace_file(run_dir / ROW_COUNTS_FILE, json.dumps(record).encode() + b"\n")


class _RowCounts(BaseModel):
    """The file of counts: what they are of, and the counts."""

    model_config = ConfigDict(extra="forbid")

    since: int | str | None
    until: int | str | None
    data: int
    row_counts: list[list[int]]


def _selection_of(job: JobConfig, fingerprint: int) -> dict[str, int | str | None]:
    return {"since": job.data.since, "until": job.data.until, "data": fingerprint}


def select_rows(
    job: JobConfig,
    folder: Folder,
    manifest: DatasetManifest,
    progress: ProgressReporter,
    row_counts: list[list[int]] | None = None,
) -> RowSelection:
    """Select the interactions of ``job`` in the dataset in ``folder``.

    Args:
        job: the job.
        folder: folder of its dataset.
        manifest: its manifest.
        progress: receives updates while rows are counted.
        row_counts: selected rows of each row group of each file; None: count them, if the job has a time range.

    Raises:
        InputError: no interaction is in the time range, the half-life has another unit than timestamps, or a file
            cannot be read.
        StorageUnavailableError: storage does not answer.
    """
    train, time_range, half_life = manifest.trained_on(), job.data.time_range(), job.train.half_life
    with closing(InteractionReader(folder, manifest, job.data.reader_threads)) as reader:
        if time_range is None:
            row_counts = None
        elif row_counts is None:
            row_counts = count_within(reader, manifest, train, time_range, progress)
        groups = row_groups(train, time_range, row_counts)
        ages = None if half_life is None else weigh_by_age(reader, groups, TimeSpan.parse(half_life))
    return RowSelection(groups, row_counts, ages)


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


def load_row_counts(run_dir: Path, job: JobConfig, fingerprint: int, train: Split) -> list[list[int]] | None:
    """Load the counts of ``train``, what is trained on, from ``run_dir``; None if none are of this job and dataset."""
    try:
        record = validate_json(_RowCounts, read_below(run_dir, ROW_COUNTS_FILE))
    except (OSError, ValueError):
        return None
    if record.model_dump(exclude={"row_counts"}) != _selection_of(job, fingerprint):
        return None
    stored = [file.row_groups for file in train.files]
    fits = [len(rows) for rows in record.row_counts] == [len(rows) for rows in stored] and all(
        0 <= counted <= rows
        for counts, groups in zip(record.row_counts, stored, strict=True)
        for counted, rows in zip(counts, groups, strict=True)
    )
    return record.row_counts if fits else None


def check_row_groups(job: JobConfig, folder: Folder, manifest: DatasetManifest) -> None:
    """Check that no row group is larger than ``data.max_row_group_rows``: a worker holds several in memory.

    Raises:
        InputError: one is.
    """
    limit = job.data.max_row_group_rows
    for split in manifest.interactions().values():
        for file in split.files:
            for index, rows in enumerate(file.row_groups):
                if rows > limit:
                    raise InputError(
                        f"{folder.uri}/{file.path}, row group {index}: has {rows:,} rows, but data.max_row_group_rows "
                        f"is {limit:,}, and a worker holds several row groups in memory; write the file with smaller "
                        f"row groups ({command('prepare')} writes 131,072 rows at most), or, if there is memory, set "
                        f"data.max_row_group_rows to {rows} ({command('plan')} shows the memory it takes)"
                    )
