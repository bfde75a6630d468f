"""The folder of a run, and the lock that only one process holds.

    runs/NAME/
      job.yaml          the job, resolved              events.jsonl      events of the training
      run.json          ID, name and start of the run  processes.jsonl   load of its processes, restarts
      row_counts.json   rows of the job's time range   state.json        state of its processes, every second
      restarts.json     restarts so far                report.json       report of the finished run
      metrics.prom      final metrics                  metrics/          final metrics of each role, if distributed
      checkpoints/  embeddings/  logs/  tensorboard/  run.lock

Files are replaced atomically or appended to, so that a process killed at any time leaves a readable folder.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from crossfade.kvstore.errors import InputError
from crossfade.kvstore.io.file_lock import folder_lock, try_lock, wait_for_lock
from crossfade.kvstore.similar_names import similar_path
from crossfade.trainer.config.loading import load_job
from crossfade.trainer.config.schema import JobConfig

JOB_FILE, RUN_FILE, LOCK_FILE = "job.yaml", "run.json", "run.lock"
EVENTS_FILE, PROCESSES_FILE, STATE_FILE = "events.jsonl", "processes.jsonl", "state.json"
ROW_COUNTS_FILE, RESTARTS_FILE, REPORT_FILE = "row_counts.json", "restarts.json", "report.json"
FINAL_METRICS_FILE = "metrics.prom"
EMBEDDINGS_FOLDER = "embeddings"
_FILES_FOR_ROLES = (JOB_FILE, RUN_FILE, ROW_COUNTS_FILE)
_FOLDERS = ("checkpoints", EMBEDDINGS_FOLDER, "logs", "map", "metrics", "tensorboard")
_FILES = (
    *(JOB_FILE, RUN_FILE, LOCK_FILE, EVENTS_FILE, PROCESSES_FILE, STATE_FILE),
    *(ROW_COUNTS_FILE, RESTARTS_FILE, REPORT_FILE, FINAL_METRICS_FILE),
)
_DONE = "done"
_STEMS = {Path(name).stem for name in (*_FILES, *_FOLDERS)}
"""Every name in a run folder begins with one of these, after a dot while it is being written."""


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

    def __init__(self, path: Path) -> None:
        """Describe the run folder at ``path``; nothing is read or created."""
        self.path = path if path.name else path.absolute()
        self.embeddings = self.path / EMBEDDINGS_FOLDER
        self.logs = self.path / "logs"
        self.tensorboard = self.path / "tensorboard"
        self._role_metrics = self.path / "metrics"

    def job(self) -> JobConfig:
        """Load the job, as it was resolved when the run began.

        Raises:
            InputError: this is not a run folder.
        """
        if not (self.path / JOB_FILE).exists():
            raise InputError(
                f"{self.path}: not a run folder: it has no {JOB_FILE}; expected a folder that 'crossfade train' wrote"
            )
        return load_job(self.path / JOB_FILE)

    def contains(self, uri: str) -> bool:
        """Return whether ``uri`` is a path inside this folder, so that it moves along with the folder."""
        return "://" not in uri and Path(uri).absolute().is_relative_to(self.path.absolute())

    def has_run_id(self) -> bool:
        """Return whether a run has started here."""
        return (self.path / RUN_FILE).exists()

    def run_id(self) -> str:
        """Read the ID of the run, which also marks its checkpoints."""
        run_id: str = json.loads((self.path / RUN_FILE).read_text(encoding="utf-8"))["id"]
        return run_id

    def started(self) -> float | None:
        """Read the Unix time when the run started, first if it was resumed; None for runs of earlier versions."""
        started: float | None = json.loads((self.path / RUN_FILE).read_text(encoding="utf-8")).get("started")
        return started

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
            InputError: another process holds the lock, or the folder is not a run folder, or its run has a job that
                ``job`` must not resume.
        """
        with ExitStack() as running:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with folder_lock(self.path.parent):
                    if resume:
                        self._check_resumable(job)
                    moved = None if resume else self._clear_the_way(overwrite)
                    self.path.mkdir(exist_ok=True)
                    lock = running.enter_context((self.path / LOCK_FILE).open("w", encoding="ascii"))
                    try_lock(lock)
                    if not self.has_run_id():
                        identity = {"id": uuid.uuid4().hex[:12], "name": job.name, "started": time.time()}
                        self._write(RUN_FILE, json.dumps(identity) + "\n")
                    self._write(JOB_FILE, job.with_absolute_paths().to_yaml())
                    running.push(partial(_write_result, lock))
            except FileExistsError as error:
                raise InputError(
                    f"{self.path}: cannot be a run folder: {error.filename} is a file; name another with --run-dir"
                ) from error
            except OSError as error:
                raise InputError(f"{self.path}: the run folder cannot be written: {error.strerror}") from error
            yield moved

    def _holds_run(self) -> bool:
        """Return whether an earlier run is here; raise if it is running or if this is another kind of folder."""
        if not self.path.exists() or (self.path.is_dir() and not self._has_begun()):
            return False
        if not ((self.path / JOB_FILE).exists() and (self.path / LOCK_FILE).exists()):
            raise InputError(f"{self.path}: exists and is not a run folder; name another with --run-dir")
        if self._is_running():
            raise InputError(f"{self.path}: a run is in progress; wait for it, or name another folder with --run-dir")
        return True

    def _has_begun(self) -> bool:
        """Return whether there is more here than a run that was killed at once leaves."""
        unfinished = _partial(RUN_FILE), _partial(JOB_FILE)
        return any(path.name not in {LOCK_FILE, RUN_FILE, *unfinished} for path in self.path.iterdir())

    def _check_resumable(self, job: JobConfig) -> None:
        differences = job.resume_conflicts(self.job()) if self._holds_run() else []
        if differences:
            raise InputError(
                f"{self.path}: cannot resume: {', '.join(differences)}; "
                "train without --resume, or with the job as it was"
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
        finished = (self.path / LOCK_FILE).read_text(encoding="ascii") == _DONE
        return EarlierRun(self.path.rename(aside), finished)

    def _empty(self) -> None:
        """Delete what a run wrote; raise if there is anything else."""
        foreign = sorted(path.name for path in self.path.iterdir() if path.name.lstrip(".").split(".")[0] not in _STEMS)
        if foreign:
            raise InputError(
                f"{self.path}: holds {foreign[0]}, which is not part of a run; train without "
                "--overwrite, which moves the folder aside"
            )
        # The files that mark a run folder go last, so that a deletion that was killed can be repeated.
        for path in sorted(self.path.iterdir(), key=lambda path: path.name in {JOB_FILE, LOCK_FILE}):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _is_running(self) -> bool:
        try:
            with (self.path / LOCK_FILE).open("r+", encoding="ascii") as lock:
                try_lock(lock)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

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

    def wait_for_end(self, on_wait: Callable[[], None]) -> str | None:
        """Wait while another process holds the lock, after a call of ``on_wait``.

        Returns:
            ``done`` or ``failed``; None if the process was killed, or if none was running.
        """
        if not self._is_running():
            return None
        on_wait()
        with (self.path / LOCK_FILE).open("r+", encoding="ascii") as lock:
            wait_for_lock(lock, shared=True)
            return lock.read() or None

    def report(self) -> dict[str, Any]:
        """Read the report of the finished run."""
        report: dict[str, Any] = json.loads((self.path / REPORT_FILE).read_text(encoding="utf-8"))
        return report

    def write_report(self, report: dict[str, Any]) -> None:
        """Write ``report.json``."""
        self._write(REPORT_FILE, json.dumps(report, indent=1) + "\n")

    def clear_metrics(self) -> None:
        """Delete the final metrics of earlier processes."""
        shutil.rmtree(self._role_metrics, ignore_errors=True)
        (self.path / FINAL_METRICS_FILE).unlink(missing_ok=True)

    def write_role_metrics(self, name: str, text: str) -> None:
        """Write the final metrics of the role ``name``."""
        self._role_metrics.mkdir(exist_ok=True)
        self._write(f"{self._role_metrics.name}/{name}.prom", text)

    def role_metrics(self) -> list[str]:
        """Read the final metrics of all roles, each in the text format of Prometheus."""
        return [path.read_text(encoding="utf-8") for path in sorted(self._role_metrics.glob("[!.]*.prom"))]

    def write_metrics(self, text: str) -> None:
        """Write ``metrics.prom``."""
        self._write(FINAL_METRICS_FILE, text)

    def restarts(self) -> list[dict[str, Any]]:
        """Read the restarts of the run so far, over all commands that ran it."""
        try:
            restarts: list[dict[str, Any]] = json.loads((self.path / RESTARTS_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []
        return restarts

    def write_state(self, state: dict[str, Any]) -> None:
        """Write ``state.json``, the state of the run and its processes."""
        self._write(STATE_FILE, json.dumps(state) + "\n")

    def write_restarts(self, restarts: list[dict[str, Any]]) -> None:
        """Write the restarts so far, for commands that resume the run."""
        self._write(RESTARTS_FILE, json.dumps(restarts, indent=1) + "\n")

    def _write(self, name: str, text: str) -> None:
        """Write the file ``name`` atomically: a process killed while writing leaves the earlier file, if any."""
        unfinished = (self.path / name).with_name(_partial(Path(name).name))
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(self.path / name)


def _partial(name: str) -> str:
    return f".{name}.partial"


def _write_result(
    lock: TextIO, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
) -> None:
    """Write the result of the run to its lock file. A killed process leaves it empty."""
    lock.write(_DONE if error is None else "failed")
    lock.flush()


def default_run_dir(job: JobConfig) -> Path:
    """Return the default run folder of ``job``."""
    return Path(os.curdir) / "runs" / job.name
