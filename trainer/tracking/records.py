"""Turn the events and the report of a run into what is tracked: metrics by step.

    records = EventRecords()
    records.of(StepEvent(...), now=time.time())       # a Point, or None

MLflow rejects '@' in names of metrics, so ``ndcg@10`` on valid is ``valid/ndcg_at_10``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from crossfade.trainer.runs.events import EpochEvent, Event, PhaseEvent, StepEvent

STEP_SECONDS = 1.0
"""Minimum seconds between two steps that are recorded, as in events.jsonl."""
_REPORTED = (
    *("best_epoch", "epochs", "steps", "examples", "parameters", "restarts", "train_seconds", "wall_seconds"),
    *("examples_per_second", "bytes_pulled", "bytes_pushed", "dense_equivalent_bytes_pushed"),
)
"""Numbers of the report that are recorded; its metrics are, too."""


@dataclass(frozen=True)
class Point:
    """The values of metrics at a step, by name. ``time`` is Unix time."""

    time: float
    step: int
    values: dict[str, float]


class EventRecords:
    """Turns events into points; of steps at most one a second."""

    def __init__(self) -> None:
        self._last_step_at = float("-inf")
        self._earlier: StepEvent | None = None

    def of(self, event: Event, now: float) -> Point | None:
        """Return what ``event``, which arrived at the Unix time ``now``, adds to the record of the run, if anything."""
        match event:
            case StepEvent() if now - self._last_step_at >= STEP_SECONDS:
                self._last_step_at = now
                return Point(now, event.step, dict(self._step_values(event)))
            case EpochEvent():
                values = {
                    "train/epoch_loss": event.loss,
                    "train/epoch": event.epoch,
                    **_split("valid", event.valid or {}),
                }
                return Point(now, event.step, values)
            case PhaseEvent(name="training"):
                self._earlier = None  # steps of two starts have no throughput together
        return None

    def _step_values(self, event: StepEvent) -> Iterator[tuple[str, float]]:
        yield "train/loss", event.loss
        yield "train/learning_rate", event.learning_rate
        if self._earlier is not None:
            seconds = sum(event.seconds.values()) - sum(self._earlier.seconds.values())
            if seconds > 0:
                yield "train/examples_per_second", (event.examples - self._earlier.examples) / seconds
        self._earlier = event


def report_point(report: Mapping[str, Any], now: float) -> Point:
    """Return the point of the report of a finished run: its numbers, and the metrics of the best embeddings."""
    values = {f"report/{name}": float(report[name]) for name in _REPORTED if report.get(name) is not None}
    for split, metrics in report["metrics"].items():
        values |= _split(f"report/{split}", metrics)
    return Point(now, report["steps"], values)


def _split(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name.replace('@', '_at_')}": float(value) for name, value in metrics.items()}
