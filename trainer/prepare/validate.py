"""Validate a prepared dataset, from ``crossfade prepare`` or another tool: everything is read once.

    report = validate(ValidateOptions.of(data="s3://music/plays"), progress)
    report.problems.listed                # each with its file, row group and row; without any, there is a manifest now

At most a million rows are in memory at a time, however large row groups are (``dataset_checks.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

from crossfade.base.errors import InputError, Option, OptionError, as_typed, command
from crossfade.base.io.folder import Folder
from crossfade.base.io.storage_errors import translate_storage_errors
from crossfade.base.io.temporary_folder import temporary_folder
from crossfade.base.io.writer_lock import folder_writer
from crossfade.base.text import counted
from crossfade.trainer.data.manifest import FILE_NAME, JOURNAL, DatasetManifest, read_manifest
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.prepare.database import working_database
from crossfade.trainer.prepare.dataset_checks import DatasetChecks, Problems
from crossfade.trainer.prepare.infer_manifest import infer_manifest
from crossfade.trainer.prepare.options import ValidateOptions, memory_bytes


@dataclass(frozen=True)
class ValidationReport:
    """The result of a validation.

    Attributes:
        manifest: The manifest of the dataset; None if there is none and none could be inferred.
        problems: What is wrong.
        notes: What is allowed but could be better.
        manifest_written: Whether ``manifest`` was inferred and written.
    """

    manifest: DatasetManifest | None
    problems: Problems
    notes: list[str]
    manifest_written: bool


def validate(options: ValidateOptions, progress: ProgressReporter) -> ValidationReport:
    """Validate the dataset; if it has no manifest and no problem, write one.

    Without names of the entities, those of a dataset without a manifest are the first columns of train.

    Raises:
        InputError: the folder cannot be read, or its manifest has other entities than ``query`` and ``item``.
        StorageUnavailableError: storage stopped answering.
    """
    folder, problems = Folder(options.data), Problems()
    if folder.path is not None and folder.path.is_file():
        how = command("prepare", events=options.data, out="DATA")
        raise InputError(f"{options.data}: is a file; expected the folder of a dataset, as {how} writes it")
    with translate_storage_errors(folder.uri, unreachable=InputError):
        is_new = FILE_NAME not in folder.names()
    try:
        manifest = infer_manifest(folder, options.query, options.item, progress) if is_new else read_manifest(folder)
    except InputError as error:
        problems.add(error.worded(as_typed))
        return ValidationReport(None, problems, [], manifest_written=False)
    for field, given, found in (
        ("query", options.query, manifest.query),
        ("item", options.item, manifest.item),
    ):
        if given not in (None, found):
            raise OptionError(
                field,
                found=given,
                problem=f"the manifest in {folder.uri} has '{found}'",
                fix=("leave out ", Option(field)),
            )
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
    notes = _find_stray_files(folder, manifest, problems)
    writes_manifest = is_new and not problems.count
    if writes_manifest:
        with translate_storage_errors(folder.uri), folder_writer(folder):
            manifest.write_over(folder, None)
    return ValidationReport(manifest, problems, notes, writes_manifest)


def _find_stray_files(folder: Folder, manifest: DatasetManifest, problems: Problems) -> list[str]:
    if folder.exists(JOURNAL):
        problems.add(
            f"{folder.uri}/{JOURNAL}: a {command('forget')} was interrupted; run it again to delete its leftover files"
        )
        return []
    listed = {file.path for file in manifest.files()}
    strays = [path for path in sorted(folder.sizes()) if path.endswith(".parquet") and path not in listed]
    return [f"{counted(len(strays), 'file')} that the manifest does not list, such as {strays[0]}"] if strays else []
