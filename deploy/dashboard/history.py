"""The history of a run, built from the events of ``events.jsonl`` and ``processes.jsonl``.

    history = TrainingHistory()
    for timed in events:
        history.add(timed)
    history.steps["loss"], history.examples_per_second()

Shapes: N lines of a column, P points of a graph.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BaseModel

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.trainer.runs.events import (
    CheckpointFailed,
    CheckpointSaved,
    EpochEvent,
    LoadSample,
    PhaseEvent,
    Seconds,
    StepEvent,
    StoppedEvent,
    TimedEvent,
    TotalsEvent,
    Whole,
)
from crossfade.trainer.runs.resumption import UnsavedWork
from crossfade.trainer.runs.shown_metrics import error_of
from crossfade.trainer.training.phases import STEP_PHASES

TRAFFIC = ("bytes_pulled", "bytes_pushed", "dense_equivalent_bytes_pushed", "rows_pulled", "rows_pushed")
_STEP_RATE_SECONDS = 60.0
RATE_SECONDS = 30.0
"""Rates of live runs are means over this time."""
_MIN_RATE_SECONDS = 0.5
_COLUMNS = ("time", "pid", "resident_bytes", "cpu_seconds", "updated", "update_seconds", "examples")
_COUNTERS = _COLUMNS[3:]


class ColumnBuffer:
    """Columns of equal length, at eight bytes a number.

    A run that resumes from a checkpoint repeats some steps: each resumption begins an *attempt*, which drops the lines
    that it repeats.
    """

    def __init__(self, *names: str) -> None:
        """Create empty columns with these names; one of them is ``step`` where attempts are used."""
        self._columns = {name: array("d") for name in names}
        self._starts: list[int] = []
        """The first line of each attempt but the first."""

    def add(self, *values: float) -> None:
        """Append a line, with values in the order of the names."""
        for column, value in zip(self._columns.values(), values, strict=True):
            column.append(value)

    def begin_attempt(self, step: float) -> None:
        """Begin an attempt that resumes from ``step``."""
        kept = int(np.searchsorted(self["step"], step, side="right"))
        for column in self._columns.values():
            del column[kept:]
        self._starts = [*(start for start in self._starts if start < kept), kept]

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def __getitem__(self, name: str) -> FloatArray:
        """Return a copy of a column, float64 of shape (N,); a view would keep the buffer from growing."""
        return np.array(self._columns[name])

    def last(self, name: str) -> float | None:
        """Return the last value of a column in the current attempt; None if it has no line yet."""
        return self._columns[name][-1] if len(self) > self.attempt_start else None

    @property
    def attempt_start(self) -> int:
        """The first line of the current attempt."""
        return self._starts[-1] if self._starts else 0

    def attempt_of(self, lines_N: IntArray) -> IntArray:
        """Return the number of the attempt of each of these lines."""
        return np.searchsorted(self._starts, lines_N, side="right")


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
        self.totals: TotalsEvent | None = None
        """The last of the current attempt."""
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
        self._resumed_from = 0

    def add(self, timed: TimedEvent) -> None:
        """Add one event of the log.

        Raises:
            KeyError: a step lacks the seconds of a phase.
        """
        time, event = timed
        match event:
            case StepEvent():
                self._add_step(time, event)
            case TotalsEvent():
                self.totals = event
            case EpochEvent():
                # A repeated epoch replaces its earlier results.
                while self.epochs and self.epochs[-1].step >= event.step:
                    self.epochs.pop()
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
            self.totals = None
            self.steps.begin_attempt(self._resumed_from)
            self.epochs = [epoch for epoch in self.epochs if epoch.step <= self._resumed_from]

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
        first = min(int(np.searchsorted(time_N, time_N[-1] - _STEP_RATE_SECONDS)), len(time_N) - 2)
        seconds = time_N[-1] - time_N[first]
        return float((value_N[-1] - value_N[first]) / seconds) if seconds > 0 else None

    def traffic(self) -> dict[str, int]:
        """Return rows and bytes that all workers have moved so far."""
        return {} if self.totals is None else {name: getattr(self.totals, name) for name in TRAFFIC}

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

    def error(self, metric: str, epoch: int | None) -> float | None:
        """Return the standard error of ``metric`` on the valid split in ``epoch``; None if it has none."""
        errors = (found.valid.get(error_of(metric)) for found in self.evaluated if found.epoch == epoch)
        return next(errors, None)

    def throughput(self, points: int) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return time, step and examples per second between about ``points`` records, never across attempts.

        Returns:
            Three float64 arrays of shape (P,), with P < ``points``.
        """
        if not len(self.steps):
            return (np.empty(0),) * 3
        lines_P = np.unique(np.linspace(0, len(self.steps) - 1, points).astype(np.int64))
        attempt_P = self.steps.attempt_of(lines_P)
        time_P, step_P, examples_P = (self.steps[name][lines_P] for name in ("time", "step", "examples"))
        seconds_P = np.diff(time_P)
        valid_P = (seconds_P > 0) & (np.diff(attempt_P) == 0)
        rate_P = np.diff(examples_P)[valid_P] / seconds_P[valid_P]
        return time_P[1:][valid_P], step_P[1:][valid_P], rate_P


