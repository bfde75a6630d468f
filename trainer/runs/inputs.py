"""The inputs of a job: its dataset, the manifest, and the model that fits both."""

from __future__ import annotations

from typing import NamedTuple

from crossfade.base.errors import InputError, StorageUnavailableError
from crossfade.base.io.folder import Folder
from crossfade.trainer.config.defaults import DatasetSize, resolve
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.data.lineage import LineageReader
from crossfade.trainer.data.manifest import DatasetManifest, read_manifest
from crossfade.trainer.data.splits import SplitName
from crossfade.trainer.model.spec import ModelSpec, make_model
from crossfade.trainer.runs.row_selection import check_row_groups


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
    interactions = manifest.splits["train"].rows if "train" in manifest.splits else 0
    return DatasetSize(queries, items, interactions, manifest.is_grouped)


def open_lineage(job: JobConfig, folder: Folder, manifest: DatasetManifest) -> LineageReader:
    """Return a reader of the dataset in ``folder`` and its base datasets, as ``job`` says."""
    only = job.data.history_from_this_dataset_only
    return LineageReader(folder, manifest, job.data.reader_threads, this_dataset_only=only)


def open_inputs(job: JobConfig) -> JobInputs:
    """Load the inputs of a command that begins: storage that does not answer is reported as a wrong name.

    Raises:
        InputError: the dataset cannot be used or reached, or has nothing to train on.
    """
    try:
        return load_inputs(job)
    except StorageUnavailableError as error:
        raise InputError(str(error)) from error


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
