"""``crossfade backtest``: train on the past of each window of time, and judge on the window."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING

from crossfade.base.formatting import with_error
from crossfade.base.options import option
from crossfade.base.signals import stopper
from crossfade.base.text import counted
from crossfade.cli.command import as_command
from crossfade.deploy.tuning.options import BacktestOptions
from crossfade.terminal import print_json, print_line, print_table

if TYPE_CHECKING:
    from crossfade.deploy.tuning.backtest import WindowResult
    from crossfade.trainer.data.manifest import DatasetManifest

_EXAMPLES = (
    ("crossfade backtest data/plays", "Predict each of ten windows from its past, with the defaults of a job."),
    (
        "crossfade backtest data/plays --windows 5 --first 0.8 --job jobs/plays.yaml --set train.half_life=90d",
        "Cut the latest fifth of the interactions into five windows, and train as a job file says.",
    ),
    ("crossfade backtest data/plays --splits train valid", "Choose settings without the test split."),
)
_NOTES = """\
Interactions are ordered by time; those after the first --first are cut into windows of equal size. For each window, a
job is trained on all interactions before it, of which it holds out a random twentieth as valid, to choose the epoch by,
and ranks for the queries of the window. Queries without a past are left out, and counted. After ± is the standard error
of a mean over windows, which are not independent of each other: it shows how much windows differ.

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
    from crossfade.display import progress_bars

    with closing(Backtest.open(options)) as backtest:
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
    return 0


def _describe(result: WindowResult, metric: str, manifest: DatasetManifest) -> str:
    """Describe a window in a line: its times, sizes, and the metric of the model and of each baseline."""
    from crossfade.trainer.prepare.summary import format_time

    window = result.window
    since, until = (format_time(manifest, time) for time in (window.since, window.until))
    values = ", ".join(f"{name.replace('_', ' ')} {of[metric]:.4f}" for name, of in result.metrics.items())
    new = f", {window.new_queries:,} without a past left out" if window.new_queries else ""
    return (
        f"window {window.number}, from {since} to before {until}: {counted(window.past, 'interaction')} before it, "
        f"{window.end - window.past:,} in it; {metric}: {values}{new}"
    )


def _print(results: list[WindowResult], metric: str, *, as_json: bool) -> None:
    from crossfade.deploy.tuning.backtest import MODEL, gains, summarize

    means, found = summarize(results), gains(results, metric)
    if as_json:
        windows = [{**asdict(result.window), "metrics": result.metrics} for result in results]
        print_json({"windows": windows, "means": means, "gains": {metric: found}})
        return
    from crossfade.display import print_quality

    print_line()
    print_quality("windows", means.pop(MODEL), {f"  by {name.replace('_', ' ')}": of for name, of in means.items()})
    print_line(f"means over {counted(len(results), 'window')}, with their standard errors")
    rows = [[f"  {name.replace('_', ' ')}", with_error(gain["mean"], gain["error"])] for name, gain in found.items()]
    print_table([[f"{metric} above that by", ""], *rows])
