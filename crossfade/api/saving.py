"""Save a model to a folder that commands read, which replaces nothing but an earlier run or saved model.

save_model("runs/plays", "data/plays", "models/plays", overwrite=True, with_dataset=False)
"""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from crossfade.base.errors import CrossfadeError, InputError
from crossfade.base.io.disk_errors import write_failure
from crossfade.base.io.durable_file import written_name
from crossfade.base.io.folder import Folder
from crossfade.base.io.output import staged_folder
from crossfade.base.io.regular_files import read_regular
from crossfade.base.io.replacing import check_replaceable, replace_folder
from crossfade.trainer.config.loading import parse_job_text
from crossfade.trainer.prepare.staging import foreign_name
from crossfade.trainer.runs.run_folder import JOB_FILE, RunFolder
from crossfade.trainer.runs.run_lock import LOCK_FILE

DATASET_FOLDER = "dataset"
"""The dataset of a model that was trained on a data frame, in its folder."""


def save_model(source: str, data: str, folder: str, overwrite: bool, *, with_dataset: bool) -> str:
    """Copy the model in ``source``, and its dataset ``data`` if ``with_dataset``, to ``folder``; return its path.

    Raises:
        CrossfadeError: ``folder`` cannot be written.
        InputError: ``folder`` may not be replaced, or another process writes it.
    """
    for location in (folder, source):
        if "://" in location:
            raise InputError(f"{location}: expected a local folder; copy it to or from S3 by other means")
    target, place, origin = Path(folder).absolute(), Path(folder).resolve(), Path(source).resolve()
    if place == origin:
        return str(target)
    if place.is_relative_to(origin) or origin.is_relative_to(place):
        raise InputError(f"{folder}: lies in the folder of the model, {source}, or holds it; choose another folder")
    if Path.cwd().is_relative_to(place):
        raise InputError(f"{folder}: holds the current folder, which it would replace; choose another folder")
    check_free(target, overwrite)
    if not with_dataset and RunFolder(target).contains(data):
        raise InputError(f"{folder}: holds {data}, the dataset of the model; choose another folder")
    try:
        with staged_folder(target) as staging:
            shutil.copytree(
                source, staging, ignore=shutil.ignore_patterns(LOCK_FILE, DATASET_FOLDER), dirs_exist_ok=True
            )
            (staging / LOCK_FILE).touch()
            if with_dataset:
                shutil.copytree(data, staging / DATASET_FOLDER)
                values = yaml.safe_load((staging / JOB_FILE).read_text(encoding="utf-8"))
                values["data"]["path"] = str(target / DATASET_FOLDER)
                (staging / JOB_FILE).write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
            check_free(target, overwrite)
            replace_folder(target, staging)
    except OSError as error:
        raise CrossfadeError(f"{folder}: could not be written: {write_failure(error, target)}") from error
    return str(target)


def check_free(folder: Path, overwrite: bool) -> None:
    """Reject an existing ``folder``, unless ``overwrite`` is given and it is empty or holds nothing but a run.

    Raises:
        InputError: it may not be replaced.
    """
    check_replaceable(folder, overwrite, "a model", lambda: _find_foreign(folder), option="folder")


def _find_foreign(folder: Path) -> str | None:
    """Return the name of a file of ``folder`` that is not part of a model; None if there is none.

    Raises:
        InputError: it is no model, or is being written.
    """
    run = RunFolder(folder)
    if foreign := [name for name in run.foreign_names() if written_name(name) != DATASET_FOLDER]:
        return foreign[0]
    if (dataset := folder / DATASET_FOLDER).is_dir() and (name := foreign_name(Folder(dataset))) is not None:
        return f"{DATASET_FOLDER}/{name}"
    if any(folder.iterdir()) and not _is_job(folder / JOB_FILE):
        problem = f"holds no model (it has no {JOB_FILE} of a run), so it is not replaced"
        raise InputError(f"{folder}: {problem}; choose another")
    if run.lock.is_held():
        raise InputError(f"{folder}: a run is in progress; wait until it ends, or choose another folder")
    return None


def _is_job(path: Path) -> bool:
    try:
        values = parse_job_text(read_regular(path).decode(), JOB_FILE)
    except (OSError, UnicodeDecodeError, InputError):
        return False
    return isinstance(values, dict) and "name" in values and "data" in values
