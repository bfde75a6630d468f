"""The folder of a run: what is in it, who may write there, and the log of its events.

runs/NAME/  job.yaml  run.json  row_counts.json  events.jsonl  metrics.prom  restarts.json  report.json  embeddings/
            checkpoints/  logs/  run.lock  state.json  processes.jsonl, and of a distributed run metrics/: each role's,
            that metrics.prom is made of
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from kvstore.errors import InputError
from trainer.config.loading import load_job
from trainer.config.schema import JobConfig

JOB_FILE, REPORT_FILE, EVENTS_FILE, LOCK_FILE = "job.yaml", "report.json", "events.jsonl", "run.lock"


RUN_FILE, RESTARTS_FILE, FINAL_METRICS_FILE = "run.json", "restarts.json", "metrics.prom"


ROW_COUNTS_FILE = "row_counts.json"


_FOR_ROLES = (JOB_FILE, RUN_FILE, ROW_COUNTS_FILE)
"""What the roles of a run read of its folder."""


STATE_FILE, PROCESSES_FILE = "state.json", "processes.jsonl"


_STEMS = {
    *("job", "report", "metrics", "events", "run", "restarts", "row_counts", "embeddings", "checkpoints", "logs"),
    *("state", "processes"),
}


_STEP_RECORD_SECONDS = 1.0


_MAX_RECORD_BYTES = 1 << 20


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: Path) -> None:
        """The run in ``path``, which may not exist yet."""
        self.path = path if path.name else path.absolute()
        self.embeddings = self.path / "embeddings"
        self.logs = self.path / "logs"
        self._role_metrics = self.path / "metrics"

    def job(self) -> JobConfig:
        """The job as it was resolved when the run began.

        Raises:
            InputError: there is no run here.
        """
        if not (self.path / JOB_FILE).exists():
            raise InputError(
                f"{self.path}: not a run folder: it has no {JOB_FILE}; expected one that 'crossfade train' wrote"
            )
        return load_job(self.path / JOB_FILE)

    def holds(self, uri: str) -> bool:
        """Whether ``uri`` lies in this folder, and goes where it goes."""
        return "://" not in uri and Path(uri).absolute().is_relative_to(self.path.absolute())

    def has_run_id(self) -> bool:
        """Whether a run has begun here."""
        return (self.path / RUN_FILE).exists()

    def run_id(self) -> str:
        """What names this run wherever it writes."""
        identity: str = json.loads((self.path / RUN_FILE).read_text(encoding="utf-8"))["id"]
        return identity

    def checkpoints(self, job: JobConfig) -> str:
        """Where the checkpoints of a run of ``job`` here are, a path or URI."""
        return job.checkpoint.path or str(self.path / "checkpoints")

    @contextmanager
    def open_run(self, job: JobConfig, *, overwrite: bool = False, resume: bool = False) -> Iterator[Path | None]:
        """Make the folder for a run of ``job`` and hold it; gives where an earlier run was moved to, if there was one.

        With ``resume`` an earlier run stays where it is and is taken up.

        Raises:
            InputError: another process is running in it, or it holds something that is not a run, or one of a job
                that this one cannot take up.
        """
        with ExitStack() as running:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with _locked(self.path.parent):
                    if resume:
                        self._check_resumable(job)
                    moved = None if resume else self._make_way(overwrite)
                    self.path.mkdir(exist_ok=True)
                    lock = running.enter_context((self.path / LOCK_FILE).open("w", encoding="ascii"))
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if not self.has_run_id():
                        identity = {"id": uuid.uuid4().hex, "name": job.name}
                        self._write(RUN_FILE, json.dumps(identity) + "\n")
                    self._write(JOB_FILE, job.with_absolute_paths().to_yaml())
                    running.push(partial(_note_end, lock))
            except FileExistsError as error:
                raise InputError(f"{self.path}: cannot be a run folder: {error.filename} is a file") from error
            except OSError as error:
                raise InputError(f"{self.path}: the run folder cannot be written: {error.strerror}") from error
            yield moved

    def _holds_run(self) -> bool:
        """Whether an earlier run is here. Something else, or a run that goes on, is refused."""
        if not self.path.exists() or (self.path.is_dir() and not self._has_begun()):
            return False
        if not ((self.path / JOB_FILE).exists() and (self.path / LOCK_FILE).exists()):
            raise InputError(f"{self.path}: is there already and is not a run folder; name another with --run-dir")
        if self._is_running():
            raise InputError(
                f"{self.path}: a run is going on in it; wait for it, or name another folder with --run-dir"
            )
        return True

    def _has_begun(self) -> bool:
        """Whether there is more here than what a run leaves that was killed at once."""
        unfinished = _partial(RUN_FILE), _partial(JOB_FILE)
        return any(path.name not in {LOCK_FILE, RUN_FILE, *unfinished} for path in self.path.iterdir())

    def _check_resumable(self, job: JobConfig) -> None:
        differences = job.resume_conflicts(self.job()) if self._holds_run() else []
        if differences:
            raise InputError(
                f"{self.path}: cannot resume: {', '.join(differences)}; "
                "train without --resume, or with the job as it was"
            )

    def _make_way(self, overwrite: bool) -> Path | None:
        if not self._holds_run():
            return None
        if overwrite:
            self._empty()
            return None
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.{number}")).exists():
            number += 1
        return self.path.rename(aside)

    def _empty(self) -> None:
        """Delete what a run wrote; refuse where there is anything else."""
        strange = sorted(path.name for path in self.path.iterdir() if path.name.lstrip(".").split(".")[0] not in _STEMS)
        if strange:
            raise InputError(f"{self.path}: holds {strange[0]}, which no run writes; leave out --overwrite")
        # What makes it a run's goes last: whoever is killed meanwhile can do it again.
        for path in sorted(self.path.iterdir(), key=lambda path: path.name in {JOB_FILE, LOCK_FILE}):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _is_running(self) -> bool:
        try:
            with (self.path / LOCK_FILE).open("r+", encoding="ascii") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def files_for_roles(self) -> dict[str, str]:
        """What roles on a host that does not share this folder need of it: the text of each file, by its name."""
        return {name: path.read_text(encoding="utf-8") for name in _FOR_ROLES if (path := self.path / name).exists()}

    def write_role_files(self, files: dict[str, str]) -> None:
        """Write what ``files_for_roles`` gave on another host, and nothing else.

        Raises:
            OSError: they cannot be written.
        """
        if files:
            self.path.mkdir(parents=True, exist_ok=True)
        for name in _FOR_ROLES:
            if name in files:
                self._write(name, files[name])

    def wait_for_end(self, waiting: Callable[[], None]) -> str | None:
        """While another process runs here, wait; gives how that ended, as it said, or None if it was killed.

        ``waiting`` is called before. None also if nobody runs here.
        """
        if not self._is_running():
            return None
        waiting()
        with (self.path / LOCK_FILE).open("r+", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            return lock.read() or None

    def report(self) -> dict[str, Any]:
        """The report of the finished run."""
        report: dict[str, Any] = json.loads((self.path / REPORT_FILE).read_text(encoding="utf-8"))
        return report

    def write_report(self, report: dict[str, Any]) -> None:
        """Write ``report.json``."""
        self._write(REPORT_FILE, json.dumps(report, indent=1) + "\n")

    def clear_metrics(self) -> None:
        """Delete the final metrics of an earlier start."""
        shutil.rmtree(self._role_metrics, ignore_errors=True)
        (self.path / FINAL_METRICS_FILE).unlink(missing_ok=True)

    def write_role_metrics(self, name: str, text: str) -> None:
        """Write the final metrics of the role ``name``."""
        self._role_metrics.mkdir(exist_ok=True)
        self._write(f"{self._role_metrics.name}/{name}.prom", text)

    def role_metrics(self) -> list[str]:
        """What roles have left of their final metrics, each in Prometheus's text format."""
        return [path.read_text(encoding="utf-8") for path in sorted(self._role_metrics.glob("[!.]*.prom"))]

    def write_metrics(self, text: str) -> None:
        """Write ``metrics.prom``."""
        self._write(FINAL_METRICS_FILE, text)

    def restarts(self) -> list[dict[str, Any]]:
        """The restarts of the run so far, whichever command went through them."""
        try:
            restarts: list[dict[str, Any]] = json.loads((self.path / RESTARTS_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []
        return restarts

    def write_state(self, state: dict[str, Any]) -> None:
        """Write ``state.json``: how the run and its processes are just now."""
        self._write(STATE_FILE, json.dumps(state) + "\n")

    def write_restarts(self, restarts: list[dict[str, Any]]) -> None:
        """Keep ``restarts`` for whoever takes the run up."""
        self._write(RESTARTS_FILE, json.dumps(restarts, indent=1) + "\n")

    def _write(self, name: str, text: str) -> None:
        """Write the file ``name``, in one move: whoever is killed leaves none or the earlier one."""
        unfinished = (self.path / name).with_name(_partial(Path(name).name))
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(self.path / name)


def _partial(name: str) -> str:
    return f".{name}.partial"


def _note_end(
    lock: TextIO, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
) -> None:
    """Leave in the ``lock`` how the run ended, which one that is killed does not get to."""
    lock.write("done" if error is None else "failed")
    lock.flush()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for a moment, so that two starts do not make the same run folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def default_run_dir(job: JobConfig) -> Path:
    """Where a run of ``job`` goes if nothing else is said."""
    return Path(os.curdir) / "runs" / job.name
