"""``crossfade status``: how runs are, in the terminal."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deploy.dashboard.runs import Runs
    from deploy.dashboard.summary import ProcessRow, Summary

_DESCRIPTION = """\
Show how runs are: progress, loss and quality, throughput, where the time goes, bytes moved, each process, checkpoints,
restarts, and what wants attention. It reads the run folders alone, so it works beside a run, from another host that
has the folder, and long after.
"""
_EPILOG = """\
Examples:
  crossfade status                         the runs in runs/
  crossfade status runs/lastfm             one run
  crossfade status runs/lastfm --watch     again every 2 seconds, until Ctrl-C
  crossfade status runs/lastfm --json      for programs: a line of JSON, a list with an object for each run

'crossfade dashboard' shows the same and more as a page.
"""
_BAR = 30
_LABEL = 13


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "status",
        help="show how runs are",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_runs_argument(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--watch",
        type=_seconds,
        nargs="?",
        const=2.0,
        metavar="SECONDS",
        help="show it again and again, with so long a pause (default: 2)",
    )
    parser.set_defaults(run=run)


def add_runs_argument(parser: argparse.ArgumentParser) -> None:
    """Add the argument that names runs."""
    parser.add_argument(
        "runs",
        nargs="*",
        type=Path,
        metavar="RUN",
        help="folder of a run, or one that holds such, at most two deep (default: runs)",
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds < 86400:
        raise argparse.ArgumentTypeError(f"expected seconds from 0.1, but found '{text}'")
    return seconds


def run(arguments: argparse.Namespace) -> int:
    """Show it."""
    runs = named_runs(arguments.runs)
    while True:
        if arguments.watch is not None and not arguments.json and sys.stdout.isatty():
            print("\x1b[H\x1b[2J", end="")
        _show(runs, as_json=arguments.json)
        if arguments.watch is None:
            return 0
        sys.stdout.flush()
        time.sleep(arguments.watch)


def named_runs(paths: Sequence[Path]) -> Runs:
    """The runs in ``paths``.

    Raises:
        InputError: one of them is not there, or none is given and there is no folder ``runs``.
    """
    from deploy.dashboard.runs import Runs
    from kvstore.errors import InputError

    for path in paths or [Path("runs")]:
        if not path.is_dir():
            expected = "expected a folder that 'crossfade train' wrote, or one that holds such"
            found = "is a file" if path.exists() else "is not there"
            raise InputError(f"{path}: {found}; {expected}{'' if paths else ': name one'}")
    return Runs(paths or [Path("runs")])


def _show(runs: Runs, *, as_json: bool) -> None:
    from deploy.dashboard.summary import latest_first, read_summaries

    found = latest_first(read_summaries(runs))
    if as_json:
        print(json.dumps([summary.to_json() for summary in found]))
    elif not found:
        print("no runs yet")
    elif len(found) == 1:
        print("\n".join(_screen(found[0])))
    else:
        print("\n".join(_table(found)))


def _screen(run: Summary) -> Iterator[str]:
    """All of one run."""
    from deploy.dashboard import formatting as text

    doing = f", {run.phase}" if run.phase and run.phase != "training" else ""
    again = f", generation {run.generation}" if run.generation > 1 else ""
    yield f"{run.name}: {run.state}{doing}{again}, {text.duration(run.elapsed_seconds)}  ({run.path})"
    yield f"[{_bar(run.progress)}] {text.share(run.progress):>5}  {_position(run)}"
    yield ""
    yield _line("loss", f"{text.decimals(run.loss)} in the last epoch")
    if run.eval_metric is not None:
        best = f"best {text.decimals(run.best_value)} in epoch {run.best_epoch}"
        yield _line("quality", f"{run.best_metric} on valid {text.decimals(run.eval_metric)}, {best}")
    yield _line(
        "throughput",
        f"{text.count(run.examples_per_second)} examples and {text.count(run.steps_per_second)} steps a second",
    )
    if traffic := run.traffic:
        pushed = f"pulled {text.size(traffic['bytes_pulled'])}, pushed {text.size(traffic['bytes_pushed'])}"
        dense = f"dense gradients: {text.size(traffic['bytes_pushed_if_dense'])}, {text.times(run.dense_ratio)}"
        yield _line("bytes", f"{pushed}; {dense}")
    if total := sum(run.phase_seconds.values()):
        spent = sorted(run.phase_seconds.items(), key=lambda item: -item[1])
        yield _line("time", ", ".join(f"{phase} {text.share(seconds / total)}" for phase, seconds in spent))
    yield _line("checkpoints", _checkpoints(run))
    yield _line("restarts", str(len(run.restarts)) if run.restarts else "none")
    if run.processes:
        yield ""
        yield from _processes(run.processes)
    if run.alerts:
        yield ""
        yield from (f"{alert.level}: {alert.text}" for alert in run.alerts)


def _line(label: str, value: str) -> str:
    return f"{label:<{_LABEL}}{value}"


def _bar(progress: float) -> str:
    done = round(_BAR * progress)
    return "#" * done + "." * (_BAR - done)


def _position(run: Summary) -> str:
    from deploy.dashboard import formatting as text

    planned = f" of {run.planned_steps:,}" if run.planned_steps else ""
    epoch = f", epoch {run.epoch}" if run.epoch else ""
    epochs = f" of {run.planned_epochs}" if run.epoch and run.planned_epochs else ""
    left = f", {text.duration(run.remaining_seconds)} left at this pace" if run.remaining_seconds else ""
    return f"step {run.step:,}{planned}{epoch}{epochs}{left}"


def _checkpoints(run: Summary) -> str:
    from deploy.dashboard import formatting as text

    kept = run.checkpoints
    failed = f", {kept['failed']} failed" if kept["failed"] else ""
    if kept["last_step"] is None:
        return f"none yet{failed}"
    age = f", {text.duration(time.time() - kept['last_time'])} ago" if run.live else ""
    last = f"the last of step {kept['last_step']:,}{age}, {text.size(kept['last_bytes'])}"
    return f"{kept['written']} written{failed}; {last}"


def _processes(rows: Sequence[ProcessRow]) -> Iterator[str]:
    from deploy.dashboard.process_table import TERMINAL_COLUMNS, TEXT_COLUMNS

    titles = [column.title for column in TERMINAL_COLUMNS]
    cells = [[column.text(row) for column in TERMINAL_COLUMNS] for row in rows]
    yield from _columns([titles, *cells], left=TEXT_COLUMNS)


def _table(runs: Sequence[Summary]) -> Iterator[str]:
    """A line for each run."""
    from deploy.dashboard import formatting as text

    head = ("run", "state", "done", "step", "loss", "best", "", "examples/s", "dense", "restarts", "alerts")
    cells = [
        (
            run.name,
            run.state,
            text.share(run.progress),
            f"{run.step:,}",
            text.decimals(run.loss),
            text.decimals(run.best_value),
            run.best_metric if run.best_value is not None else "",
            text.count(run.examples_per_second),
            text.times(run.dense_ratio),
            str(len(run.restarts)),
            str(len(run.alerts)) if run.alerts else "",
        )
        for run in runs
    ]
    yield from _columns([head, *cells], left=2)
    for run in runs:
        yield from (f"{run.name}: {alert.level}: {alert.text}" for alert in run.alerts if alert.level != "info")


def _columns(lines: Sequence[Sequence[str]], *, left: int) -> Iterator[str]:
    """``lines`` of cells in columns, of which the first ``left`` begin together and the others end together."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            f"{cell:<{width}}" if index < left else f"{cell:>{width}}"
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
