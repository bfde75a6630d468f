"""``crossfade tune``: search for the settings of a job with the best metric on the valid split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossfade.base.command_line import command_line
from crossfade.base.signals import stopper
from crossfade.cli.command import as_command
from crossfade.deploy.tuning.options import TuneOptions
from crossfade.terminal import print_line, print_table

if TYPE_CHECKING:
    from crossfade.deploy.tuning.study import TrialResult
    from crossfade.deploy.tuning.study_folder import StudyPlan

_DESCRIPTION = """\
Search for the settings of a job that give the best metric on the valid split, by training it many times.

The test split is never evaluated. With --quick, it costs at most ten trainings.
"""
_EXAMPLES = (
    ("crossfade tune jobs/lastfm.yaml --quick", "Search the six settings that matter, in at most ten trainings."),
    ("crossfade tune jobs/lastfm.yaml --trials 30", "Search the learning rate, temperature and batch size."),
    (
        "crossfade tune jobs/lastfm.yaml --trials 50 --search optimizer.learning_rate=log:0.02..1 \\\n"
        "      --search model.dim=32|64|128 --search negatives.count=256..4096",
        "Search a custom space.",
    ),
    ("crossfade train runs/lastfm-tune-quick/best.yaml", "Train the job with the best settings that --quick found."),
)
_NOTES = """\
--quick searches model.temperature (up to 1.5 times as high or low as in the job), optimizer.learning_rate (3 times),
train.batch_size (a quarter to twice), train.query_frequency_power (0.3 more or less), train.item_frequency_power
(0.15), and model.dim (half or twice), or the keys of --search, by successive halving: of 16 epochs, it trains 48
settings for 1 epoch, the best 9 of them for 5, and the best 4 for all 16. The job's own settings are always among
them, so the result is never worse than they are on valid. The study takes at most ten times the examples of the job.
Twice the columns need twice the memory. Everything that was tried is printed.

Without --quick and --search, the search space is the learning rate up to ten times as high or low as in the job, the
temperature up to three times, and the batch size from an eighth to twice the job's, all on a log scale.

DIR gets best.yaml, the job with the best settings so far, and a run folder and a log for each training. Ctrl-C or
SIGTERM stops the current one after a checkpoint; the same command resumes the study, as it does after a crash, and adds
trials if N is larger. Trials that fail or diverge are ignored; five in a row end the study.
"""
_SHOWN = 5
"""Trials that are printed of a study that is not quick."""


@as_command("tune", _DESCRIPTION, _EXAMPLES, _NOTES)
def run(options: TuneOptions) -> int:
    """Run the study, and print the best settings.

    Raises:
        InputError: the job or a search parameter is invalid, or the dataset has no valid split.
        ClusterError: several trials in a row failed.
    """
    from crossfade.deploy.tuning.study import TuningStudy
    from crossfade.deploy.tuning.study_folder import plan_study
    from crossfade.display import progress_bars

    plan = plan_study(options)
    study = TuningStudy(plan, stop_requested=lambda: stopper.number is not None)
    with stopper.deferred(), progress_bars() as bars:
        bars.phase("tuning", _epochs(plan), "epoch")
        study.run(bars.advance)
    trials = study.trials()
    ended = sum(trial.value is not None for trial in trials)
    stopper.check(f"after {ended} of {sum(rung.trials for rung in plan.rungs)} trials; {_AGAIN}")
    _print_trials(trials if options.quick else trials[:_SHOWN], plan)
    print_line(describe_best(trials[0], plan.folder, plan.job.name))
    return 0


def describe_best(best: TrialResult, study: Path, job: str) -> str:
    """Return the command that trains the ``job`` with the settings of ``best``, unless they are its own."""
    from crossfade.deploy.tuning.study_folder import BEST_FILE

    if best.is_own:
        return "no setting that was tried is better than the job's own"
    run = study.with_name(f"{job}-best")
    return f"next: {command_line('train', study / BEST_FILE, run_dir=run)}"


_AGAIN = "the same command resumes the study"


def _epochs(plan: StudyPlan) -> int:
    return sum(rung.trials * rung.epochs for rung in plan.rungs)


def _print_trials(trials: Sequence[TrialResult], plan: StudyPlan) -> None:
    """Print a row for each of ``trials``."""
    keys = [parameter.key for parameter in plan.parameters]
    names = [key.rpartition(".")[2] for key in keys]
    short = [key if names.count(name) > 1 else name for key, name in zip(keys, names, strict=True)]
    rows = [["epochs", "trial", f"valid {plan.job.evaluate.best_metric}", "seconds", *short, ""]]
    for trial in trials:
        value = "failed" if trial.value is None else f"{trial.value:.4f}"
        seconds = f"{trial.seconds:.1f}" if trial.seconds else "-"
        note = "the job's own" if trial.is_own else ""
        values = (_text(trial.parameters[key]) for key in keys)
        rows.append([str(trial.rung.epochs), str(trial.number), value, seconds, *values, note])
    print_table(rows, min_width=0)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