class _Updates(BaseModel):
    """What updates a table had: rows, and seconds."""

    updated: Whole
    seconds: Seconds


class _Load(BaseModel):
    """The figures that are shown; further ones are ignored."""

    pid: Whole
    resident_bytes: Whole
    cpu_seconds: Seconds
    memory_limit_bytes: Whole | None = None
    memory_available_bytes: Whole | None = None
    held_bytes: dict[str, dict[str, Whole]] = {}
    updates: dict[str, _Updates] = {}
    phase_seconds: dict[str, Seconds] = {}
    examples: Whole = 0
    steps: Whole = 0


def check_load(load: dict[str, Any]) -> dict[str, Any]:
    """Return ``load``, which may be empty: its process has not reported yet.

    Raises:
        ValueError: a figure is missing, not a number, or not finite.
    """
    if load:
        _Load.model_validate(load, strict=True)
    return load


Load = Annotated[dict[str, Any], AfterValidator(check_load)]


def load_columns(time: float, load: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the load that a process reported at the Unix time ``time``, in the order of the columns."""
    updates = load.get("updates", {}).values()
    return (
        time,
        load["pid"],
        load["resident_bytes"],
        load["cpu_seconds"],
        sum(update["updated"] for update in updates),
        sum(update["seconds"] for update in updates),
        load.get("examples", 0),
    )


class ProcessHistory:
    """Collects the events of ``processes.jsonl`` in their order."""

    def __init__(self) -> None:
        """Begin without events."""
        self.samples: dict[str, ColumnBuffer] = {}
        """The loads over time, by process."""
        self.loads: dict[str, dict[str, Any]] = {}
        """The latest load of each process."""
        self.events: list[TimedEvent] = []
        """All other events: restarts, and when commands started and ended."""

    def add(self, timed: TimedEvent) -> None:
        """Add one event of the log.

        Raises:
            ValueError: a load has an invalid figure.
        """
        if not isinstance(timed.event, LoadSample):
            self.events.append(timed)
            return
        for load in timed.event.processes.values():
            check_load(load)
        for name, load in timed.event.processes.items():
            self.samples.setdefault(name, ColumnBuffer(*_COLUMNS)).add(*load_columns(timed.time, load))
            self.loads[name] = load

    def rates(self, name: str, now: float, load: Mapping[str, Any], *, over: float) -> dict[str, float]:
        """Return rates of a process, from its ``load`` at ``now`` and its sample ``over`` seconds before.

        Returns:
            ``cpu`` in cores, ``updated`` in rows per second, ``update_share`` as the share of time that updates took,
            ``examples`` per second. Empty if there is no earlier sample of the same process.
        """
        samples = self.samples.get(name)
        if samples is None or not load:
            return {}
        time_N, pid_N = samples["time"], samples["pid"]
        is_usable_N = (pid_N == load["pid"]) & (time_N >= now - over) & (time_N < now - _MIN_RATE_SECONDS)
        usable_lines = is_usable_N.nonzero()[0]
        if not len(usable_lines):
            return {}
        first, last = int(usable_lines[0]), dict(zip(_COLUMNS, load_columns(now, load), strict=True))
        seconds = now - time_N[first]
        rates = {counter: (last[counter] - samples[counter][first]) / seconds for counter in _COUNTERS}
        return {
            "cpu": rates["cpu_seconds"],
            "updated": rates["updated"],
            "update_share": rates["update_seconds"],
            "examples": rates["examples"],
        }
