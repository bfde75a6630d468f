"""How the training of a run has gone: what ``events.jsonl`` says, in columns.

A run that goes on from a checkpoint takes some steps again. Its *lives* begin where it did so, and what a later life
has taken again of an earlier one is left out wherever steps are counted.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np

from kvstore.arrays import BoolArray, FloatArray
from trainer.runs.events import (
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
from trainer.training.state import STEP_PHASES

TRAFFIC = ("bytes_pulled", "bytes_pushed", "bytes_pushed_if_dense", "rows_pulled", "rows_pushed")
_RATE_SECONDS = 60.0


class ColumnBuffer:
    """Numbers in columns of the same length, which cost eight bytes each. One of them is ``step``."""

    def __init__(self, *names: str) -> None:
        """None yet."""
        self._places = {name: place for place, name in enumerate(names)}
        self._values = array("d")
        """Line by line."""
        self._lives: list[tuple[int, float]] = []

    def add(self, *values: float) -> None:
        """Add a line, in the order of the names.

        Raises:
            TypeError: some value is no number; nothing is added then.
        """
        assert len(values) == len(self._places)
        self._values.extend(array("d", values))

    def begin_attempt(self, step: float) -> None:
        """What follows goes on from ``step``."""
        self._lives.append((len(self), step))

    def __len__(self) -> int:
        """How many lines there are."""
        return len(self._values) // len(self._places)

    def __getitem__(self, name: str) -> FloatArray:
        """A copy of a column, float64: the column itself may grow while somebody looks at it."""
        lines_NC = np.frombuffer(self._values, dtype=np.float64).reshape(-1, len(self._places))
        return lines_NC[:, self._places[name]].copy()

    def last(self, name: str) -> float | None:
        """The last value of a column in this life, if there is one."""
        return self._values[self._places[name] - len(self._places)] if len(self) > self.attempt else None

    @property
    def attempt(self) -> int:
        """The line with which this life begins."""
        return self._lives[-1][0] if self._lives else 0

    def life_of(self, lines_N: FloatArray) -> FloatArray:
        """In which life each of the lines of these numbers is."""
        return np.searchsorted([begin for begin, _ in self._lives], lines_N, side="right")

    def is_current(self) -> BoolArray:
        """Return which lines are current: not repeated by a later attempt. Bool of shape (N,)."""
        step_N = self["step"]
        kept_N = np.ones(len(step_N), dtype=np.bool_)
        until, end = math.inf, len(step_N)
        for begin, after in reversed(self._lives):
            kept_N[begin:end] = step_N[begin:end] <= until
            until, end = min(until, after), begin
        kept_N[:end] = step_N[:end] <= until
        return kept_N


class TrainingHistory:
    """Takes the events of ``events.jsonl`` in their order."""

    def __init__(self) -> None:
        """Nothing taken yet."""
        self.steps = ColumnBuffer("time", "step", "epoch", "examples", "loss", *STEP_PHASES)
        self.totals = ColumnBuffer("time", "step", *TRAFFIC)
        self.epochs: list[dict[str, Any]] = []
        self.saves: list[TimedEvent] = []
        """Checkpoints that are complete (CheckpointSaved), and those that could not be written (CheckpointFailed)."""
        self.stopped: StoppedEvent | None = None
        self.phase = ""
        self.planned_steps: int | None = None
        self.first_time: float | None = None
        self.last_time: float | None = None
        self.damaged = 0
        """Events that lack what they should have."""
        self._began_after = 0

    def take(self, record: Mapping[str, Any]) -> None:
        """Take one line of the log."""
        try:
            self._take(parse_record(record))
        except (KeyError, ValueError):
            self.damaged += 1

    def _take(self, timed: TimedEvent) -> None:
        time, event = timed
        match event:
            case StepEvent():
                self._take_step(time, event)
            case TotalsEvent():
                self.totals.add(time, event.step, *(getattr(event, name) for name in TRAFFIC))
            case EpochEvent():
                self._take_epoch(time, event)
            case PhaseEvent():
                self._take_phase(event)
            case CheckpointSaved() | CheckpointFailed():
                self.saves.append(timed)
            case StoppedEvent():
                self.stopped = event
        self.last_time = time
        if self.first_time is None:
            self.first_time = time

    def _take_step(self, time: float, event: StepEvent) -> None:
        phases = [event.seconds[phase] for phase in STEP_PHASES]
        self.steps.add(time, event.step, event.epoch, event.examples, event.loss, *phases)
        self.planned_steps, self.phase, self.stopped = event.steps, "training", None

    def _take_epoch(self, time: float, event: EpochEvent) -> None:
        # One that is repeated counts as it came out the last time.
        self.epochs = [epoch for epoch in self.epochs if epoch["step"] < event.step]
        epoch = {"time": time, "epoch": float(event.epoch), "step": float(event.step), "loss": event.loss}
        self.epochs.append({**epoch, "valid": event.valid or None})

    def _take_phase(self, event: PhaseEvent) -> None:
        self.phase = event.name
        if event.name == "training":
            self._began_after = event.step or 0
            for columns in (self.steps, self.totals):
                columns.begin_attempt(self._began_after)
            self.epochs = [epoch for epoch in self.epochs if epoch["step"] <= self._began_after]

    # ---- what came of it

    @property
    def step(self) -> int:
        """The step that the run stands at."""
        known = [self.steps.last("step"), self.totals.last("step"), self.epochs[-1]["step"] if self.epochs else None]
        return int(max((value for value in known if value is not None), default=self._began_after))

    def steps_per_second(self) -> float | None:
        """How fast it goes, by the last minute of this life."""
        return self._rate("step")

    def examples_per_second(self) -> float | None:
        """The same of examples."""
        return self._rate("examples")

    def _rate(self, name: str) -> float | None:
        attempt = self.steps.attempt
        time_N, value_N = self.steps["time"][attempt:], self.steps[name][attempt:]
        if len(time_N) < 2:
            return None
        begin = min(int(np.searchsorted(time_N, time_N[-1] - _RATE_SECONDS)), len(time_N) - 2)
        passed = time_N[-1] - time_N[begin]
        return float((value_N[-1] - value_N[begin]) / passed) if passed > 0 else None

    def traffic(self) -> dict[str, int]:
        """What all workers together have moved so far."""
        return {name: int(value) for name in TRAFFIC if (value := self.totals.last(name)) is not None}

    def phase_seconds(self) -> dict[str, float]:
        """The seconds of the first worker's steps by phase."""
        return {phase: value for phase in STEP_PHASES if (value := self.steps.last(phase)) is not None}

    def best(self, select: str) -> tuple[float, int] | None:
        """The best value of the metric ``select`` on valid so far, and its epoch."""
        found = [
            (epoch["valid"][select], -int(epoch["epoch"]))
            for epoch in self.epochs
            if epoch["valid"] and select in epoch["valid"]
        ]
        return (max(found)[0], -max(found)[1]) if found else None

    def rates(self, points: int) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Time, step and examples a second between some ``points`` of the records, each within one life."""
        kept_N = np.flatnonzero(self.steps.is_current())
        if len(kept_N) == 0:
            return (np.empty(0),) * 3
        places_P = kept_N[np.unique(np.linspace(0, len(kept_N) - 1, points).astype(np.int64))]
        life_P = self.steps.life_of(places_P)
        time_P, step_P, examples_P = (self.steps[name][places_P] for name in ("time", "step", "examples"))
        passed_P = np.diff(time_P)
        within_P = (passed_P > 0) & (np.diff(life_P) == 0)
        rate_P = np.diff(examples_P)[within_P] / passed_P[within_P]
        return time_P[1:][within_P], step_P[1:][within_P], rate_P
