"""Figures and alerts of a run, as data: ``summary.py`` computes them; the page and the terminal show them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from crossfade.base.formatting import lost
from crossfade.deploy.dashboard.last_failure import LastFailure
from crossfade.deploy.dashboard.process_rows import ProcessRow
from crossfade.deploy.dashboard.run_state import ENDED

Level = Literal["critical", "warning", "info"]


@dataclass(frozen=True)
class Alert:
    """One alert."""

    level: Level
    text: str


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
    best_epoch: int | None
    stopped_early: bool
    """Whether it is done because the last evaluations did not improve that metric (``train.patience``)."""
    advice: str | None
    """What to change where it may have ended too early."""
    metrics: dict[str, dict[str, float]]
    """The metrics of the last evaluation, by split."""
    baselines: dict[str, dict[str, dict[str, float]]]
    """Metrics of rankings without training, by split and name."""
    baseline_notes: list[str]
    """Why some are missing, in words."""
    task: str
    """What these metrics count as held out, ``new`` or ``repeat``; empty if the job does not say."""
    traffic: dict[str, int]
    phase_seconds: dict[str, float]
    checkpoints: dict[str, Any]
    restarts: list[dict[str, Any]]
    failure: LastFailure | None
    processes: list[ProcessRow]
    alerts: list[Alert] = field(default_factory=list)
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
    def dense_ratio(self) -> float | None:
        """Bytes that dense gradients would have taken, as a multiple of the bytes pushed; None without pushes."""
        pushed = self.traffic.get("bytes_pushed")
        return self.traffic["dense_equivalent_bytes_pushed"] / pushed if pushed else None

    def to_json(self) -> dict[str, Any]:
        """Return the fields and derived figures as JSON values."""
        return {**asdict(self), "progress": self.progress, "dense_ratio": self.dense_ratio}


def lost_steps(restart: Mapping[str, Any]) -> str:
    """Describe the steps that one of ``Summary.restarts`` takes again; empty if its record does not have them."""
    steps, reached = restart.get("lost_steps"), restart.get("step")
    if not isinstance(steps, int) or not isinstance(reached, int):
        return ""
    return f"lost {lost(steps, restart.get('lost_seconds'), from_step=reached - steps)}"
