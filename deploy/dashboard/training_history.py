"""The history of a run's training, built from the events of ``events.jsonl``.

    history = TrainingHistory()
    for record in records:
        history.add(record)
    history.steps["loss"], history.examples_per_second()

Shapes: N lines of a column, P points of a graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossfade.base.arrays import FloatArray
from crossfade.deploy.dashboard.column_buffer import ColumnBuffer
from crossfade.trainer.runs.events import (
    CheckpointFailed,
    CheckpointSaved,
    EpochEvent,
    PhaseEvent,
    StepEvent,
    StoppedEvent,
    TimedEvent,
    TotalsEvent,
    parse_record,
)
from crossfade.trainer.runs.resumption import UnsavedWork
from crossfade.trainer.training.state import STEP_PHASES

TRAFFIC = ("bytes_pulled", "bytes_pushed", "dense_equivalent_bytes_pushed", "rows_pulled", "rows_pushed")
_RATE_SECONDS = 60.0


@dataclass(frozen=True)
class EpochResult:
    """The end of an epoch: Unix time, mean loss, and the metrics on the valid split if it was evaluated."""

    time: float
    epoch: int
    step: int
    loss: float
    valid: dict[str, int | float]


class TrainingHistory:
    """Collects the events of ``events.jsonl`` in their order."""

    def __init__(self) -> None:
        """Begin without events."""
        self.steps = ColumnBuffer("time", "step", "epoch", "examples", "loss", *STEP_PHASES)
        self.totals = ColumnBuffer("time", "step", *TRAFFIC)
        self.epochs: list[EpochResult] = []
        self.saves: list[TimedEvent] = []
        """Checkpoints that are complete (CheckpointSaved), and those that could not be written (CheckpointFailed)."""
        self.stopped: StoppedEvent | None = None
        self.work = UnsavedWork(0, 0.0)
        """That of the current attempt."""
        self.phase = ""
        self.planned_steps: int | None = None
        self.first_time: float | None = None
        self.last_time: float | None = None
        self.invalid_records = 0
        """Records that are not valid events; they are skipped."""
        self._resumed_from = 0

    def add(self, record: Mapping[str, Any]) -> None:
        """Add one line of the log; count it if it is not a valid event."""
        try:
            self._add(parse_record(record))
        except (KeyError, ValueError):
            self.invalid_records += 1

    def _add(self, timed: TimedEvent) -> None:
        time, event = timed
        match event:
            case StepEvent():
                self._add_step(time, event)
            case TotalsEvent():
                self.totals.add(time, event.step, *(getattr(event, name) for name in TRAFFIC))
            case EpochEvent():
                # A repeated epoch replaces its earlier results.
                self.epochs = [epoch for epoch in self.epochs if epoch.step < event.step]
                self.epochs.append(EpochResult(time, event.epoch, event.step, event.loss, event.valid or {}))
            case PhaseEvent():
                self._add_phase(time, event)
            case CheckpointSaved() | CheckpointFailed():
                self.saves.append(timed)
            case StoppedEvent():
                self.stopped = event
        self.work.record(event, time)
        self.last_time = time
        if self.first_time is None:
            self.first_time = time

    def _add_step(self, time: float, event: StepEvent) -> None:
        phases = [event.seconds[phase] for phase in STEP_PHASES]
        self.steps.add(time, event.step, event.epoch, event.examples, event.loss, *phases)
        self.planned_steps, self.phase, self.stopped = event.steps, "training", None

    def _add_phase(self, time: float, event: PhaseEvent) -> None:
        self.phase = event.name
        if event.name == "training":
            self._resumed_from = event.step or 0
            self.work = UnsavedWork(self._resumed_from, time)
            for columns in (self.steps, self.totals):
                columns.begin_attempt(self._resumed_from)
            self.epochs = [epoch for epoch in self.epochs if epoch.step <= self._resumed_from]

    # ---- results

    @property
    def step(self) -> int:
        """Steps taken so far."""
        known = [self.steps.last("step"), self.totals.last("step"), self.epochs[-1].step if self.epochs else None]
        return int(max((value for value in known if value is not None), default=self._resumed_from))

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

    def _rate(self, name: str) -> float | None:
        start = self.steps.attempt_start
        time_N, value_N = self.steps["time"][start:], self.steps[name][start:]
        if len(time_N) < 2:
            return None
        first = min(int(np.searchsorted(time_N, time_N[-1] - _RATE_SECONDS)), len(time_N) - 2)
        seconds = time_N[-1] - time_N[first]
        return float((value_N[-1] - value_N[first]) / seconds) if seconds > 0 else None

    def traffic(self) -> dict[str, int]:
        """Return rows and bytes that all workers have moved so far."""
        return {name: int(value) for name in TRAFFIC if (value := self.totals.last(name)) is not None}

    def phase_seconds(self) -> dict[str, float]:
        """Return the seconds of the first worker's steps by phase."""
        return {phase: value for phase in STEP_PHASES if (value := self.steps.last(phase)) is not None}

    def best(self, metric: str) -> tuple[float, int] | None:
        """Return the best value of ``metric`` on the valid split and its epoch, the first one if several are equal."""
        found = [(epoch.valid[metric], -epoch.epoch) for epoch in self.evaluated if metric in epoch.valid]
        if not found:
            return None
        value, negated_epoch = max(found)
        return value, -negated_epoch

    def throughput(self, points: int) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return time, step and examples per second between about ``points`` records, never across attempts.

        Returns:
            Three float64 arrays of shape (P,), with P < ``points``.
        """
        current_N = np.flatnonzero(self.steps.is_current())
        if len(current_N) == 0:
            return (np.empty(0),) * 3
        lines_P = current_N[np.unique(np.linspace(0, len(current_N) - 1, points).astype(np.int64))]
        attempt_P = self.steps.attempt_of(lines_P)
        time_P, step_P, examples_P = (self.steps[name][lines_P] for name in ("time", "step", "examples"))
        seconds_P = np.diff(time_P)
        valid_P = (seconds_P > 0) & (np.diff(attempt_P) == 0)
        rate_P = np.diff(examples_P)[valid_P] / seconds_P[valid_P]
        return time_P[1:][valid_P], step_P[1:][valid_P], rate_P
