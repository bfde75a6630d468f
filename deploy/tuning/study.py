"""A study that tunes a job: trials are runs of ``crossfade train``, compared only on the valid split.

    study = TuningStudy(folder, job, parameters, prune=True, stop_requested=lambda: False)
    for ended in study.run(trials=20):
        ...
    study.trial_results()[0].parameters

    FOLDER/  job.yaml  study.lock  study.journal  best.yaml  trial-0000/  trial-0000.log ...

Optuna (Akiba et al., KDD 2019) proposes values by its tree-structured Parzen estimator (Bergstra et al., NIPS 2011) and
prunes trials that fall behind the median of the others. Its state is in ``study.journal``, so a study that was stopped
or killed resumes, in the middle of a trial too.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from crossfade.deploy.tuning.search_space import SearchParameter, format_override
from crossfade.kvstore.errors import ClusterError, InputError, MissingExtraError
from crossfade.kvstore.io.durable_file import replace_file
from crossfade.kvstore.io.file_lock import try_lock
from crossfade.kvstore.processes import die_with_parent
from crossfade.trainer.config.loading import load_job
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.runs.folder import EVENTS_FILE, JOB_FILE, RunFolder

if TYPE_CHECKING:
    import optuna

_logger = logging.getLogger(__name__)

STUDY_FILE, BEST_FILE, LOCK_FILE = "study.journal", "best.yaml", "study.lock"
MAX_CONSECUTIVE_FAILURES = 3
"""Trials in a row without a result that end the study: the cause is not the parameters."""
_POLL_SECONDS = 0.5
_FOLDER = "folder"
_TRIALS_BEFORE_PRUNING = 5
"""Trials that must finish before pruning starts."""
_TRIAL_OVERRIDES = (
    "train.save_embeddings=none",
    "checkpoint.path=null",
    "checkpoint.keep_latest=1",
    "metrics.port=null",
)
"""A trial leaves metrics and no embeddings, so it is not evaluated on the test split either."""


@dataclass(frozen=True)
class TrialResult:
    """A trial with a result: its parameters by key, its best metric on valid, and whether it was pruned."""

    number: int
    parameters: dict[str, Any]
    value: float
    pruned: bool


class TuningStudy:
    """A study in one folder."""

    def __init__(
        self,
        folder: Path,
        job: JobConfig,
        parameters: Sequence[SearchParameter],
        *,
        prune: bool,
        stop_requested: Callable[[], bool],
    ) -> None:
        """Create or resume the study of ``job`` in ``folder``.

        Args:
            folder: where the study and its trials are kept.
            job: the job to tune.
            parameters: the search space.
            prune: end trials early that fall behind the median of the others.
            stop_requested: whether to stop; called twice a second.

        Raises:
            InputError: the folder holds something else, or a study of another job.
            MissingExtraError: Optuna is not installed.
        """
        optuna = _require_optuna()
        self.folder, self._job, self._parameters = folder, job, parameters
        self._stop_requested = stop_requested
        self._complete, self._pruned, self._failed = (
            optuna.trial.TrialState.COMPLETE,
            optuna.trial.TrialState.PRUNED,
            optuna.trial.TrialState.FAIL,
        )
        self._lock = _claim(folder, job)
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / STUDY_FILE)))
        pruner = (
            optuna.pruners.MedianPruner(n_startup_trials=_TRIALS_BEFORE_PRUNING)
            if prune
            else optuna.pruners.NopPruner()
        )
        self._study = optuna.create_study(
            study_name=job.name, storage=storage, pruner=pruner, direction="maximize", load_if_exists=True
        )
        # Another seed after each resumption, or the same proposals would be repeated.
        self._study.sampler = optuna.samplers.TPESampler(seed=job.train.seed + len(self._study.trials))
        self._requeue_unfinished()

    def _requeue_unfinished(self) -> None:
        """Queue trials that were interrupted again, to resume in their folders."""
        for trial in self._study.get_trials(deepcopy=False):
            if not trial.state.is_finished() and trial.params:
                self._study.tell(trial.number, state=self._failed)
                self._study.enqueue_trial(trial.params, user_attrs={_FOLDER: _folder_of(trial)})

    def trial_results(self) -> list[TrialResult]:
        """Return the trials that have a result: complete ones first, then pruned ones, each the best first."""
        results = []
        for trial in self._study.get_trials(deepcopy=False):
            value = max(trial.intermediate_values.values(), default=None) if trial.value is None else trial.value
            if value is not None and trial.state in {self._complete, self._pruned}:
                by_key = {parameter.key: parameter for parameter in self._parameters}
                values = {key: by_key[key].decode(stored) for key, stored in trial.params.items() if key in by_key}
                results.append(TrialResult(trial.number, values, value, trial.state == self._pruned))
        return sorted(results, key=lambda result: (result.pruned, -result.value, result.number))

    def ended(self) -> int:
        """Return how many trials are complete or pruned."""
        return len(self._study.get_trials(deepcopy=False, states=[self._complete, self._pruned]))

    def run(self, trials: int) -> Iterator[int]:
        """Run trials until ``trials`` have ended, and yield how many have after each.

        Raises:
            ClusterError: several trials in a row had no result.
        """
        failures = 0
        while (ended := self.ended()) < trials and not self._stop_requested():
            yield ended
            trial = self._study.ask()
            values = {parameter.key: parameter.suggest(trial) for parameter in self._parameters}
            if _FOLDER not in trial.user_attrs:
                trial.set_user_attr(_FOLDER, f"trial-{trial.number:04}")
            has_result = self._run_trial(trial, values)
            if has_result is None:
                return
            failures = 0 if has_result else failures + 1
            self._write_best()
            if failures == MAX_CONSECUTIVE_FAILURES:
                log = self.folder / f"{_folder_of(trial)}.log"
                raise ClusterError(f"{failures} trials in a row failed, the last one: {_last_line(log)} (log: {log})")
        yield ended

    def _run_trial(self, trial: optuna.Trial, values: dict[str, Any]) -> bool | None:
        """Run one trial and record it; return whether it has a result, or None if it was stopped and can be resumed."""
        folder = RunFolder(self.folder / _folder_of(trial))
        log = self.folder / f"{folder.path.name}.log"
        overrides = [*_TRIAL_OVERRIDES, *(format_override(key, value) for key, value in values.items())]
        state, value = self._failed, None
        with log.open("ab") as output, _training(self.folder / JOB_FILE, folder.path, overrides, output) as process:
            evaluations = _Evaluations(folder.path / EVENTS_FILE, self._job.evaluate.best_metric)
            pruned = self._follow(process, trial, evaluations)
        if process.returncode == 0:
            # A valid split without a query selects no epoch, so all trials are equal.
            valid = folder.report()["metrics"].get("valid", {})
            state, value = self._complete, valid.get(self._job.evaluate.best_metric, 0.0)
        elif pruned:
            state = self._pruned
        elif self._stop_requested():
            return None
        else:
            _logger.warning(f"trial {trial.number} failed: {_last_line(log)} (log: {log})")
        self._study.tell(trial, value, state=state)
        shutil.rmtree(folder.path / "checkpoints", ignore_errors=True)
        return bool(state != self._failed)

    def _follow(self, process: subprocess.Popen[bytes], trial: optuna.Trial, evaluations: _Evaluations) -> bool:
        """Wait for the end of ``process`` and report its evaluations; return whether ``trial`` was pruned."""
        while process.poll() is None:
            for number, value in evaluations.read():
                trial.report(value, number)
            if trial.should_prune() or self._stop_requested():
                pruned = not self._stop_requested()
                process.terminate()
                process.wait()
                return pruned
            try:
                process.wait(_POLL_SECONDS)
            except subprocess.TimeoutExpired:
                continue
        return False

    def _write_best(self) -> None:
        """Write the job with the best parameters."""
        best = next((result for result in self.trial_results() if not result.pruned), None)
        if best is None:
            return
        overrides = [format_override(key, value) for key, value in best.parameters.items()]
        replace_file(self.folder / BEST_FILE, load_job(self.folder / JOB_FILE, overrides).to_yaml().encode())


class _Evaluations:
    """Reads evaluations from a run's ``events.jsonl`` while it grows."""

    def __init__(self, path: Path, best_metric: str) -> None:
        self._path, self._best_metric = path, best_metric
        self._offset = self._count = 0

    def read(self) -> Iterator[tuple[int, float]]:
        """Yield the number and the value of each evaluation since the last call."""
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
                    yield self._count, valid[self._best_metric]


