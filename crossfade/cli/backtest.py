"""``crossfade backtest``: train on the past of each window of time, and judge on the window."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from crossfade.base.errors import MissingExtraError
from crossfade.base.formatting import with_error
from crossfade.base.options import option
from crossfade.base.signals import stopper
from crossfade.base.text import counted
from crossfade.cli.command import as_command
from crossfade.deploy.tuning.options import BacktestOptions
from crossfade.terminal import print_json, print_line, print_table
from crossfade.trainer.runs.shown_metrics import error_of

if TYPE_CHECKING:
    from crossfade.deploy.tuning.backtest import Backtest, WindowResult
    from crossfade.trainer.data.manifest import DatasetManifest

_logger = logging.getLogger(__name__)
_EXAMPLES = (
    ("crossfade backtest data/plays", "Predict each of ten windows from its past, with the defaults of a job."),
    (
        "crossfade backtest data/plays --windows 5 --first 0.8 --job jobs/plays.yaml --set train.half_life=90d",
        "Cut the latest fifth of the interactions into five windows, and train as a job file says.",
    ),
    ("crossfade backtest data/plays --splits train valid", "Choose settings without the test split."),
    (
        "crossfade backtest data/plays --strategies full refresh fold-in",
        "Compare training anew for each window with continuing the training, and with folding customers in.",
    ),
    (
        "crossfade backtest data/plays --strategies full refresh --replay 1 --increment-set train.epochs=2",
        "Try other settings of crossfade refresh; windows of the strategy full are kept.",
    ),
)
_NOTES = """\
Interactions are ordered by time; those after the first --first are cut into windows of equal size. For each window, a
job is trained on all interactions before it, of which it holds out a random twentieth as valid, to choose the epoch by,
and ranks for the queries of the window. Queries without a past are left out, and counted. After ± is the standard error
of a mean over windows, which are not independent of each other: it shows how much windows differ.

With other --strategies, the trainings of refresh and fold-in begin with the past of the first window. They are judged
on the same held-out pairs as full, with processor seconds, and compared over the windows after the first. The same
command with other --replay or --increment-set trains only the increments again, and replaces their results. DIR gets
strategies.png: quality, processor seconds, and the age of the newest event that was trained on, of each window.

