"""The folder of a run.

    runs/NAME/
      job.yaml          the job, resolved              events.jsonl      events of the training
      run.json          ID, name and start of the run  processes.jsonl   load of its processes, restarts
      restarts.json     restarts so far                state.json        state of its processes, every second
      report.json       report of the finished run
      checkpoints/  embeddings/  logs/  run.lock

Files are replaced atomically and durably, or appended to, so that a process killed at any time, or a crash of the
machine, leaves a readable folder. Their content may be of anyone, since a folder is copied, shared, and edited:

    identity = read_run_file(path / "run.json", RunIdentity)
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, RootModel, ValidationError

from crossfade.base.errors import InputError, Option, Text, command
from crossfade.base.io.durable_file import is_partial, replace_file, written_name
from crossfade.base.io.regular_files import read_below
from crossfade.base.json_text import parse_json
from crossfade.base.text import similar_path
from crossfade.base.validation import format_validation_error
from crossfade.trainer.config.loading import make_job
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.runs.run_lock import LOCK_FILE, RunInProgressError, RunLock, folder_lock

File = TypeVar("File", bound=BaseModel)
_FIX = "restore it"


class RunIdentity(BaseModel):
    """``run.json``: who the run is. Its ID is a part of the names of files."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    name: str | None = None
    started: float | None = None


class RunReport(BaseModel):
    """``report.json``: the members that are read back."""

    steps: Annotated[int, Field(ge=0)]
    epochs: Annotated[int, Field(ge=0)]
    best_epoch: int | None
    metrics: dict[str, dict[str, float]]


class RunRestarts(RootModel[list[dict[str, Any]]]):
    """``restarts.json``: an object for each restart."""


def read_run_file(path: Path, model: type[File], fix: Text = _FIX) -> File:
    """Read the JSON file at ``path``; ``fix`` is what a user can do if it cannot be read.

    Raises:
        FileNotFoundError: there is none.
        InputError: it cannot be read, or is not such a file.
    """
    return parse_run_file(_read(path), str(path), model, fix)


def read_report(path: Path, fix: Text = _FIX) -> dict[str, Any]:
    """Read all members of the report at ``path``, in their order; ``fix`` is what a user can do if it cannot be read.

    Raises:
        FileNotFoundError: there is none.
        InputError: it cannot be read, or is not a report.
    """
    data = _read(path)
    parse_run_file(data, str(path), RunReport, fix)
    report: dict[str, Any] = parse_json(data)
    return report


def _read(path: Path) -> bytes:
    try:
        return read_below(path.parent, path.name)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def parse_run_file(data: bytes, name: str, model: type[File], fix: Text = _FIX) -> File:
    """Parse ``data``, the content of the file ``name``; ``fix`` is what a user can do if it cannot be parsed.

    Raises:
        InputError: it is not such a file.
    """
    if not data.strip(b"\0 \n"):
        raise InputError(f"{name}: is empty; ", fix)
    try:
        return model.model_validate(parse_json(data))
    except ValidationError as error:
        problem = format_validation_error(error)
        raise InputError(f"{name}: is not as {command('train')} writes it: {problem}; ", fix) from error
    except ValueError as error:
        raise InputError(f"{name}: is not as {command('train')} writes it: {error}; ", fix) from error


JOB_FILE, RUN_FILE = "job.yaml", "run.json"
EVENTS_FILE, PROCESSES_FILE, STATE_FILE = "events.jsonl", "processes.jsonl", "state.json"
RESTARTS_FILE, REPORT_FILE = "restarts.json", "report.json"
EMBEDDINGS_FOLDER = "embeddings"
_FILES_FOR_ROLES = (JOB_FILE, RUN_FILE)
_FOLDERS = ("checkpoints", EMBEDDINGS_FOLDER, "logs", "map")
_FILES = (
    *(JOB_FILE, RUN_FILE, LOCK_FILE, EVENTS_FILE, PROCESSES_FILE, STATE_FILE),
    *(RESTARTS_FILE, REPORT_FILE),
)
_NAMES = {*_FILES, *_FOLDERS}


def similar_run(path: Path) -> str:
    """Return the end of a message about a ``path`` that is not a run folder: the one meant, if there is a similar."""
    folders = [found.parent for parent in (path.parent, Path("runs")) for found in sorted(parent.glob(f"*/{JOB_FILE}"))]
    near = similar_path(path.name, folders)
    return "" if near is None else f"; did you mean '{near}'?"


