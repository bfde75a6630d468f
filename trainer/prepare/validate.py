"""Validate a prepared dataset, from ``crossfade prepare`` or another tool: everything is read once.

    report = validate(ValidateOptions.of(data="s3://music/plays"), progress)
    report.problems.listed                # each with its file, row group and row

At most a million rows are in memory at a time, however large row groups are (``dataset_checks.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

from crossfade.base.errors import InputError, as_typed, command
from crossfade.base.io.folder import Folder
from crossfade.base.io.temporary_folder import temporary_folder
from crossfade.base.text import counted
from crossfade.trainer.data.manifest import DatasetManifest, read_manifest
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.prepare.database import working_database
from crossfade.trainer.prepare.dataset_checks import DatasetChecks, Problems
from crossfade.trainer.prepare.options import ValidateOptions, memory_bytes


@dataclass(frozen=True)
class ValidationReport:
    """The result of a validation.

    Attributes:
        manifest: The manifest of the dataset; None if it cannot be read.
        problems: What is wrong.
        notes: What is allowed but could be better.
    """

    manifest: DatasetManifest | None
    problems: Problems
    notes: list[str]


def validate(options: ValidateOptions, progress: ProgressReporter) -> ValidationReport:
    """Validate the dataset.

    Raises:
        InputError: the folder cannot be read.
        StorageUnavailableError: storage stopped answering.
    """
    folder, problems = Folder(options.data), Problems()
    if folder.path is not None and folder.path.is_file():
        how = command("prepare", events=options.data, out="DATA")
        raise InputError(f"{options.data}: is a file; expected the folder of a dataset, as {how} writes it")
    try:
        manifest = read_manifest(folder)
    except InputError as error:
        problems.add(error.worded(as_typed))
        return ValidationReport(None, problems, [])
    with (
        temporary_folder("validate") as work,
        working_database(work, memory_bytes(options.memory), None) as connection,
    ):
        checks = DatasetChecks(folder, manifest, problems, connection, progress)
        checks.splits()
        for entity, features in manifest.features.items():
            for name in features:
                checks.feature(entity, name)
        for entity, columns in manifest.content.items():
            for name in columns:
                checks.content(entity, name)
        for name in manifest.entities:
            checks.vocabulary(name)
    return ValidationReport(manifest, problems, _find_stray_files(folder, manifest))


def _find_stray_files(folder: Folder, manifest: DatasetManifest) -> list[str]:
    listed = {file.path for file in manifest.files()}
    strays = [path for path in sorted(folder.sizes()) if path.endswith(".parquet") and path not in listed]
    return [f"{counted(len(strays), 'file')} that the manifest does not list, such as {strays[0]}"] if strays else []
