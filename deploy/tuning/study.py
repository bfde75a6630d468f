"""A study that tunes a job: trials are runs of ``crossfade train``, compared only on the valid split.

    study = TuningStudy(plan, stop_requested=lambda: False)
    study.run(on_epochs=lambda epochs: None)
    study.trials()[0].parameters

    FOLDER/  job.yaml  study.lock  study.journal  best.yaml  trial-0000/  trial-0000.log ...

Optuna (Akiba et al., KDD 2019) proposes values by its tree-structured Parzen estimator (Bergstra et al., NIPS 2011). A
quick study has several rungs (``rungs.py``): the best trials of one are trained again in the next, for longer, and the
job's own settings in each.

The state is in ``study.journal``, so a study that was stopped or killed resumes, in the middle of a trial too. The
seed of each proposal follows from the number of its trial, so it ends with the results of one that was not stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from crossfade.base.errors import ClusterError, InputError, MissingExtraError, Option
from crossfade.deploy.launch.trial_run import TrialProcess, TrialRun
from crossfade.deploy.tuning.rungs import Rung
from crossfade.deploy.tuning.study_folder import JOURNAL_FILE, OTHER_FOLDER, StudyPlan, claim_study, write_best

if TYPE_CHECKING:
    import optuna

_logger = logging.getLogger(__name__)

_PLAN, _RUNG, _OWN, _FAILED, _SECONDS = "plan", "rung", "own", "failed", "seconds"
"""Attributes of a study and its trials in the journal."""
_MAX_CONSECUTIVE_FAILURES = 5
"""Trials in a row without a result that end a study: the cause is not the parameters."""


@dataclass(frozen=True)
class TrialResult:
    """A trial that has ended.

    Attributes:
        number: its number, which is in the name of its folder.
        rung: the rung in which it was trained.
        is_own: whether it has the job's own settings.
        parameters: its values by key.
        value: the best metric on valid; None if its training failed.
        seconds: seconds of training and evaluation; 0 if it failed.
    """

    number: int
    rung: Rung
    is_own: bool
    parameters: Mapping[str, Any]
    value: float | None
    seconds: float


class TuningStudy:
    """A study in one folder."""

    def __init__(self, plan: StudyPlan, *, stop_requested: Callable[[], bool]) -> None:
        """Create or resume the study of ``plan``.

        Args:
            plan: what is tried, and where it is kept.
            stop_requested: whether to stop; called twice a second.

        Raises:
            InputError: the folder holds something else, or another study.
            MissingExtraError: Optuna is not installed.
        """
        optuna = _require_optuna()
        self.plan, self._stop_requested = plan, stop_requested
        self._metric, self._states = plan.job.evaluate.best_metric, optuna.trial.TrialState
        self._consecutive_failures = 0
        self._lock = claim_study(plan.folder, plan.job, JOURNAL_FILE)
        backend = optuna.storages.journal.JournalFileBackend(str(plan.folder / JOURNAL_FILE))
        self._study = optuna.create_study(
            study_name=plan.job.name,
            storage=optuna.storages.JournalStorage(backend),
            direction="maximize",
            load_if_exists=True,
        )
        self._claim_plan()

    def _claim_plan(self) -> None:
        """Record what the study tries; reject a folder in which something else was tried."""
        tried = {"quick": self.plan.quick, "search": [str(each) for each in self.plan.parameters]}
        known = self._study.user_attrs.get(_PLAN, tried)
        if known != tried:
            self._lock.close()
            how = (f"with{'' if known['quick'] else 'out'} ", Option("quick"))
            what = "of another search space" if known["quick"] == tried["quick"] else how
            raise InputError(f"{self.plan.folder}: holds a study ", what, "; ", OTHER_FOLDER)
        self._study.set_user_attr(_PLAN, tried)

    def trials(self) -> list[TrialResult]:
        """Return the trials that have ended: of the last rung first, and the best of a rung first, failed ones last."""
        found = [self._read(trial) for trial in self._study.get_trials(deepcopy=False) if trial.state.is_finished()]
        return sorted(
            found, key=lambda each: (-each.rung.number, each.value is None, -(each.value or 0.0), each.number)
        )

    def results(self, rung: Rung) -> list[TrialResult]:
        """Return the trials of ``rung`` with a result, the best first."""
        return [trial for trial in self.trials() if trial.rung == rung and trial.value is not None]

    def _read(self, trial: optuna.trial.FrozenTrial) -> TrialResult:
        is_own, failed = trial.user_attrs.get(_OWN, False), trial.user_attrs.get(_FAILED, False)
        by_key = {parameter.key: parameter for parameter in self.plan.parameters}
        values = {key: by_key[key].decode(stored) for key, stored in trial.params.items()}
        if is_own:
            values = {key: parameter.own_value(self.plan.resolved_job) for key, parameter in by_key.items()}
        return TrialResult(
            trial.number,
            self._rung_of(trial),
            is_own,
            values,
            None if failed else trial.value,
            trial.user_attrs.get(_SECONDS, 0.0),
        )

    def _rung_of(self, trial: optuna.Trial | optuna.trial.FrozenTrial) -> Rung:
        number: int = trial.user_attrs.get(_RUNG, 1)
        return self.plan.rungs[number - 1]

    def run(self, on_epochs: Callable[[int], None]) -> None:
        """Train all rungs, or until a stop is requested. ``on_epochs`` receives the number of epochs that have ended.

        Raises:
            ClusterError: several trials in a row failed, or all of the last rung.
        """
        with closing(self._lock), closing(TrialProcess()) as process:
            for rung in self.plan.rungs:
                trials = self._enqueue(rung)
                on_epochs(min(trials, self._ended(rung)) * rung.epochs)
                while self._ended(rung) < trials:
                    if self._stop_requested() or not self._run_trial(self._next_trial(), process, on_epochs):
                        return
            if not self.results(self.plan.rungs[-1]):
                raise ClusterError(f"{self.plan.folder}: no whole training has a result; see the logs there")

    def _enqueue(self, rung: Rung) -> int:
        """Queue the trials of a quick study that are known when ``rung`` starts; return how many it has."""
        if not self.plan.quick:
            return rung.trials
        queued: list[tuple[dict[str, Any], dict[str, Any]]] = [({}, {_RUNG: rung.number, _OWN: True})]
        if rung.number > 1:
            best = [each for each in self.results(self.plan.rungs[rung.number - 2]) if not each.is_own]
            frozen = self._study.get_trials(deepcopy=False)
            queued += [(frozen[each.number].params, {_RUNG: rung.number}) for each in best[: rung.trials - 1]]
        known = sum(self._rung_of(trial) == rung for trial in self._study.get_trials(deepcopy=False))
        for parameters, attributes in queued[known:]:
            self._study.enqueue_trial(parameters, user_attrs=attributes)
        return rung.trials if rung.number == 1 else len(queued)

    def _ended(self, rung: Rung) -> int:
        """Return how many trials of ``rung`` count. In a quick study, which has a budget, those that failed do too."""
        return sum(trial.rung == rung and (self.plan.quick or trial.value is not None) for trial in self.trials())

    def _next_trial(self) -> optuna.Trial:
        """Return the trial that was interrupted, to resume in its folder, or the next one."""
        library = _require_optuna()
        interrupted = self._study.get_trials(deepcopy=False, states=[self._states.RUNNING])
        number = interrupted[0].number if interrupted else len(self._study.get_trials(deepcopy=False))
        self._study.sampler = library.samplers.TPESampler(seed=self.plan.job.train.seed + number)
        trial: optuna.Trial = library.Trial(self._study, interrupted[0]._trial_id) if interrupted else self._study.ask()
        return trial

    def _run_trial(self, trial: optuna.Trial, process: TrialProcess, on_epochs: Callable[[int], None]) -> bool:
        """Run one trial and record it; return whether it has ended, and was not stopped so that it can be resumed.

        Raises:
            ClusterError: several trials in a row failed.
        """
        rung, is_own = self._rung_of(trial), trial.user_attrs.get(_OWN, False)
        values = {} if is_own else {parameter.key: parameter.suggest(trial) for parameter in self.plan.parameters}
        run = TrialRun(self.plan.folder, f"trial-{trial.number:04}", process)
        changes = rung.changes(self.plan.resolved_job, values)
        code = 0 if run.is_finished else run.train(changes, self._stop_requested, on_epochs)
        if code and self._stop_requested():
            return False
        if code:
            self._tell_failure(trial, run)
        else:
            self._consecutive_failures = 0
            self._tell(trial, run)
        run.delete_checkpoints()
        on_epochs(max(0, rung.epochs - run.epochs))
        return True

    def _tell(self, trial: optuna.Trial, run: TrialRun) -> None:
        """Record a trial with a result, and the job with the best settings of a whole training."""
        trial.set_user_attr(_SECONDS, sum(run.report()["seconds_by_phase"].values()))
        # A valid split without a query selects no epoch, so all trials are equal.
        self._study.tell(trial, run.valid_metric(self._metric))
        if whole := self.results(self.plan.rungs[-1]):
            write_best(self.plan.folder, {} if whole[0].is_own else whole[0].parameters)

    def _tell_failure(self, trial: optuna.Trial, run: TrialRun) -> None:
        """Record a trial without a result, as pruned, so that values like its are proposed less often."""
        trial.set_user_attr(_FAILED, True)
        self._study.tell(trial, state=self._states.PRUNED)
        self._consecutive_failures += 1
        cause = run.describe_failure()
        if self._consecutive_failures == _MAX_CONSECUTIVE_FAILURES:
            raise ClusterError(f"{_MAX_CONSECUTIVE_FAILURES} trials in a row failed, the last one: {cause}")
        _logger.warning(f"trial {trial.number} failed: {cause}")


def _require_optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError("optuna", extra="tune", purpose="crossfade tune") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
