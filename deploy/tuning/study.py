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

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossfade.base.errors import ClusterError, MissingExtraError
from crossfade.deploy.tuning.search_space import SearchParameter, format_override
from crossfade.deploy.tuning.study_folder import JOURNAL_FILE, claim_study, write_best
from crossfade.deploy.tuning.trial_run import MAX_CONSECUTIVE_FAILURES, EpochRecord, TrialProcess, TrialRun
from crossfade.trainer.config.schema import JobConfig

if TYPE_CHECKING:
    import optuna

_logger = logging.getLogger(__name__)

_FOLDER = "folder"
_TRIALS_BEFORE_PRUNING = 5
"""Trials that must finish before pruning starts."""


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
        self._lock = claim_study(folder, job, JOURNAL_FILE)
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL_FILE)))
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
        with closing(self._lock), closing(TrialProcess()) as process:
            yield from self._run_trials(trials, process)

    def _run_trials(self, trials: int, process: TrialProcess) -> Iterator[int]:
        failures = 0
        while (ended := self.ended()) < trials and not self._stop_requested():
            yield ended
            trial = self._study.ask()
            values = {parameter.key: parameter.suggest(trial) for parameter in self._parameters}
            if _FOLDER not in trial.user_attrs:
                trial.set_user_attr(_FOLDER, f"trial-{trial.number:04}")
            run = TrialRun(self.folder, _folder_of(trial), process)
            has_result = self._run_trial(trial, values, run)
            if has_result is None:
                return
            failures = 0 if has_result else failures + 1
            self._write_best()
            if failures == MAX_CONSECUTIVE_FAILURES:
                raise ClusterError(f"{failures} trials in a row failed, the last one: {run.describe_failure()}")
        yield ended

    def _run_trial(self, trial: optuna.Trial, values: dict[str, Any], run: TrialRun) -> bool | None:
        """Run one trial and record it; return whether it has a result, or None if it was stopped and can be resumed."""
        overrides = [format_override(key, value) for key, value in values.items()]
        evaluated, pruned = 0, False

        def watch(epochs: list[EpochRecord]) -> bool:
            nonlocal evaluated, pruned
            for epoch in epochs:
                if "valid" in epoch:
                    evaluated += 1
                    trial.report(epoch["valid"][self._job.evaluate.best_metric], evaluated)
            pruned = trial.should_prune() and not self._stop_requested()
            return pruned or self._stop_requested()

        state, value = self._failed, None
        if run.train(overrides, watch) == 0:
            # A valid split without a query selects no epoch, so all trials are equal.
            state, value = self._complete, run.valid_metric(self._job.evaluate.best_metric)
        elif pruned:
            state = self._pruned
        elif self._stop_requested():
            return None
        else:
            _logger.warning(f"trial {trial.number} failed: {run.describe_failure()}")
        self._study.tell(trial, value, state=state)
        run.delete_checkpoints()
        return bool(state != self._failed)

    def _write_best(self) -> None:
        """Write the job with the best parameters."""
        best = next((result for result in self.trial_results() if not result.pruned), None)
        if best is not None:
            write_best(self.folder, best.parameters)


def _folder_of(trial: optuna.Trial | optuna.trial.FrozenTrial) -> str:
    name: str = trial.user_attrs.get(_FOLDER, f"trial-{trial.number:04}")
    return name


def _require_optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError("optuna", extra="tune", purpose="crossfade tune") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
