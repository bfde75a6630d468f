"""A quick study: successive halving over trainings that are compared on the valid split.

    study = QuickStudy(folder, job, parameters, stop_requested=lambda: False)
    study.run(on_epochs=lambda epochs: None)
    study.results()[0].parameters

    FOLDER/  job.yaml  study.lock  quick.json  best.yaml  rung-1-trial-00/  rung-1-trial-00.log ...

The trainings, their order, and which are promoted follow from the job, so a study that was stopped or killed resumes to
the same results: trainings with a report are kept, one that was interrupted resumes, those that failed start over.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crossfade.base.errors import ClusterError, InputError
from crossfade.base.formatting import duration
from crossfade.base.io.durable_file import replace_file
from crossfade.deploy.tuning.search_space import SearchParameter
from crossfade.deploy.tuning.study_folder import OTHER_FOLDER, QUICK_FILE, claim_study, write_best
from crossfade.deploy.tuning.successive_halving import OWN, Rung, draw_trials, plan_rungs, promote
from crossfade.deploy.tuning.trial_run import MAX_CONSECUTIVE_FAILURES, EpochRecord, TrialProcess, TrialRun
from crossfade.trainer.config.schema import JobConfig


class Pace:
    """The mean start, and the mean epoch, of trainings that have ended."""

    def __init__(self) -> None:
        """Begin without a training."""
        self._trainings, self._epochs = 0, 0
        self._start_seconds, self._epoch_seconds = 0.0, 0.0

    def add(self, elapsed: float, trained: float, epochs: int) -> None:
        """Count a training that was waited for ``elapsed`` seconds: of these, its ``epochs`` took ``trained``."""
        self._trainings += 1
        self._epochs += epochs
        self._start_seconds += max(0.0, elapsed - trained)
        self._epoch_seconds += trained

    def left(self, trainings: Mapping[int, int]) -> float | None:
        """Return the seconds that ``trainings`` take, their number by epochs; None before the first has ended."""
        if not self._trainings:
            return None
        start, epoch = self._start_seconds / self._trainings, self._epoch_seconds / max(1, self._epochs)
        return sum(count * (start + epochs * epoch) for epochs, count in trainings.items())


_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class QuickResult:
    """A training that has ended.

    Attributes:
        rung: the rung it is of.
        trial: the number of its trial; 0 has the job's own settings.
        parameters: the values of the trial by key; for trial 0, those of the job.
        value: the best metric on valid.
        seconds: seconds of training and evaluation.
        failed: whether it has no result; value and seconds are then 0.
    """

    rung: Rung
    trial: int
    parameters: Mapping[str, Any]
    value: float = 0.0
    seconds: float = 0.0
    failed: bool = False


class QuickStudy:
    """A study in one folder."""

    def __init__(
        self,
        folder: Path,
        job: JobConfig,
        resolved_job: JobConfig,
        parameters: Sequence[SearchParameter],
        *,
        stop_requested: Callable[[], bool],
    ) -> None:
        """Create or resume the study of ``job`` over ``parameters`` in ``folder``.

        ``resolved_job`` is the job with a value for each ``auto``; a trial resolves those that it does not set again.

        ``stop_requested`` returns whether to stop; it is called twice a second.

        Raises:
            InputError: the folder holds something else, or another study.
        """
        self.folder, self._job = folder, resolved_job
        self.rungs = plan_rungs(job)
        self.trials = draw_trials(parameters, self.rungs[0].trials, job.train.seed)
        self._own = {each.key: each.own_value(resolved_job) for each in parameters}
        self._stop_requested = stop_requested
        self._lock = claim_study(folder, job, QUICK_FILE)
        self._claim_plan()
        self._results: dict[tuple[int, int], QuickResult] = {}
        self._failed: list[QuickResult] = []
        self._consecutive_failures = 0
        self._pace, self._started = Pace(), 0

    def _claim_plan(self) -> None:
        """Write what the study tries; reject a folder in which other values were tried."""
        rungs = [{**asdict(rung), "share": str(rung.share)} for rung in self.rungs]
        plan = json.dumps({"rungs": rungs, "trials": self.trials}, indent=1, default=str)
        path = self.folder / QUICK_FILE
        if path.exists() and path.read_text(encoding="utf-8") != plan:
            self._lock.close()
            raise InputError(f"{self.folder}: holds a study of another search space; {OTHER_FOLDER}")
        replace_file(path, plan.encode())

    @property
    def epochs(self) -> int:
        """Return the epochs of all rungs together."""
        return sum(rung.trials * rung.epochs for rung in self.rungs)

    @property
    def trained(self) -> int:
        """Return how many trainings have a result."""
        return len(self._results)

    def results(self) -> list[QuickResult]:
        """Return the trainings with a result: those of the last rung first, and in a rung the best first."""
        return sorted(self._results.values(), key=lambda found: (-found.rung.number, -found.value, found.trial))

    def tried(self) -> list[QuickResult]:
        """Return ``results`` with, in each rung after them, the trainings that failed."""
        return sorted([*self.results(), *self._failed], key=lambda found: (-found.rung.number, found.failed))

    def own_result(self) -> QuickResult | None:
        """Return the whole training with the job's own settings; None if it has no result."""
        return self._results.get((self.rungs[-1].number, OWN))

    def run(self, on_epochs: Callable[[int], None]) -> None:
        """Run all rungs, or until a stop is requested. ``on_epochs`` receives the number of epochs that have ended.

        Raises:
            ClusterError: several trainings in a row failed, or all of the last rung.
        """
        with closing(self._lock), closing(TrialProcess()) as process:
            self._run_rungs(process, on_epochs)

    def _run_rungs(self, process: TrialProcess, on_epochs: Callable[[int], None]) -> None:
        trials = list(range(len(self.trials)))
        for rung in self.rungs:
            trials = promote(self._values(rung.number - 1), rung.trials) if rung.number > 1 else trials
            for trial in trials:
                if self._stop_requested():
                    return
                self._train(rung, trial, process, on_epochs)
            if not self._stop_requested():
                self._log_rung(rung)
        if not self._stop_requested() and not self._values(self.rungs[-1].number):
            raise ClusterError(f"{self.folder}: no training of all epochs has a result; the logs there have the causes")

    def _values(self, rung: int) -> dict[int, float]:
        return {trial: found.value for (number, trial), found in self._results.items() if number == rung}

    def _train(self, rung: Rung, trial: int, process: TrialProcess, on_epochs: Callable[[int], None]) -> None:
        """Train ``trial`` in ``rung``, unless it has been, and record its result."""
        run = TrialRun(self.folder, f"rung-{rung.number}-trial-{trial:02}", process)
        ended, begin = 0, time.monotonic()

        def watch(epochs: list[EpochRecord]) -> bool:
            nonlocal ended
            newest = max([ended, *(epoch["epoch"] for epoch in epochs)])  # a run that resumes repeats epochs
            on_epochs(newest - ended)
            ended = newest
            return self._stop_requested()

        was_finished = run.is_finished
        if not was_finished and run.train(rung.overrides(self._job, self.trials[trial]), watch) != 0:
            if not self._stop_requested():
                self._count_failure(rung, trial, run)
        else:
            self._consecutive_failures = 0
            self._record(rung, trial, run)
            if not was_finished:
                self._measure(self._results[rung.number, trial], time.monotonic() - begin)
        if not self._stop_requested():
            on_epochs(rung.epochs - ended)

    def _measure(self, result: QuickResult, elapsed: float) -> None:
        """Count how long a training was waited for; after the first two, log how long the study will take.

        The first one does not count, since it alone loads modules and kernels.
        """
        self._started += 1
        if self._started > 1:
            self._pace.add(elapsed, result.seconds, result.rung.epochs)
        if self._started == 2:
            _logger.info(f"{self._describe_left()}, at the speed of the second training")

    def _describe_left(self) -> str:
        """Describe how long the trainings that are left take; empty if none has been measured, or none is left."""
        ended = Counter(result.rung.number for result in self.tried())
        left = {rung.epochs: rung.trials - ended[rung.number] for rung in self.rungs}
        seconds = self._pace.left(left)
        return f"{sum(left.values())} trainings are left: about {duration(seconds)}" if seconds else ""

    def _count_failure(self, rung: Rung, trial: int, run: TrialRun) -> None:
        self._failed.append(QuickResult(rung, trial, self._parameters(trial), failed=True))
        self._consecutive_failures += 1
        run.discard()
        if self._consecutive_failures == MAX_CONSECUTIVE_FAILURES:
            last = run.describe_failure()
            raise ClusterError(f"{MAX_CONSECUTIVE_FAILURES} trials in a row failed, the last one: {last}")
        _logger.warning(f"rung {rung.number}, trial {trial} failed: {run.describe_failure()}")

    def _parameters(self, trial: int) -> Mapping[str, Any]:
        return self.trials[trial] or self._own

    def _record(self, rung: Rung, trial: int, run: TrialRun) -> None:
        value = run.valid_metric(self._job.evaluate.best_metric)
        seconds = sum(run.report()["seconds_by_phase"].values())
        self._results[rung.number, trial] = QuickResult(rung, trial, self._parameters(trial), value, seconds)
        run.delete_checkpoints()
        if rung is self.rungs[-1]:
            write_best(self.folder, self.trials[self.results()[0].trial])

    def _log_rung(self, rung: Rung) -> None:
        """Log the best of a rung that has ended, beside the job's own settings."""
        values = self._values(rung.number)
        if not values:
            return
        name, best = self._job.evaluate.best_metric, min(values, key=lambda trial: (-values[trial], trial))
        own = f", the job's own settings {values[OWN]:.4f}" if OWN in values else ""
        left = f"; {text}" if (text := self._describe_left()) else ""
        _logger.info(
            f"rung {rung.number} of {len(self.rungs)}: best valid {name} {values[best]:.4f}, trial {best}{own}{left}"
        )
