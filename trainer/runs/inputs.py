"""What a job reads: its data folder, the manifest, and the model that fits it."""

from __future__ import annotations

from kvstore.errors import InputError, StorageUnavailableError
from kvstore.io.folder import Folder
from trainer.config.schema import JobConfig
from trainer.data.manifest import DatasetManifest, read_manifest
from trainer.model.spec import ModelSpec, make_model
from trainer.runs.row_selection import check_row_groups


def open_inputs(job: JobConfig) -> tuple[Folder, DatasetManifest, ModelSpec]:
    """``load_data`` for a command that begins: storage that does not answer then was named wrongly, most likely.

    Raises:
        InputError: the data cannot be used, or reached, or has nothing to train on.
    """
    try:
        return load_inputs(job)
    except StorageUnavailableError as error:
        raise InputError(str(error)) from error


def load_inputs(job: JobConfig) -> tuple[Folder, DatasetManifest, ModelSpec]:
    """The data folder of ``job``, its manifest, and the model that fits it.

    Raises:
        InputError: the data cannot be used, or has nothing to train on.
        UnreachableError: storage does not answer.
    """
    folder = Folder(job.data.path)
    manifest = read_manifest(folder)
    model = make_model(job, manifest)
    if "train" not in manifest.splits or manifest.splits["train"].rows == 0:
        raise InputError(f"{folder.uri}: its train split is empty: there is nothing to train on; prepare other data")
    check_row_groups(job, folder, manifest)
    return folder, manifest, model
