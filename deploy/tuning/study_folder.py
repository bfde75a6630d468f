"""The folder of a tuning study, which one process at a time runs.

FOLDER/  job.yaml  study.lock  best.yaml  study.journal or quick.json  and a run folder and a log for each training
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from crossfade.base.errors import CrossfadeError, InputError
from crossfade.base.io.disk_errors import is_full_disk, write_failure
from crossfade.base.io.durable_file import replace_file
from crossfade.base.io.file_lock import try_lock
from crossfade.deploy.tuning.search_space import format_override
from crossfade.trainer.config.loading import load_job
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.runs.folder import JOB_FILE

JOURNAL_FILE, QUICK_FILE, BEST_FILE, LOCK_FILE = "study.journal", "quick.json", "best.yaml", "study.lock"
_KINDS = {JOURNAL_FILE: "without --quick", QUICK_FILE: "with --quick"}
"""How the study is run whose state is in a file of this name."""


def claim_study(folder: Path, job: JobConfig, state_file: str) -> IO[bytes]:
    """Claim ``folder`` for a study of ``job`` while the returned file is open; create it if it does not exist.

    ``state_file`` is ``JOURNAL_FILE`` or ``QUICK_FILE``, by the kind of the study.

    Raises:
        InputError: the folder holds something else, another study, or one that another process runs.
    """
    text = job.with_absolute_paths().to_yaml()
    path = folder / JOB_FILE
    exists = path.exists() and (folder / LOCK_FILE).exists()
    # A command that could not write the job, as on a full disk, has left the lock.
    if not exists and folder.exists() and {path.name for path in folder.iterdir()} - {LOCK_FILE}:
        raise InputError(f"{folder}: exists and holds no study; name another folder with --out")
    for name, how in _KINDS.items():
        if name != state_file and (folder / name).exists():
            raise InputError(f"{folder}: holds a study {how}; name another folder with --out")
    if exists and path.read_text(encoding="utf-8") != text:
        differences = job.resume_conflicts(load_job(path)) or ["keys that may change within a run"]
        raise InputError(
            f"{folder}: holds a study of another job: {', '.join(differences)}; name another folder with --out"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as opened:
        lock = opened.enter_context((folder / LOCK_FILE).open("wb"))
        try:
            try_lock(lock)
        except BlockingIOError:
            raise InputError(
                f"{folder}: another process runs this study; wait for it, or name another folder with --out"
            ) from None
        replace_file(path, text.encode())
        opened.pop_all()
    return lock


@contextmanager
def study_errors(folder: Path) -> Iterator[None]:
    """Raise an ``OSError`` of a full disk inside the block as one that names the disk of the study in ``folder``.

    Raises:
        CrossfadeError: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if not is_full_disk(error):
            raise
        raise CrossfadeError(
            f"{folder}: could not be written: {write_failure(error, folder)}; make room, and repeat the command, which "
            "resumes the study"
        ) from error


def write_best(folder: Path, parameters: Mapping[str, Any]) -> None:
    """Write ``best.yaml``: the job of the study in ``folder`` with these values by key."""
    overrides = [format_override(key, value) for key, value in parameters.items()]
    replace_file(folder / BEST_FILE, load_job(folder / JOB_FILE, overrides).to_yaml().encode())