@dataclass(frozen=True)
class EarlierRun:
    """A run that was moved aside: where it is now, and whether it was finished; otherwise it can be resumed there."""

    path: Path
    finished: bool


class RunFolder:
    """The folder of one run, which may not exist yet."""

    def __init__(self, path: Path, command: str | None = None) -> None:
        """Describe the run folder at ``path``; nothing is read or created.

        ``command`` is the ID of the command that runs the run, which its roles get; None: none does.
        """
        self.path = path if path.name else path.absolute()
        self.lock = RunLock(self.path, command)
        self.embeddings = self.path / EMBEDDINGS_FOLDER
        self.logs = self.path / "logs"

    def job(self) -> JobConfig:
        """Load the job, as it was resolved when the run began.

        Raises:
            InputError: this is not a run folder.
        """
        if not (self.path / JOB_FILE).exists():
            raise InputError(
                f"{self.path}: not a run folder: it has no {JOB_FILE}; expected a folder that {command('train')} wrote"
            )
        return make_job(_read(self.path / JOB_FILE), str(self.path / JOB_FILE))

    def contains(self, uri: str) -> bool:
        """Return whether ``uri`` is a path inside this folder, so that it moves along with the folder."""
        return "://" not in uri and Path(uri).absolute().is_relative_to(self.path.absolute())

    def has_run_id(self) -> bool:
        """Return whether a run has started here."""
        return (self.path / RUN_FILE).exists()

    def run_id(self) -> str:
        """Read the ID of the run, which also marks its checkpoints.

        Raises:
            InputError: the file cannot be read.
        """
        return self._identity().id

    def started(self) -> float | None:
        """Read the Unix time when the run started, first if it was resumed; None for runs of earlier versions.

        Raises:
            InputError: the file cannot be read.
        """
        return self._identity().started

    def _identity(self) -> RunIdentity:
        return read_run_file(self.path / RUN_FILE, RunIdentity, "restore it, or delete it for a new run ID")

    def check_readable(self) -> None:
        """Check the files that a run which resumes here reads, as far as they exist.

        Raises:
            InputError: one is empty, truncated or of other content.
        """
        if self.has_run_id():
            self.run_id()
        self.restarts()
        if (self.path / JOB_FILE).exists():
            self.job()

    def checkpoints(self, job: JobConfig) -> str:
        """Return the path or URI of the checkpoints of a run of ``job`` in this folder."""
        return job.checkpoint.path or str(self.path / "checkpoints")

    @contextmanager
    def open_run(self, job: JobConfig, *, overwrite: bool = False, resume: bool = False) -> Iterator[EarlierRun | None]:
        """Create the folder for a run of ``job`` and hold its lock during the context.

        An earlier run is moved aside, or deleted with ``overwrite``, or resumed with ``resume``.

        Yields:
            The earlier run that was moved aside, if one was.

        Raises:
            RunInProgressError: another process holds the lock.
            InputError: the folder is not a run folder, or its run has a job that ``job`` must not resume.
        """
        with ExitStack() as running:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with folder_lock(self.path.parent):
                    if resume:
                        self._check_resumable(job)
                    moved = None if resume else self._clear_the_way(overwrite)
                    self.path.mkdir(exist_ok=True)
                    running.enter_context(self.lock.held())
                    for unfinished in self.unfinished_files():
                        unfinished.unlink()
                    if not self.has_run_id():
                        identity = {"id": uuid.uuid4().hex[:12], "name": job.name, "started": time.time()}
                        self._write(RUN_FILE, json.dumps(identity) + "\n")
                    self._write(JOB_FILE, job.with_absolute_paths().to_yaml())
            except FileExistsError as error:
                raise InputError(
                    f"{self.path}: cannot be a run folder: {error.filename} is a file; name another with ",
                    Option("run_dir"),
                ) from error
            except OSError as error:
                raise InputError(f"{self.path}: the run folder cannot be written: {error.strerror}") from error
            yield moved

    def _holds_run(self) -> bool:
        """Return whether an earlier run is here; raise if it is running or if this is another kind of folder."""
        if not self.path.exists() or (self.path.is_dir() and not self._has_begun()):
            return False
        if not ((self.path / JOB_FILE).exists() and (self.path / LOCK_FILE).exists()):
            raise InputError(f"{self.path}: exists and is not a run folder; name another with ", Option("run_dir"))
        if self.lock.is_held():
            raise RunInProgressError(
                f"{self.path}: a run is in progress; wait for it, or name another folder with ", Option("run_dir")
            )
        return True

    def _has_begun(self) -> bool:
        """Return whether there is more here than a run that was killed at once leaves."""
        names = {path.name for path in self.path.iterdir()} - {path.name for path in self.unfinished_files()}
        return not names <= {LOCK_FILE, RUN_FILE}

    def _check_resumable(self, job: JobConfig) -> None:
        differences = job.resume_conflicts(self.job()) if self._holds_run() else []
        if differences:
            raise InputError(
                f"{self.path}: cannot resume: {', '.join(differences)}; train without ",
                Option("resume"),
                ", or with the job as it was",
            )

    def _clear_the_way(self, overwrite: bool) -> EarlierRun | None:
        if not self._holds_run():
            return None
        if overwrite:
            self._empty()
            return None
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.{number}")).exists():
            number += 1
        finished = self.lock.is_done()
        return EarlierRun(self.path.rename(aside), finished)

    def foreign_names(self) -> list[str]:
        """Return the names of the files and folders here that no run writes, sorted."""
        names = (path.name for path in self.path.iterdir())
        return sorted(name for name in names if written_name(name) not in _NAMES)

    def _empty(self) -> None:
        """Delete what a run wrote; raise if there is anything else."""
        if foreign := self.foreign_names():
            raise InputError(
                f"{self.path}: holds {foreign[0]}, which is not part of a run; train without ",
                Option("overwrite"),
                ", which moves the folder aside",
            )
        # The files that mark a run folder go last, so that a deletion that was killed can be repeated.
        for path in sorted(self.path.iterdir(), key=lambda path: path.name in {JOB_FILE, LOCK_FILE}):
            if path.is_dir() and not path.is_symlink():  # what a link leads to is not part of the run
                shutil.rmtree(path)
            else:
                path.unlink()

    def unfinished_files(self) -> list[Path]:
        """Return the files that a process did not finish writing."""
        return [path for path in self.path.iterdir() if is_partial(path.name) and path.is_file()]

    def files_for_roles(self) -> dict[str, str]:
        """Return the files that roles need on a host that does not share this folder: the text of each, by name."""
        return {
            name: path.read_text(encoding="utf-8") for name in _FILES_FOR_ROLES if (path := self.path / name).exists()
        }

    def write_role_files(self, files: dict[str, str]) -> None:
        """Write the files that ``files_for_roles`` returned on another host. Other names are ignored.

        Raises:
            OSError: they cannot be written.
        """
        if files:
            self.path.mkdir(parents=True, exist_ok=True)
        for name in _FILES_FOR_ROLES:
            if name in files:
                self._write(name, files[name])

    def report(self) -> dict[str, Any]:
        """Read the report of the finished run.

        Raises:
            InputError: it cannot be read.
        """
        return read_report(self.path / REPORT_FILE, ("delete it, and write it again with ", Option("resume")))

    def write_report(self, report: dict[str, Any]) -> None:
        """Write ``report.json``."""
        self._write(REPORT_FILE, json.dumps(report, indent=1) + "\n")

    def restarts(self) -> list[dict[str, Any]]:
        """Read the restarts of the run so far, over all commands that ran it.

        Raises:
            InputError: the file cannot be read.
        """
        try:
            fix = "delete it, which loses only their list"
            return read_run_file(self.path / RESTARTS_FILE, RunRestarts, fix).root
        except FileNotFoundError:
            return []

    def write_state(self, state: dict[str, Any]) -> None:
        """Write ``state.json``, the state of the run and its processes."""
        self._write(STATE_FILE, json.dumps(state) + "\n")

    def write_restarts(self, restarts: list[dict[str, Any]]) -> None:
        """Write the restarts so far, for commands that resume the run."""
        self._write(RESTARTS_FILE, json.dumps(restarts, indent=1) + "\n")

    def _write(self, name: str, text: str) -> None:
        """Write the file ``name`` atomically and durably: a crash leaves the earlier file, if any."""
        replace_file(self.path / name, text.encode("utf-8"))


def default_run_dir(job: JobConfig) -> Path:
    """Return the default run folder of ``job``."""
    return Path(os.curdir) / "runs" / job.name
