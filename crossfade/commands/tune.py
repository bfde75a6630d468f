"""``crossfade tune``: search for the settings of a job that do best on the valid split."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossfade.options.job import add_job, load_job_arguments

if TYPE_CHECKING:
    from deploy.tuning.study import TuningStudy
    from trainer.config.schema import JobConfig

_logger = logging.getLogger(__name__)

_DESCRIPTION = """\
Train a job with other settings again and again, and find those that do best on the valid split; the test split is
never looked at. A trial that falls behind the median of the others is ended early.
"""
_EPILOG = """\
Examples:
  crossfade tune jobs/lastfm.yaml --trials 30
  crossfade tune jobs/lastfm.yaml --trials 50 --search optimizer.learning_rate=log:0.001..0.1 \\
      --search model.dim=32|64|128 --search negatives.count=256..4096
  crossfade train runs/lastfm-tune/best.yaml

Without --search: the learning rate up to ten times as high or low as the job says, the temperature up to three times,
and weight decay from 1e-8 to 1e-3, all on a log scale.

DIR gets best.yaml, the job with the best settings so far, and a run folder and a log for each trial. Ctrl-C or SIGTERM
ends the trial that runs after a checkpoint, and the same command goes on with it, as it does after a crash; with a
larger N it adds trials. A trial whose training diverges or fails is left out; three in a row end the search.
"""
_SHOWN = 5


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "tune",
        help="search for the settings of a job that do best",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--trials", type=_count, default=20, metavar="N", help="trials in all (default: 20)")
    parser.add_argument(
        "--search",
        action="append",
        default=[],
        metavar="KEY=VALUES",
        help="a key of the job and what it may be: LOW..HIGH, log:LOW..HIGH or A|B|C; may be given several times",
    )
    add_job(parser, set_help="override a key of the job file for all trials")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the search (default: runs/NAME-tune)")
    parser.add_argument("--no-pruning", action="store_true", help="end no trial early")
    parser.set_defaults(run=run)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, but found '{text}'")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Search, and print the best settings."""
    from crossfade.signals import stopper
    from deploy.tuning.search_space import SearchParameter, check_settings, default_settings
    from deploy.tuning.study import TuningStudy
    from trainer.runs.folder import default_run_dir

    job = load_job_arguments(arguments)
    settings = [SearchParameter.parse(text) for text in arguments.search] or default_settings(job)
    check_settings(arguments.job, arguments.overrides, settings)
    _check_has_valid(job)
    run_dir = default_run_dir(job)
    search = TuningStudy(
        arguments.out or run_dir.with_name(f"{run_dir.name}-tune"),
        job,
        settings,
        prune=not arguments.no_pruning,
        tell=_logger.info,
        stopped=lambda: stopper.number is not None,
    )
    with stopper.deferred():
        _show(search, arguments.trials, job.evaluate.best_metric)
    if stopper.number is not None:
        stopper.check(f"after {search.ended()} trials; the same command goes on")
    _print_standings(search, job.evaluate.best_metric)
    return 0


def _check_has_valid(job: JobConfig) -> None:
    from kvstore.errors import InputError
    from trainer.runs.inputs import load_inputs

    folder, manifest, _ = load_inputs(job)
    if "valid" not in manifest.splits or manifest.splits["valid"].rows == 0:
        raise InputError(
            f"{folder.uri}: has no valid split, by which settings could be compared; prepare the data with --hold-out"
        )


def _show(search: TuningStudy, trials: int, select: str) -> None:
    """Run the trials under a bar."""
    from tqdm import tqdm

    with tqdm(total=trials, desc="tuning", unit="trial", dynamic_ncols=True, file=sys.stderr) as bar:
        for ended in search.run(trials):
            best: Any = next(iter(search.trial_results()), None)
            if best is not None:
                bar.set_postfix({f"best {select}": f"{best.value:.4f}", "in trial": best.number}, refresh=False)
            bar.update(ended - bar.n)
            bar.refresh()


def _print_standings(search: TuningStudy, select: str) -> None:
    standings = search.trial_results()
    keys = list(standings[0].settings)
    print("  ".join([f"{'trial':>5}", f"{'valid ' + select:>14}", *keys]))
    for standing in standings[:_SHOWN]:
        cells = (f"{_text(standing.settings.get(key)):<{len(key)}}" for key in keys)
        note = "  ended early" if standing.pruned else ""
        print("  ".join([f"{standing.number:>5}", f"{standing.value:>14.4f}", *cells]) + note)
    print(f"crossfade train {search.folder / 'best.yaml'}")


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