@contextmanager
def _training(job: Path, folder: Path, overrides: Sequence[str], output: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run or resume ``crossfade train`` for a trial. It ends when this context or this process does."""
    parent = os.getpid()
    options = [word for each in overrides for word in ("--set", each)]
    process = subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, "-P", "-m", "crossfade", "train", str(job), "--run-dir", str(folder), "--resume", *options],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
        # It takes no locks. Only Linux can end a child with its parent.
        preexec_fn=(lambda: die_with_parent(parent)) if sys.platform == "linux" else None,  # noqa: PLW1509
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait()


def _claim(folder: Path, job: JobConfig) -> IO[bytes]:
    """Claim ``folder`` for a study of ``job`` while the returned file is open; create it if it does not exist."""
    text = job.with_absolute_paths().to_yaml()
    path = folder / JOB_FILE
    exists = path.exists() and (folder / LOCK_FILE).exists()
    if not exists and folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: exists and holds no study; name another folder with --out")
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / LOCK_FILE).open("wb")
    try:
        try_lock(lock)
    except BlockingIOError:
        raise InputError(
            f"{folder}: another process runs this study; wait for it, or name another folder with --out"
        ) from None
    if exists and path.read_text(encoding="utf-8") != text:
        differences = job.resume_conflicts(load_job(path)) or ["keys that may change within a run"]
        raise InputError(
            f"{folder}: holds a study of another job: {', '.join(differences)}; name another folder with --out"
        )
    replace_file(path, text.encode())
    return lock


def _folder_of(trial: optuna.Trial | optuna.trial.FrozenTrial) -> str:
    name: str = trial.user_attrs.get(_FOLDER, f"trial-{trial.number:04}")
    return name


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("crossfade: error: ") if lines else "no output"


def _require_optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError("optuna", extra="tune", purpose="crossfade tune") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