DIR gets a file with the metrics of each window. Ctrl-C or SIGTERM stops the current training after a checkpoint; the
same command resumes the backtest, as it does after a crash.
"""


class BacktestCommand(BacktestOptions):
    """The options of the command."""

    json_: bool = option(False, "print windows, means, and errors as JSON", group="output")


@as_command(
    "backtest",
    "Train on the past of each window of time and judge on the window: mean and error over windows, and baselines.",
    _EXAMPLES,
    _NOTES,
)
def run(options: BacktestCommand) -> int:
    """Judge all windows, and print the means.

    Raises:
        InputError: the job or the dataset cannot be backtested, or the folder holds something else.
        ClusterError: a training failed.
    """
    from crossfade.deploy.tuning.backtest import Backtest
    from crossfade.deploy.tuning.study_folder import study_errors
    from crossfade.display import progress_bars

    with closing(Backtest.open(options)) as backtest, study_errors(backtest.folder):
        metric, manifest = backtest.job.evaluate.best_metric, backtest.source.manifest

        def print_window(result: WindowResult) -> None:
            if not options.json_:
                print_line(_describe(result, metric, manifest), flush=True)

        with stopper.deferred(), progress_bars() as bars:
            bars.phase("backtest", backtest.epochs, "epoch")
            backtest.run(bars.advance, print_window, lambda: stopper.number is not None)
        results = backtest.results()
    if stopper.number is not None:
        stopper.check(f"after {len(results)} of {len(backtest.windows)} windows; the same command resumes the backtest")
    _print(results, metric, as_json=options.json_)
    if results[0].strategies:
        _draw(backtest, results)
    return 0


def _draw(backtest: Backtest, results: list[WindowResult]) -> None:
    """Write the picture of the strategies, and say where, or what is missing for it."""
    from crossfade.base.io.durable_file import replace_file
    from crossfade.deploy.tuning.backtest import PICTURE_FILE, draw_strategies

    path, is_dates = backtest.folder / PICTURE_FILE, bool(backtest.source.manifest.source.get("timestamps_are_dates"))
    try:
        replace_file(path, draw_strategies(results, backtest.job.evaluate.best_metric, in_seconds=is_dates))
    except MissingExtraError as error:
        _logger.warning(str(error))
    else:
        _logger.info(f"{path}: quality, cost, and freshness of each window")


def _describe(result: WindowResult, metric: str, manifest: DatasetManifest) -> str:
    """Describe a window in a line: its times, sizes, and the metric of the model and of each baseline."""
    from crossfade.trainer.prepare.summary import format_time

    window = result.window
    since, until = (format_time(manifest, time) for time in (window.since, window.until))
    values = ", ".join(f"{name.replace('_', ' ')} {of[metric]:.4f}" for name, of in result.metrics.items())
    values += "".join(f", {name} {of.metrics[metric]:.4f}" for name, of in result.strategies.items() if name != "full")
    new = f", {window.new_queries:,} without a past left out" if window.new_queries else ""
    return (
        f"window {window.number}, from {since} to before {until}: {counted(window.past, 'interaction')} before it, "
        f"{window.end - window.past:,} in it; {metric}: {values}{new}"
    )


def _print(results: list[WindowResult], metric: str, *, as_json: bool) -> None:
    from crossfade.deploy.tuning.backtest import MODEL, compare_strategies, gains, summarize

    means, found = summarize(results), gains(results, metric)
    compared = compare_strategies(results) if results[0].strategies else {}
    if as_json:
        windows = [
            {**asdict(result.window), "metrics": result.metrics, **_strategies_of(result, results[0])}
            for result in results
        ]
        of_strategies = {"strategies": compared} if compared else {}
        print_json({"windows": windows, "means": means, "gains": {metric: found}, **of_strategies})
        return
    from crossfade.display import print_quality

    print_line()
    print_quality("windows", means.pop(MODEL), {f"  by {name.replace('_', ' ')}": of for name, of in means.items()})
    print_line(f"means over {counted(len(results), 'window')}, with their standard errors")
    rows = [[f"  {name.replace('_', ' ')}", with_error(gain["mean"], gain["error"])] for name, gain in found.items()]
    print_table([[f"{metric} above that by", ""], *rows])
    if compared:
        print_line()
        _print_strategies(compared, metric, len(results))


def _strategies_of(result: WindowResult, first: WindowResult) -> dict[str, Any]:
    """Return what the strategies have reached in a window, and how fresh they are, if several are compared."""
    from crossfade.deploy.tuning.backtest import trained_until

    found = {
        name: {**asdict(of), "trained_until": trained_until(name, result.window, first.window)}
        for name, of in result.strategies.items()
    }
    return {"strategies": found} if found else {}


def _print_strategies(compared: Mapping[str, Mapping[str, Mapping[str, float]]], metric: str, windows: int) -> None:
    """Print a row for each strategy: means of metrics and processor seconds, and their ratios to full."""
    from crossfade.deploy.tuning.backtest import SECONDS

    print_line(f"strategies, means over windows 2 to {windows}, with their standard errors")
    recall = f"recall@{metric.partition('@')[2]}"
    names = list(dict.fromkeys((recall, metric)))
    rows = [["", *names, "processor s", f"{metric} of full", "processor s of full", "trained on all before"]]
    for strategy, of in compared.items():
        means, ratios = of["means"], of["of_full"]
        cells = [with_error(means[name], means[error_of(name)]) for name in names]
        cells.append(f"{means[SECONDS]:.1f} ± {means[error_of(SECONDS)]:.1f}")
        for name in (metric, SECONDS):
            has_ratio = name in ratios and strategy != "full"
            cells.append(f"{ratios[name]:.1%} ± {ratios[error_of(name)]:.1%}" if has_ratio else "")
        cells.append("window 1" if strategy == "fold-in" else "the window")
        rows.append([f"  {strategy}", *cells])
    print_table(rows)
