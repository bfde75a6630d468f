"""``crossfade tune``: search for the settings of a job with the best metric on the valid split."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from crossfade.base.signals import stopper
from crossfade.base.text import counted
from crossfade.cli.command import as_command
from crossfade.deploy.tuning.options import TuneOptions
from crossfade.next_command import command_line
from crossfade.terminal import print_line, print_table

if TYPE_CHECKING:
    from crossfade.deploy.tuning.quick_study import QuickResult, QuickStudy
    from crossfade.deploy.tuning.search_space import SearchParameter
    from crossfade.deploy.tuning.study import TuningStudy
    from crossfade.deploy.tuning.study_folder import StudyPlan
    from crossfade.trainer.config.schema import JobConfig


_DESCRIPTION = """\
Search for the settings of a job that give the best metric on the valid split, by training it many times.

The test split is never evaluated. With --quick, it costs at most ten trainings; otherwise, a trial that falls behind
the median of the others is pruned.
"""
_EXAMPLES = (
    ("crossfade tune jobs/lastfm.yaml --quick", "Search the five settings that matter, in at most ten trainings."),
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
train.batch_size (a quarter to twice), train.query_frequency_power (0.3 more or less) and train.item_frequency_power
(0.15), or the keys of --search, by successive halving: of 40 epochs, it trains 30 settings for 4 epochs, the best 9 of
them for 13, and the best 4 for all 40. The job's own settings are always among them, so the result is never worse than
they are on valid. The number of examples is at most that of ten trainings. It prints everything that was tried.

Without --quick and --search, the search space is the learning rate up to ten times as high or low as in the job, the
temperature up to three times, and the batch size from an eighth to twice the job's, all on a log scale.

DIR gets best.yaml, the job with the best settings so far, and a run folder and a log for each training. Ctrl-C or
SIGTERM stops the current one after a checkpoint; the same command resumes the study, as it does after a crash, and adds
trials if N is larger. Trials that fail or diverge are ignored; three in a row end the study.
"""
_TRIALS, _SHOWN = 20, 5


@as_command("tune", _DESCRIPTION, _EXAMPLES, _NOTES)
def run(options: TuneOptions) -> int:
    """Run the study, and print the best settings.

    Raises:
        InputError: the job or a search parameter is invalid, or the dataset has no valid split.
        ClusterError: several trials in a row failed.
    """
    from crossfade.deploy.tuning.study_folder import plan_study, study_errors

    plan = plan_study(options)
    with study_errors(plan.folder):
        if options.quick:
            return _run_quick(plan)
        return _run_study(plan, options.trials or _TRIALS, prune=not options.no_pruning)


def _run_study(plan: StudyPlan, trials: int, *, prune: bool) -> int:
    from crossfade.deploy.tuning.study import TuningStudy

    study = TuningStudy(
        plan.folder, plan.job, plan.parameters, prune=prune, stop_requested=lambda: stopper.number is not None
    )
    with stopper.deferred():
        _run_trials(study, trials, plan.job.evaluate.best_metric)
    if stopper.number is not None:
        stopper.check(f"after {study.ended()} trials; the same command resumes the study")
    _print_results(study, plan.job.evaluate.best_metric)
    return 0


def _run_trials(study: TuningStudy, trials: int, best_metric: str) -> None:
    from tqdm import tqdm

    with tqdm(total=trials, desc="tuning", unit="trial", dynamic_ncols=True, file=sys.stderr) as bar:
        for ended in study.run(trials):
            best: Any = next(iter(study.trial_results()), None)
            if best is not None:
                bar.set_postfix({f"best {best_metric}": f"{best.value:.4f}", "in trial": best.number}, refresh=False)
            bar.update(ended - bar.n)
            bar.refresh()


def _print_results(study: TuningStudy, best_metric: str) -> None:
    results = study.trial_results()
    keys = list(results[0].parameters)
    rows = [["trial", f"valid {best_metric}", *keys, ""]]
    for result in results[:_SHOWN]:
        values = (_text(result.parameters.get(key)) for key in keys)
        rows.append([str(result.number), f"{result.value:.4f}", *values, "pruned" if result.pruned else ""])
    print_table(rows, min_width=0)
    print_line(f"next: {command_line('train', study.folder / 'best.yaml')}")


def _run_quick(plan: StudyPlan) -> int:
    from crossfade.deploy.tuning.quick_study import QuickStudy
    from crossfade.display import progress_bars

    study = QuickStudy(
        plan.folder, plan.job, plan.resolved_job, plan.parameters, stop_requested=lambda: stopper.number is not None
    )
    _print_plan(study, plan.resolved_job, plan.parameters)
    with stopper.deferred(), progress_bars() as bars:
        bars.phase("tuning", study.epochs, "epoch")
        study.run(bars.advance)
    if stopper.number is not None:
        trainings = sum(rung.trials for rung in study.rungs)
        stopper.check(f"after {study.trained} of {trainings} trainings; the same command resumes the study")
    _print_quick_results(study, plan.parameters, plan.job.evaluate.best_metric)
    return 0


def _print_plan(study: QuickStudy, job: JobConfig, parameters: list[SearchParameter]) -> None:
    """Print on stderr what will be tried."""
    rungs = [f"{rung.trials} for {rung.epochs:,} epoch{'s' * (rung.epochs > 1)}" for rung in study.rungs]
    trainings = study.epochs / job.train.epochs
    lines = [
        f"successive halving on valid {job.evaluate.best_metric}; settings: {', '.join(rungs)}",
        *(f"  {each.key}: {each.describe()}, in the job {_text(each.own_value(job))}" for each in parameters),
        f"{counted(study.epochs, 'epoch')}, as many as {trainings:.1f} trainings have",
    ]
    for line in lines:
        print_line(line, file=sys.stderr, flush=True)


def _print_quick_results(study: QuickStudy, parameters: list[SearchParameter], best_metric: str) -> None:
    """Print every training, the gain over the job's own settings, and how to train with the best ones."""
    results = study.results()
    names = [each.key.rpartition(".")[2] for each in parameters]
    keys = [each.key if names.count(name) > 1 else name for each, name in zip(parameters, names, strict=True)]
    print_table([["epochs", "trial", best_metric, "seconds", *keys], *map(_quick_row, study.tried())], min_width=0)
    print_line(f"trial own: the job's own settings; {best_metric} is that of valid")
    best, own = results[0], study.own_result()
    if own is None:
        print_line("the job's own settings have no result: their training failed")
    elif best.trial == own.trial:
        print_line("nothing that was tried is better than the job's own settings")
    else:
        gain = f", {best.value / own.value - 1:+.1%}" if own.value else ""
        print_line(
            f"best: trial {best.trial}, {best_metric} {best.value:.4f} instead of {own.value:.4f} on valid{gain}"
        )
    print_line(f"next: {command_line('train', study.folder / 'best.yaml')}")


def _quick_row(result: QuickResult) -> list[str]:
    from crossfade.deploy.tuning.successive_halving import OWN

    trial = "own" if result.trial == OWN else str(result.trial)
    values = [_text(value) for value in result.parameters.values()]
    found = ["failed", "-"] if result.failed else [f"{result.value:.4f}", f"{result.seconds:.1f}"]
    return [str(result.rung.epochs), trial, *found, *values]


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
