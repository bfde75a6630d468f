"""Terminal output for people: progress bars, status lines beside them, and the result of a training run.

with TrainDisplay("ndcg@10") as display:
    display.show({"event": "step", ...})
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from crossfade.signals import stopper
from trainer.runs.events import (
    BackoffEvent,
    CheckpointFailed,
    CheckpointPruneFailed,
    CheckpointSaved,
    EpochEvent,
    Event,
    HostsMissing,
    InterruptionNotice,
    ListeningEvent,
    LogWriteFailed,
    RestartEvent,
    ResumeEvent,
    StepEvent,
    WaitingForHosts,
)

_logger = logging.getLogger(__name__)
_LINE_SECONDS = 10.0


def _describe(event: Event) -> str | None:
    """Describe an event of the job in a line; None if it needs none."""
    match event:
        case RestartEvent():
            return f"{event.cause}; restarting (generation {event.generation}) {_origin(event)}"
        case ResumeEvent():
            return f"resuming {_origin(event)}"
        case BackoffEvent():
            return f"{event.cause}; restarting in {event.seconds:.0f} s"
        case InterruptionNotice():
            return f"{event.host} ({event.address}) will soon be gone: {event.reason}"
        case WaitingForHosts():
            return f"waiting for {event.hosts} more host(s) to join"
        case HostsMissing():
            return f"{event.hosts} host(s) did not join; the other hosts get their roles"
        case ListeningEvent():
            return f"listening for the agents of other hosts at {event.address}"
        case CheckpointFailed():
            return f"the checkpoint of step {event.step:,} was not written: {event.message}"
        case LogWriteFailed():
            return f"events are missing from the log: {event.message}"
        case CheckpointPruneFailed():
            return f"old checkpoints were not deleted: {event.message}"
    return None


def _origin(event: RestartEvent | ResumeEvent) -> str:
    return f"from step {event.step:,}" if event.checkpoint else "from the beginning"


class TrainDisplay:
    """Shows the events of a run on stderr as they come, whichever process they come from."""

    def __init__(self, select: str, *, lines: bool = False) -> None:
        """Show ``select``, the metric that picks the best embeddings; with ``lines`` as lines of a log."""
        self._select = select
        self._lines = lines
        self._line_due = 0.0
        self._steps = 0
        self._bar: tqdm[Any] | None = None
        self._best = float("-inf")
        self._saved_step: int | None = None

    def __enter__(self) -> TrainDisplay:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the bar as it stands."""
        self._close_bar()

    def _close_bar(self) -> None:
        """Leave the bar as it stands: what follows gets a new one."""
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
        if (line := _describe(event)) is not None:
            _logger.info(line)

    def _show_step(self, event: StepEvent) -> None:
        self._steps = event.steps
        if self._lines:
            if time.monotonic() >= self._line_due or event.step == event.steps:
                self._line_due = time.monotonic() + _LINE_SECONDS
                _logger.info(f"{self._place(event)} batch_loss={event.loss:.6g}")
            return
        if self._bar is None:
            # Where nobody watches, as in a log, a line every ten seconds is enough.
            interval = 0.1 if sys.stderr.isatty() else 10.0
            self._bar = tqdm(
                total=event.steps,
                initial=event.step - 1,
                desc="training",
                unit="step",
                mininterval=interval,
                dynamic_ncols=True,
                leave=True,
            )
        self._bar.set_postfix({"epoch": event.epoch, "loss": f"{event.loss:.4f}", **self._shown()}, refresh=False)
        self._bar.update(event.step - self._bar.n)

    def _shown(self) -> dict[str, str]:
        best = {self._select: f"{self._best:.4f}"} if self._best > float("-inf") else {}
        return best if self._saved_step is None else {**best, "saved": f"{self._saved_step:,}"}

    def _show_epoch(self, event: EpochEvent) -> None:
        valid = event.valid
        if valid is not None and valid[self._select] > self._best:
            self._best = valid[self._select]
        if self._lines:
            values = {"loss": event.loss, **{name: value for name, value in (valid or {}).items() if "@" in name}}
            _logger.info(" ".join([self._place(event), *(f"{name}={value:.6g}" for name, value in values.items())]))

    def _place(self, event: StepEvent | EpochEvent) -> str:
        """How far the run is, as lines of a log begin: CloudWatch reads its metrics out of them."""
        share = f" progress={event.step / self._steps:.4f}" if self._steps else ""
        return f"epoch={event.epoch} step={event.step}{share}"

    def print_report(self, report: dict[str, Any], folder: Path) -> None:
        """Print the result on stdout."""
        print(
            f"{report['examples']:,} examples in {report['train_seconds']:.1f} s of training "
            f"({report['examples_per_second']:,.0f} a second), {report['epochs']} epochs, {report['steps']:,} steps"
        )
        dense = report["bytes_pushed_if_dense"] / max(1, report["bytes_pushed"])
        print(
            f"{report['parameters']:,} parameters; {report['rows_pushed']:,} rows pushed, "
            f"{report['bytes_pushed'] / 1e6:,.1f} MB: dense gradients would have been {dense:,.1f} times as much"
        )
        if report["stopped_early"]:
            print(f"stopped early: the last evaluations brought no new best {self._select}")
        if report["best_epoch"] is None:
            print("no valid split: nothing chose among the epochs, and the embeddings are those of the last step")
        else:
            print(f"best {self._select} on valid in epoch {report['best_epoch']}; quality of those embeddings:")
        print_metrics(report["metrics"])
        print(f"embeddings and report: {folder}")


def print_metrics(metrics: dict[str, dict[str, float]]) -> None:
    """Print a table for each split: a line for each metric, a column for each depth."""
    for split, values in metrics.items():
        depths = list(dict.fromkeys(name.partition("@")[2] for name in values if "@" in name))
        names = list(dict.fromkeys(name.partition("@")[0] for name in values if "@" in name))
        width = max(10, *map(len, names))
        print(
            "  ".join(
                [f"{split:<{width}}", *(f"{'@' + depth:>8}" for depth in depths), f"{values['queries']:>9,} queries"]
            )
        )
        for metric in names:
            print("  ".join([f"{metric:<{width}}", *(f"{values[f'{metric}@{depth}']:>8.4f}" for depth in depths)]))


class ProgressBars:
    """Shows a progress bar on stderr for each phase of a command; implements ``ProgressReporter``."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def phase(self, name: str, total: int | None, unit: str) -> None:
        """Close the bar of the previous phase and open one of ``total`` units."""
        self.close()
        # In a log file a line for each long phase is enough.
        interactive = sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            desc=name,
            unit=f" {unit}" if unit == "row" else unit,
            unit_scale=unit in ("row", "B"),
            mininterval=0.1 if interactive else 60.0,
            delay=0.0 if interactive else 1.0,
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
def progress_bars() -> Iterator[ProgressBars]:
    """Yield progress bars, and close the last one when the block ends."""
    bars = ProgressBars()
    try:
        yield bars
    finally:
        bars.close()
