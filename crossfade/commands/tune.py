"""``crossfade tune``: search for the settings of a job with the best metric on the valid split."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossfade.next_command import command_line
from crossfade.options.command import add_command
from crossfade.options.job import add_job, load_job_arguments, suggest_setting
from crossfade.options.parsing import positive_integer
from crossfade.terminal import print_line

if TYPE_CHECKING:
    from crossfade.deploy.tuning.study import TuningStudy
    from crossfade.trainer.config.schema import JobConfig


_DESCRIPTION = """\
Search for the settings of a job that give the best metric on the valid split, by training it many times.

The test split is never evaluated. A trial that falls behind the median of the others is pruned.
"""
_EXAMPLES = (
    ("crossfade tune jobs/lastfm.yaml --trials 30", "Search the learning rate, temperature and weight decay."),
    (
        "crossfade tune jobs/lastfm.yaml --trials 50 --search optimizer.learning_rate=log:0.001..0.1 \\\n"
        "      --search model.dim=32|64|128 --search negatives.count=256..4096",
        "Search a custom space.",
    ),
    ("crossfade train runs/lastfm-tune/best.yaml", "Train the job with the best settings."),
)
_NOTES = """\
Without --search, the search space is the learning rate up to ten times as high or low as in the job, the temperature up
to three times, and weight decay from 1e-8 to 1e-3, all on a log scale.

DIR gets best.yaml, the job with the best settings so far, and a run folder and a log for each trial. Ctrl-C or SIGTERM
stops the current trial after a checkpoint; the same command resumes the study, as it does after a crash, and adds
trials if N is larger. Trials that fail or diverge are ignored; three in a row end the study.
"""
_SHOWN = 5


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "tune",
        "search for the best settings of a job",
        _DESCRIPTION,
        examples=_EXAMPLES,
        notes=_NOTES,
    )
    parser.suggest = suggest_setting
    add_job(parser.add_argument_group("job"), set_help="override a key of the job file in all trials")
    study = parser.add_argument_group("study")
    study.add_argument(
        "--trials", type=positive_integer, default=20, metavar="N", help="stop after N trials in total (default: 20)"
    )
    study.add_argument(
        "--search",
        action="append",
        default=[],
        metavar="KEY=VALUES",
        help="search a key of the job over LOW..HIGH, log:LOW..HIGH or A|B|C; repeatable",
    )
    study.add_argument("--no-pruning", action="store_true", help="run every trial to its end")
    study.add_argument("--out", type=Path, metavar="DIR", help="keep the study in DIR (default: runs/NAME-tune)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the study, and print the best settings.

    Raises:
        InputError: the job or a search parameter is invalid, or the dataset has no valid split.
        ClusterError: several trials in a row failed.
    """
    from crossfade.deploy.tuning.search_space import SearchParameter, check_parameters, default_parameters
    from crossfade.deploy.tuning.study import TuningStudy
    from crossfade.signals import stopper
    from crossfade.trainer.runs.folder import default_run_dir

    job = load_job_arguments(arguments)
    parameters = [SearchParameter.parse(text) for text in arguments.search] or default_parameters(job)
    check_parameters(arguments.job, arguments.overrides, parameters)
    _check_has_valid(job)
    run_dir = default_run_dir(job)
    study = TuningStudy(
        arguments.out or run_dir.with_name(f"{run_dir.name}-tune"),
        job,
        parameters,
        prune=not arguments.no_pruning,
        stop_requested=lambda: stopper.number is not None,
    )
    with stopper.deferred():
        _run_trials(study, arguments.trials, job.evaluate.best_metric)
    if stopper.number is not None:
        stopper.check(f"after {study.ended()} trials; the same command resumes the study")
    _print_results(study, job.evaluate.best_metric)
    return 0


def _check_has_valid(job: JobConfig) -> None:
    from crossfade.kvstore.errors import InputError
    from crossfade.trainer.runs.inputs import load_inputs

    folder, manifest, _ = load_inputs(job)
    if "valid" not in manifest.splits or manifest.splits["valid"].rows == 0:
        raise InputError(f"{folder.uri}: has no valid split to compare settings by; prepare it with --hold-out")


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
    print_line("  ".join([f"{'trial':>5}", f"{'valid ' + best_metric:>14}", *keys]))
    for result in results[:_SHOWN]:
        cells = (f"{_text(result.parameters.get(key)):<{len(key)}}" for key in keys)
        note = "  pruned" if result.pruned else ""
        print_line("  ".join([f"{result.number:>5}", f"{result.value:>14.4f}", *cells]) + note)
    print_line(f"next: {command_line('train', study.folder / 'best.yaml')}")


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
