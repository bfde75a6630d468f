"""The figures of a run that are shown, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from crossfade.base.formatting import count, lost, share, size
from crossfade.deploy.dashboard.alert import Alert
from crossfade.trainer.runs.events import FailureEvent

ENDED = ("done", "failed", "stopped", "lost", "unknown")
"""States of runs that have ended. ``lost``: the command no longer runs. ``unknown``: no file has the state."""


@dataclass(frozen=True)
class LastFailure:
    """A failure that was recorded at the Unix time ``time``."""

    time: float
    event: FailureEvent

    def work(self) -> str:
        """Describe what was lost: ``333 steps since the last checkpoint, 5.6 s``."""
        event = self.event
        return lost(event.lost_steps, event.lost_seconds, from_step=event.step - event.lost_steps)


@dataclass(frozen=True)
class Restart:
    """A restart at the Unix time ``time``; ``step`` had been reached. What is not known is None."""

    time: float
    generation: int
    cause: str
    step: int
    lost_steps: int | None
    lost_seconds: float | None

    def work(self) -> str:
        """Describe the steps that are taken again; empty if they are not known."""
        if self.lost_steps is None:
            return ""
        return f"lost {lost(self.lost_steps, self.lost_seconds, from_step=self.step - self.lost_steps)}"

    def describe(self) -> str:
        """Return the cause, and what was lost."""
        return "; ".join(filter(None, (self.cause, self.work())))


@dataclass(frozen=True)
class ProcessRow:
    """One process of a run. Figures that are unknown, or that its kind does not have, are None."""

    name: str
    state: str
    host: str | None
    metrics: str | None
    resident_bytes: int | None
    memory_limit_bytes: int | None
    memory_available_bytes: int | None
    rows: int | None
    """Rows of the table shards that it holds."""
    held_bytes: int | None
    updated: int | None
    """Rows that it has updated."""


PROCESS_COLUMNS = ("Process", "State", "Host", "Rows", "Table size", "Memory", "Free memory")
PROCESS_TEXT_COLUMNS = 3
"""The first columns hold words and are aligned to the left; the others hold numbers."""


def process_cells(process: ProcessRow) -> tuple[str, ...]:
    """Return the figures of ``process`` in the order of ``PROCESS_COLUMNS``."""
    sizes = (process.held_bytes, process.resident_bytes, process.memory_available_bytes)
    state = process.state.replace("_", " ")
    return process.name, state, process.host or "", count(process.rows), *map(size, sizes)


@dataclass
class Summary:
    """One run. Times are Unix times in seconds; figures that are unknown are None."""

    name: str
    path: str
    state: str
    message: str
    phase: str
    generation: int
    started: float | None
    updated: float | None
    elapsed_seconds: float | None
    step: int
    planned_steps: int | None
    epoch: int | None
    planned_epochs: int | None
    remaining_seconds: float | None
    examples_per_second: float | None
    steps_per_second: float | None
    loss: float | None
    best_metric: str
    """The metric that selects the best epoch."""
    eval_metric: float | None
    """Its last value on the valid split."""
    best_value: float | None
    best_error: float | None
    """Its standard error."""
    best_epoch: int | None
    stopped_early: bool
    """Whether the last evaluations had no gain in that metric beyond its standard error (``train.patience``)."""
    advice: str | None
    """What to change where it may have ended too early."""
    metrics: dict[str, dict[str, float]]
    """The metrics of the last evaluation, by split."""
    baselines: dict[str, dict[str, dict[str, float]]]
    """Metrics of baselines, by split and name."""
    baseline_notes: list[str]
    """Why some are missing, in words."""
    task: str
    """What these metrics count as held out, ``new`` or ``repeat``; empty if the job does not say."""
    traffic: dict[str, int]
    phase_seconds: dict[str, float]
    checkpoints: dict[str, Any]
    restarts: list[Restart]
    failure: LastFailure | None
    processes: list[ProcessRow]
    alerts: list[Alert] = field(default_factory=list)
    shortfall: str | None = None
    """Which baselines the run is below, and what to change."""
    run_id: str | None = None

    @property
    def live(self) -> bool:
        """Whether the run has not ended."""
        return self.state not in ENDED

    @property
    def progress(self) -> float:
        """The share of planned steps that are done; 1 for a finished run, also if it stopped early."""
        if self.state == "done":
            return 1.0
        return min(1.0, self.step / self.planned_steps) if self.planned_steps else 0.0

    @property
    def position(self) -> str:
        """The step and the epoch that the run has reached, and how many are planned, in words."""
        steps = f" of {self.planned_steps:,}" if self.planned_steps else ""
        epochs = f" of {self.planned_epochs}" if self.planned_epochs else ""
        return f"step {self.step:,}{steps}" + (f", epoch {self.epoch}{epochs}" if self.epoch else "")

    @property
    def dense_ratio(self) -> float | None:
        """Bytes that dense gradients would have taken, as a multiple of the bytes pushed; None without pushes."""
        pushed = self.traffic.get("bytes_pushed")
        return self.traffic["dense_equivalent_bytes_pushed"] / pushed if pushed else None

    def time_by_phase(self) -> list[str]:
        """Return each phase with its share of the time, the longest first."""
        total = sum(self.phase_seconds.values())
        longest = sorted(self.phase_seconds.items(), key=lambda item: -item[1])
        return [f"{phase} {share(seconds / total)}" for phase, seconds in longest] if total else []

    def to_json(self) -> dict[str, Any]:
        """Return the fields and derived figures as JSON values."""
        failure = None
        if self.failure is not None:
            event = self.failure.event
            failure = {"time": self.failure.time, "text": event.describe(), **event.model_dump(exclude={"generation"})}
        derived = {"progress": self.progress, "dense_ratio": self.dense_ratio, "failure": failure}
        return {**asdict(self), **derived}
