"""The history of a training, built from the events of ``events.jsonl``.

    history = TrainingHistory()
    for timed in events:
        history.add(timed)
    history.steps["loss"], history.examples_per_second()

Shapes: N lines of a column, P points of a graph.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np

from crossfade.base.arrays import FloatArray
from crossfade.trainer.runs.events import (
    CheckpointFailed,
    CheckpointSaved,
    EpochEvent,
    PhaseEvent,
    StepEvent,
    StoppedEvent,
    TimedEvent,
    TotalsEvent,
)

_RATE_SECONDS = 60.0


class StepColumns:
    """The recorded steps as columns of equal length, at eight bytes a number.

    A run that resumes from a checkpoint repeats some steps: each resumption begins an *attempt*, which drops the lines
    that it repeats.
    """

    def __init__(self) -> None:
        """Create empty columns."""
        self._columns = {name: array("d") for name in ("time", "step", "epoch", "examples", "loss")}
        self.attempt_start = 0
        """The first line of the current attempt."""

    def add(self, time: float, event: StepEvent) -> None:
        """Append a line."""
        for name, column in self._columns.items():
            column.append(time if name == "time" else getattr(event, name))

    def begin_attempt(self, step: float) -> None:
        """Begin an attempt that resumes from ``step``."""
        self.attempt_start = int(np.searchsorted(self["step"], step, side="right"))
        for column in self._columns.values():
            del column[self.attempt_start :]

    def __len__(self) -> int:
        return len(self._columns["step"])

    def __getitem__(self, name: str) -> FloatArray:
        """Return a copy of a column, float64 of shape (N,); a view would keep it from growing."""
        return np.array(self._columns[name])

    def last(self, name: str) -> float | None:
        """Return the last value of a column in the current attempt; None if it has no line yet."""
        return self._columns[name][-1] if len(self) > self.attempt_start else None


@dataclass(frozen=True)
class EpochResult:
    """The end of an epoch: mean loss, and the metrics on the valid split if it was evaluated."""

    epoch: int
    step: int
    loss: float
    valid: dict[str, int | float]


class TrainingHistory:
    """Collects the events of ``events.jsonl`` in their order."""

    def __init__(self) -> None:
        """Begin without events."""
        self.steps = StepColumns()
        self.totals: TotalsEvent | None = None
        """The last of the current attempt."""
        self.epochs: list[EpochResult] = []
        self.saves: list[TimedEvent] = []
        """Checkpoints that are complete (CheckpointSaved), and those that could not be written (CheckpointFailed)."""
        self.stopped: StoppedEvent | None = None
        self.phase = ""
        self.planned_steps: int | None = None
        self.first_time: float | None = None
        self.last_time: float | None = None
        self._resumed_from = 0

    def add(self, timed: TimedEvent) -> None:
        """Add one event of the log."""
        time, event = timed
        match event:
            case StepEvent():
                self.steps.add(time, event)
                self.planned_steps, self.phase, self.stopped = event.steps, "training", None
            case TotalsEvent():
                self.totals = event
            case EpochEvent():
                # A repeated epoch replaces its earlier results.
                while self.epochs and self.epochs[-1].step >= event.step:
                    self.epochs.pop()
                self.epochs.append(EpochResult(event.epoch, event.step, event.loss, event.valid or {}))
            case PhaseEvent():
                self.phase = event.name
                if event.name == "training":
                    self._begin_attempt(event.step or 0)
            case CheckpointSaved() | CheckpointFailed():
                self.saves.append(timed)
            case StoppedEvent():
                self.stopped = event
        self.last_time = time
        if self.first_time is None:
            self.first_time = time

    def _begin_attempt(self, step: int) -> None:
        self._resumed_from, self.totals = step, None
        self.steps.begin_attempt(step)
        self.epochs = [epoch for epoch in self.epochs if epoch.step <= step]

    # ---- results

    @property
    def step(self) -> int:
        """Steps taken so far."""
        last = [event.step for event in (self.totals, *self.epochs[-1:]) if event is not None]
        return int(max(self._resumed_from, self.steps.last("step") or 0, *last))

    @property
    def evaluated(self) -> list[EpochResult]:
        """The epochs that were evaluated on the valid split."""
        return [epoch for epoch in self.epochs if epoch.valid]

    def steps_per_second(self) -> float | None:
        """Return the rate of the last minute of the current attempt; None before its second record."""
        return self._rate("step")

    def examples_per_second(self) -> float | None:
        """Return the rate of the last minute of the current attempt; None before its second record."""
        return self._rate("examples")

    def remaining_seconds(self) -> float | None:
        """Return how long the planned steps take at the present rate; None if one of them is unknown."""
        rate = self.steps_per_second()
        return (self.planned_steps - self.step) / rate if self.planned_steps and rate else None

    def _rate(self, name: str) -> float | None:
        start = self.steps.attempt_start
        time_N, value_N = self.steps["time"][start:], self.steps[name][start:]
        if len(time_N) < 2:
            return None
        first = min(int(np.searchsorted(time_N, time_N[-1] - _RATE_SECONDS)), len(time_N) - 2)
        seconds = time_N[-1] - time_N[first]
        return float((value_N[-1] - value_N[first]) / seconds) if seconds > 0 else None

    def best(self, metric: str) -> EpochResult | None:
        """Return the epoch with the best value of ``metric`` on the valid split, the first one if several are equal."""
        found = [epoch for epoch in self.epochs if metric in epoch.valid]
        return max(found, key=lambda epoch: epoch.valid[metric], default=None)

    def throughput(self, points: int) -> tuple[FloatArray, FloatArray]:
        """Return step and examples per second between about ``points`` records.

        A rate across a restart includes its downtime.

        Returns:
            Two float64 arrays of shape (P,), with P < ``points``.
        """
        if not len(self.steps):
            return (np.empty(0),) * 2
        lines_P = np.unique(np.linspace(0, len(self.steps) - 1, points).astype(np.int64))
        time_P, step_P, examples_P = (self.steps[name][lines_P] for name in ("time", "step", "examples"))
        seconds_P = np.diff(time_P)
        valid_P = seconds_P > 0
        return step_P[1:][valid_P], np.diff(examples_P)[valid_P] / seconds_P[valid_P]
