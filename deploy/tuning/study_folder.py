"""The folder of a study, by tuning or by a backtest, which one process at a time runs.

FOLDER/  job.yaml  study.lock  a run folder and a log for each training, and study.journal or backtest.json
"""

from __future__ import annotations

import fcntl
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from crossfade.base.errors import InputError, Option
from crossfade.base.io.durable_file import replace_file
from crossfade.deploy.tuning.options import TuneOptions
from crossfade.deploy.tuning.rungs import Rung, plan_rungs, whole_trainings
from crossfade.deploy.tuning.search_space import SearchParameter, check_parameters, default_parameters, quick_parameters
from crossfade.trainer.config.loading import change_job, load_job
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.runs.job_inputs import load_inputs
from crossfade.trainer.runs.run_folder import JOB_FILE, default_run_dir

JOURNAL_FILE, BACKTEST_FILE, BEST_FILE, LOCK_FILE = "study.journal", "backtest.json", "best.yaml", "study.lock"
_KINDS = {JOURNAL_FILE: "of settings", BACKTEST_FILE: "of windows"}
"""What is studied, by the file that has the state."""
_TRIALS = 20
"""Trials of a study that is not quick, by default."""
OTHER_FOLDER = ("name another folder with ", Option("out"))


@dataclass(frozen=True)
class StudyPlan:
    """What a study tries, and where it is kept.

    Attributes:
        folder: the folder of the study.
        job: the job as it is in its file.
        resolved_job: the job with a value for each ``auto``.
        parameters: the keys that are searched, and their values.
        rungs: how many trials are trained, and for how long.
        quick: whether the study is a quick one.
    """

    folder: Path
    job: JobConfig
    resolved_job: JobConfig
    parameters: list[SearchParameter]
    rungs: list[Rung]
    quick: bool


def plan_study(options: TuneOptions) -> StudyPlan:
    """Return what the study of ``options`` tries.

    Raises:
        InputError: the job or a search parameter is invalid, or the dataset has no valid split.
    """
    job = options.load_job()
    inputs = load_inputs(job)
    if not inputs.has_rows("valid"):
        fix = ("prepare it with ", Option("hold_out"))
        raise InputError(f"{inputs.folder.uri}: has no valid split to compare settings by; ", fix)
    defaults = quick_parameters if options.quick else default_parameters
    parameters = [SearchParameter.parse(text) for text in options.search] or defaults(inputs.job)
    check_parameters(options.job, options.set, parameters)
    run_dir = default_run_dir(job)
    folder = options.out or run_dir.with_name(f"{run_dir.name}-tune{'-quick' if options.quick else ''}")
    rungs = plan_rungs(inputs.job) if options.quick else whole_trainings(inputs.job, options.trials or _TRIALS)
    return StudyPlan(folder, job, inputs.job, parameters, rungs, options.quick)


def claim_study(folder: Path, job: JobConfig, state_file: str) -> IO[bytes]:
    """Claim ``folder`` for a study of ``job`` while the returned file is open; create it if it does not exist.

    ``state_file`` is one of ``_KINDS``, by the kind of the study.

    Raises:
        InputError: the folder holds something else, another study, or one that another process runs.
    """
    text = job.with_absolute_paths().to_yaml()
    path = folder / JOB_FILE
    exists = path.exists() and (folder / LOCK_FILE).exists()
    # A command that could not write the job, as on a full disk, has left the lock.
    if not exists and folder.exists() and {path.name for path in folder.iterdir()} - {LOCK_FILE}:
        raise InputError(f"{folder}: exists and holds no study; ", OTHER_FOLDER)
    for name, how in _KINDS.items():
        if name != state_file and (folder / name).exists():
            raise InputError(f"{folder}: holds a study {how}; ", OTHER_FOLDER)
    if exists and path.read_text(encoding="utf-8") != text:
        differences = job.resume_conflicts(load_job(path)) or ["keys that may change within a run"]
        raise InputError(f"{folder}: holds a study of another job: {', '.join(differences)}; ", OTHER_FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as opened:
        lock = opened.enter_context(_lock(folder))
        replace_file(path, text.encode())
        opened.pop_all()
    return lock


def _lock(folder: Path) -> IO[bytes]:
    lock = (folder / LOCK_FILE).open("wb")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise InputError(f"{folder}: another process runs this study; wait for it, or ", OTHER_FOLDER) from None
    return lock


def write_best(folder: Path, parameters: Mapping[str, Any]) -> None:
    """Write ``best.yaml``: the job of the study in ``folder`` with these values by key."""
    best = change_job(load_job(folder / JOB_FILE), parameters, str(folder / JOB_FILE))
    replace_file(folder / BEST_FILE, best.to_yaml().encode())
