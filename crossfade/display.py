"""Human-readable terminal output: progress bars, status lines, and the result of a training run.

with TrainDisplay("ndcg@10") as display:
    display.show(ListeningEvent(address="10.0.0.1:7070"))
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from crossfade.base import logs
from crossfade.base.errors import escape_unprintable
from crossfade.base.formatting import lost
from crossfade.base.signals import stopper
from crossfade.base.text import counted
from crossfade.kvstore import compile_notice
from crossfade.terminal import Progress, print_line, print_table
from crossfade.trainer.runs.events import (
    BackoffEvent,
    CheckpointFailed,
    CheckpointPruneFailed,
    CheckpointSaved,
    EpochEvent,
    Event,
    FailureEvent,
    HostsMissing,
    InterruptionNotice,
    ListeningEvent,
    LogWriteFailed,
    RestartEvent,
    ResumeEvent,
    StepEvent,
    WaitingForHosts,
)
from crossfade.trainer.runs.shown_metrics import (
    MIN_COLD_QUERIES,
    count_queries,
    error_of,
    is_metric,
    show_metric,
    shown_metrics,
)

_logger = logging.getLogger(__name__)
_LINE_SECONDS = 10.0
"""Least time between two lines of progress in a log."""

_DESCRIPTIONS: dict[type, Callable[[Any], str]] = {
    RestartEvent: lambda event: (
        f"{event.cause}; restarting (generation {event.generation}) {_origin(event)}{_lost(event)}"
    ),
    ResumeEvent: lambda event: f"resuming {_origin(event)}",
    BackoffEvent: lambda event: f"{event.cause}; restarting in {event.seconds:.0f} s",
    InterruptionNotice: lambda event: f"{event.host} ({event.address}) is about to be interrupted: {event.reason}",
    WaitingForHosts: lambda event: f"waiting for {event.hosts} more {'host' if event.hosts == 1 else 'hosts'} to join",
    HostsMissing: lambda event: f"{counted(event.hosts, 'host')} did not join; the other hosts get their roles",
    ListeningEvent: lambda event: (
        f"listening for the agents of other hosts at {event.address}; roles start when all have joined"
    ),
    CheckpointFailed: lambda event: f"the checkpoint of step {event.step:,} was not written: {event.message}",
    LogWriteFailed: lambda event: f"events are missing from the log: {event.message}",
    CheckpointPruneFailed: lambda event: f"old checkpoints were not deleted: {event.message}",
}
"""The line that is shown for an event of the job."""


def _show_compiling() -> None:
    _logger.info("compiling kernels for this processor (once) ...")


def _origin(event: RestartEvent | ResumeEvent) -> str:
    return f"from step {event.step:,}" if event.checkpoint else "from the beginning"


def _lost(event: RestartEvent) -> str:
    if event.lost_steps is None:
        return ""
    return f"; lost: {lost(event.lost_steps, event.lost_seconds, from_step=event.step)}"


class TrainDisplay:
    """Shows the events of a run on stderr: progress as a bar or as lines for a log, and a line for other events."""

    def __init__(
        self, best_metric: str, progress: Progress | None = None, *, bar_type: Callable[..., Any] = tqdm
    ) -> None:
        """Show ``progress``, by default a bar on a terminal and lines elsewhere.

        ``best_metric`` is the metric on the valid split that selects the embeddings, such as ``ndcg@10``. ``bar_type``
        creates the bar, as ``tqdm`` does.
        """
        self._best_metric = best_metric
        self._progress = progress or ("bar" if sys.stderr.isatty() else "lines")
        self._bar_type = bar_type
        self._line_due = 0.0
        self._steps = 0
        self._bar: tqdm[Any] | None = None
        self._best = float("-inf")
        self._saved_step: int | None = None

    def __enter__(self) -> TrainDisplay:
        """Show from now on if kernels must be compiled; return self."""
        compile_notice.listeners.append(_show_compiling)
        return self

    def __exit__(self, *_: object) -> None:
        """Close the bar and leave it on the screen."""
        with suppress(ValueError):  # they were compiled
            compile_notice.listeners.remove(_show_compiling)
        self._close_bar()

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def show(self, event: Event) -> None:
        """Show one event.

        Raises:
            StopSignal: a signal arrived while compiled code ran.
        """
        stopper.check()
        match event:
            case StepEvent():
                self._show_step(event)
            case EpochEvent():
                self._show_epoch(event)
            case CheckpointSaved():
                self._saved_step = event.step
            case _:
                self._show_line(event)

    def _show_line(self, event: Event) -> None:
        if isinstance(event, RestartEvent):
            self._close_bar()
        if isinstance(event, RestartEvent | ResumeEvent):
            for skipped in event.skipped:
                _logger.info(f"skipped a checkpoint: {skipped}")
            logs.context.update(generation=getattr(event, "generation", None), step=event.step)
        if isinstance(event, FailureEvent) and event.after_results:
            _logger.warning(f"{event.describe()}, after all results were written: nothing is lost")
        if (describe := _DESCRIPTIONS.get(type(event))) is not None:
            _logger.info(describe(event))

    def _show_step(self, event: StepEvent) -> None:
        self._steps = event.steps
        logs.context.update(step=event.step)
        if self._progress != "bar":
            if self._is_line_due() or event.step == event.steps:
                _logger.info(f"{self._position(event)} batch_loss={event.loss:.6g}")
            return
        if self._bar is None:
            self._bar = self._bar_type(
                total=event.steps,
                initial=event.step - 1,
                desc="training",
                unit="step",
                dynamic_ncols=True,
                leave=True,
            )
        self._bar.total = event.steps
        self._bar.set_postfix(
            {"epoch": event.epoch, "loss": f"{event.loss:.4f}", **self._best_and_saved()}, refresh=False
        )
        self._bar.update(event.step - self._bar.n)

    def _is_line_due(self) -> bool:
        """Return whether the last line was written long enough ago, and expect one now if so."""
        due = time.monotonic() >= self._line_due
        if due:
            self._line_due = time.monotonic() + _LINE_SECONDS
        return due

    def _best_and_saved(self) -> dict[str, str]:
        best = {self._best_metric: f"{self._best:.4f}"} if self._best > float("-inf") else {}
        return best if self._saved_step is None else {**best, "saved": f"{self._saved_step:,}"}

    def _show_epoch(self, event: EpochEvent) -> None:
        valid = event.valid
        if valid is not None and valid[self._best_metric] > self._best:
            self._best = valid[self._best_metric]
        # Epochs may be shorter than a millisecond.
        if self._progress == "bar" or (self._progress == "lines" and valid is None and not self._is_line_due()):
            return
        found = valid or {}
        shown = [name for name in found if is_metric(name)]
        if self._progress == "lines":
            shown = [name for name in shown if name == self._best_metric]
        show_metrics = [key for name in shown for key in (name, error_of(name)) if key in found]
        values = {"loss": event.loss, **{key: found[key] for key in show_metrics}}
        _logger.info(" ".join([self._position(event), *(f"{name}={value:.6g}" for name, value in values.items())]))

    def _position(self, event: StepEvent | EpochEvent) -> str:
        # SageMaker reads metrics from these words by regular expressions.
        progress = f" progress={event.step / self._steps:.4f}" if self._steps else ""
        return f"epoch={event.epoch} step={event.step}{progress}"

    def _describe_popularity(self, factor: float, share: float, without: Mapping[str, float] | None) -> str:
        plays = "plays" if share == 1 else f"plays in the latest {share:.0%} of train"
        metric = self._best_metric
        gained = f" ({metric} without it, {show_metric(without, metric)})" if without else ""
        return f"popularity: score / temperature + {factor:g} * log(1 + {plays}){gained}"

    def print_report(self, report: dict[str, Any], folder: Path) -> None:
        """Print the result of a run, ``report.json`` in ``folder``, on stdout."""
        print_line(
            f"{counted(report['examples'], 'example')} in {report['train_seconds']:.1f} s of training "
            f"({report['examples_per_second']:,.0f} per second), {counted(report['epochs'], 'epoch')}, "
            f"{counted(report['steps'], 'step')}"
        )
        if report["stopped_early"]:
            print_line(f"stopped early: no gain in {self._best_metric} beyond its standard error")
        if report["best_epoch"] is None:
            print_line("nothing on valid to select an epoch by: the embeddings are those of the last step")
        else:
            print_line(f"best {self._best_metric} on valid in epoch {report['best_epoch']}; metrics of its embeddings:")
        if (popularity := report["popularity"]) is not None:
            print_line(self._describe_popularity(**popularity))
        print_metrics(report["metrics"], report["task"], report.get("baselines"))
        if (advice := report.get("advice")) is not None:
            print_line(advice)
        print_line(f"embeddings and report: {folder}")
        if shortfall := report.get("baselines", {}).get("shortfall"):
            print_line(shortfall)


def print_metrics(metrics: dict[str, dict[str, float]], task: str, baselines: dict[str, Any] | None = None) -> None:
    """Print a table for each split, a row for each metric and a column for each depth K, and what ``task`` counts.

    Recall and ndcg have the values of ``baselines`` below them, as ``compare_with_baselines`` returns them.
    """
    baselines = baselines or {"metrics": {}, "notes": []}
    for split, values in metrics.items():
        of_split = {
            f"  by {name.replace('_', ' ')}": found for name, found in baselines["metrics"].get(split, {}).items()
        }
        print_quality(split, values, of_split)
        print_line(f"task {task}: {_describe_pairs(values, task)}")
        if (cold := values.get("queries_cold", MIN_COLD_QUERIES)) < MIN_COLD_QUERIES:
            queries = counted(int(cold), "query", "queries")
            print_line(f"metrics of cold items are left out: {split} has only {queries} with one")
    for note in baselines["notes"]:
        print_line(note)


def print_quality(split: str, values: dict[str, float], baselines: Mapping[str, dict[str, float]]) -> None:
    """Print the metrics of a split: means over queries with their standard errors, all means below each other."""
    shown = shown_metrics(values)
    depths = list(dict.fromkeys(name.partition("@")[2] for name in shown))
    names = list(dict.fromkeys(name.partition("@")[0] for name in shown))
    width = max((len(show_metric(values, name)) for name in shown), default=0)
    without = " " * (width - max((len(f"{values[name]:.4f}") for name in shown), default=0))
    rows = [[f"{split:<10}", *(f"@{depth}{without}" for depth in depths), f"{count_queries(values)} queries"]]
    for metric in names:
        for label, found in {metric: values, **(baselines if metric in ("recall", "ndcg") else {})}.items():
            of_depths = [f"{metric}@{depth}" for depth in depths]
            cells = (show_metric(found, name) + ("" if error_of(name) in found else without) for name in of_depths)
            rows.append([label, *cells, ""])
    print_table(rows)


def _describe_pairs(values: dict[str, float], task: str) -> str:
    """Describe which held-out pairs ``values`` are of."""
    if task == "repeat":
        return f"all {values['pairs']:,} held-out pairs count, and no item is excluded"
    if not values["pairs_dropped"]:
        return f"{values['pairs']:,} held-out pairs count; none is in an excluded split too"
    dropped = f"{values['pairs_dropped']:,} are in an excluded split too and are dropped (task repeat counts them)"
    return f"{values['pairs']:,} held-out pairs count; {dropped}"


class _Log:
    """A file for a progress bar, which writes each of its lines to the log."""

    def write(self, text: str) -> None:
        if line := text.strip():
            _logger.info(line)

    def flush(self) -> None:
        """Do nothing: the log is not buffered."""


def _log_bar(**options: Any) -> Any:
    """Return a progress bar for a log: a line every ten seconds, and none of a phase that takes less."""
    line = "{desc}: {n_fmt}" + (" of {total_fmt}" if options["total"] is not None else "") + " in {elapsed}"
    options |= {"dynamic_ncols": False, "mininterval": _LINE_SECONDS, "delay": _LINE_SECONDS, "bar_format": line}
    return tqdm(**options, file=_Log())


class ProgressBars:
    """Shows a progress bar on stderr for each phase of a command; implements ``ProgressReporter``."""

    def __init__(self, bar_type: Callable[..., Any]) -> None:
        self._bar_type = bar_type
        self._bar: tqdm[Any] | None = None

    def phase(self, name: str, total: int | None, unit: str) -> None:
        """Close the bar of the previous phase and open one of ``total`` units."""
        self.close()
        self._bar = self._bar_type(
            total=total,
            desc=escape_unprintable(name),
            unit=f" {unit}" if unit == "row" else unit,
            unit_scale=unit in ("row", "B"),
            dynamic_ncols=True,
        )

    def advance(self, amount: int) -> None:
        """Advance the bar by ``amount`` units."""
        assert self._bar is not None
        self._bar.update(amount)

    def close(self) -> None:
        """Close the last bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


@contextmanager
def progress_bars(bar_type: Callable[..., Any] | None = None) -> Iterator[ProgressBars]:
    """Yield what shows phases, and close the last one when the block ends.

    That is bars, which ``bar_type`` creates; None: bars on a terminal, and lines of a log elsewhere.
    """
    bars = ProgressBars(bar_type or (tqdm if sys.stderr.isatty() else _log_bar))
    try:
        yield bars
    finally:
        bars.close()
