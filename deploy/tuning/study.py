"""A search for the settings of a job: trials are runs of ``crossfade train``, compared on the valid split alone.

    TUNING/  job.yaml  search.lock  study.journal  best.yaml  trial-0000/  trial-0000.log ...

Optuna (Akiba et al., KDD 2019) proposes the settings by its tree-structured Parzen estimator (Bergstra et al., NIPS
2011) and ends trials that fall behind the median of the others. All it knows is in ``study.journal``, so a search that
was stopped or killed goes on where it was, in the middle of a trial too.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from deploy.tuning.search_space import SearchParameter, override
from kvstore.errors import ClusterError, InputError, MissingExtraError
from kvstore.processes import die_with_parent
from trainer.config.loading import load_job
from trainer.config.schema import JobConfig
from trainer.runs.folder import EVENTS_FILE, JOB_FILE, RunFolder

if TYPE_CHECKING:
    import optuna

STUDY_FILE, BEST_FILE, LOCK_FILE = "study.journal", "best.yaml", "search.lock"
FAILURES_IN_A_ROW = 3
"""So many trials without a result, one after the other, end the search: something else is wrong."""
_POLL_SECONDS = 0.5
_FOLDER = "folder"
_STARTING_TRIALS = 5
"""Trials before any is ended early."""
_TRIAL_OVERRIDES = (
    "train.save_embeddings=none",
    "checkpoint.path=null",
    "checkpoint.keep_latest=1",
    "metrics.port=null",
)
"""A trial leaves figures and no embeddings, so that it is not judged on test either."""


@dataclass(frozen=True)
class TrialResult:
    """How a trial went: its number, its settings, its best value on valid, and whether it was ended early."""

    number: int
    settings: dict[str, Any]
    value: float
    pruned: bool


class TuningStudy:
    """The search in one folder. ``tell`` gets what a person may want to know; ``stopped`` says whether to stop."""

    def __init__(
        self,
        folder: Path,
        job: JobConfig,
        settings: Sequence[SearchParameter],
        *,
        prune: bool,
        tell: Callable[[str], None],
        stopped: Callable[[], bool],
    ) -> None:
        """Begin the search for ``settings`` of ``job`` in ``folder``, or take it up.

        Raises:
            InputError: the folder holds something else, or a search with another job.
            MissingExtraError: Optuna is not installed.
        """
        optuna = _require_optuna()
        self.folder, self._job, self._settings = folder, job, settings
        self._tell, self._stopped = tell, stopped
        self._complete, self._pruned, self._failed = (
            optuna.trial.TrialState.COMPLETE,
            optuna.trial.TrialState.PRUNED,
            optuna.trial.TrialState.FAIL,
        )
        self._lock = _claim(folder, job)
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / STUDY_FILE)))
        pruner = optuna.pruners.MedianPruner(n_startup_trials=_STARTING_TRIALS) if prune else optuna.pruners.NopPruner()
        self._study = optuna.create_study(
            study_name=job.name, storage=storage, pruner=pruner, direction="maximize", load_if_exists=True
        )
        # Another seed each time it is taken up, or the same proposals would come again.
        self._study.sampler = optuna.samplers.TPESampler(seed=job.train.seed + len(self._study.trials))
        self._take_up()

    def _take_up(self) -> None:
        """Have trials that were cut off begin again, in their folders."""
        for trial in self._study.get_trials(deepcopy=False):
            if not trial.state.is_finished() and trial.params:
                self._study.tell(trial.number, state=self._failed)
                self._study.enqueue_trial(trial.params, user_attrs={_FOLDER: _folder_of(trial)})

    def trial_results(self) -> list[TrialResult]:
        """The trials that have a result, best first."""
        found = []
        for trial in self._study.get_trials(deepcopy=False):
            value = max(trial.intermediate_values.values(), default=None) if trial.value is None else trial.value
            if value is not None and trial.state in {self._complete, self._pruned}:
                known = {setting.key: setting for setting in self._settings}
                values = {key: known[key].read(stored) for key, stored in trial.params.items() if key in known}
                found.append(TrialResult(trial.number, values, value, trial.state == self._pruned))
        return sorted(found, key=lambda standing: (standing.pruned, -standing.value, standing.number))

    def ended(self) -> int:
        """How many trials have been run to their end, or ended early."""
        return len(self._study.get_trials(deepcopy=False, states=[self._complete, self._pruned]))

    def run(self, trials: int) -> Iterator[int]:
        """Run trials until ``trials`` have ended; gives how many have, after each.

        Raises:
            ClusterError: several trials in a row had no result.
        """
        failures = 0
        while (ended := self.ended()) < trials and not self._stopped():
            yield ended
            trial = self._study.ask()
            values = {setting.key: setting.suggest(trial) for setting in self._settings}
            if _FOLDER not in trial.user_attrs:
                trial.set_user_attr(_FOLDER, f"trial-{trial.number:04}")
            has_result = self._try(trial, values)
            if has_result is None:
                return
            failures = 0 if has_result else failures + 1
            self._write_best()
            if failures == FAILURES_IN_A_ROW:
                log = self.folder / f"{_folder_of(trial)}.log"
                raise ClusterError(f"{failures} trials in a row failed, the last one: {_last_line(log)} (log: {log})")
        yield ended

    def _try(self, trial: optuna.Trial, values: dict[str, Any]) -> bool | None:
        """Run one trial and tell the study. Whether it has a result; None if it was stopped, to be taken up again."""
        folder = RunFolder(self.folder / _folder_of(trial))
        log = self.folder / f"{folder.path.name}.log"
        overrides = [*_TRIAL_OVERRIDES, *(override(key, value) for key, value in values.items())]
        state, value = self._failed, None
        with log.open("ab") as output, _training(self.folder / JOB_FILE, folder.path, overrides, output) as process:
            seen = _Evaluations(folder.path / EVENTS_FILE, self._job.evaluate.best_metric)
            pruned = self._follow(process, trial, seen)
        if process.returncode == 0:
            state, value = self._complete, folder.report()["metrics"]["valid"][self._job.evaluate.best_metric]
        elif pruned:
            state = self._pruned
        elif self._stopped():
            return None
        else:
            self._tell(f"trial {trial.number} failed: {_last_line(log)} (log: {log})")
        self._study.tell(trial, value, state=state)
        shutil.rmtree(folder.path / "checkpoints", ignore_errors=True)
        return bool(state != self._failed)

    def _follow(self, process: subprocess.Popen[bytes], trial: optuna.Trial, seen: _Evaluations) -> bool:
        """Wait for the end of ``process``; True if it was ended because ``trial`` has no prospects."""
        while process.poll() is None:
            for number, value in seen.read():
                trial.report(value, number)
            if trial.should_prune() or self._stopped():
                pruned = not self._stopped()
                process.terminate()
                process.wait()
                return pruned
            try:
                process.wait(_POLL_SECONDS)
            except subprocess.TimeoutExpired:
                continue
        return False

    def _write_best(self) -> None:
        """Write the job with the best settings."""
        best = next((standing for standing in self.trial_results() if not standing.pruned), None)
        if best is None:
            return
        overrides = [override(key, value) for key, value in best.settings.items()]
        partial = self.folder / f".{BEST_FILE}.partial"
        partial.write_text(load_job(self.folder / JOB_FILE, overrides).to_yaml(), encoding="utf-8")
        partial.replace(self.folder / BEST_FILE)


class _Evaluations:
    """Reads a run's evaluations out of its ``events.jsonl`` as they come."""

    def __init__(self, path: Path, select: str) -> None:
        self._path, self._select = path, select
        self._offset = self._count = 0

    def read(self) -> Iterator[tuple[int, float]]:
        """The number and the value of each since the last call."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                valid = json.loads(line).get("valid")
                if valid is not None:
                    self._count += 1
                    yield self._count, valid[self._select]


@contextmanager
def _training(job: Path, folder: Path, overrides: Sequence[str], output: Any) -> Iterator[subprocess.Popen[bytes]]:
    """``crossfade train`` of a trial, or its going on. It ends with this process, and with an error here."""
    parent = os.getpid()
    settings = [part for each in overrides for part in ("--set", each)]
    process = subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, "-P", "-m", "crossfade", "train", str(job), "--run-dir", str(folder), "--resume", *settings],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
        preexec_fn=lambda: die_with_parent(parent),  # noqa: PLW1509 - it takes no locks
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait()


def _claim(folder: Path, job: JobConfig) -> IO[bytes]:
    """Make ``folder`` one of a search with ``job``, if it is not yet, and hold it while the returned file is open."""
    text = job.with_absolute_paths().to_yaml()
    path = folder / JOB_FILE
    begun = path.exists() and (folder / LOCK_FILE).exists()
    if not begun and folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: is there already and holds no search; name another folder with --out")
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / LOCK_FILE).open("wb")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{folder}: a search is going on in it; wait for it, or name another with --out") from None
    if begun and path.read_text(encoding="utf-8") != text:
        differences = job.resume_conflicts(load_job(path)) or ["what may change within a run"]
        raise InputError(
            f"{folder}: holds a search with another job: {', '.join(differences)}; name another folder with --out"
        )
    path.write_text(text, encoding="utf-8")
    return lock


def _folder_of(trial: optuna.Trial | optuna.trial.FrozenTrial) -> str:
    name: str = trial.user_attrs.get(_FOLDER, f"trial-{trial.number:04}")
    return name


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("crossfade: error: ") if lines else "it said nothing"


def _require_optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError("optuna", extra="tune", purpose="crossfade tune") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
