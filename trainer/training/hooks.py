"""What a caller of a training run observes and requests.

    hooks = TrainingHooks(on_event=print, stop_requested=interrupted.is_set)
    run_in_process(job, folder, hooks, resume=False)

Every hook has a default that does nothing, so that a caller names only those that it needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from crossfade.trainer.monitoring.registry import ProcessMetrics
from crossfade.trainer.runs.events import EventSink, PhaseEvent


def _ignore(_: object) -> None:
    pass


@dataclass(frozen=True)
class TrainingHooks:
    """The hooks of one worker's run. All are called in the thread that trains and must return quickly.

    Attributes:
        on_event: receives every event of the run.
        log: receives a line for the user, such as why a checkpoint was skipped.
        stop_requested: whether the run should stop. If it is true at any worker, all write a checkpoint and stop.
        metrics: the metrics of this process, to which those of the training are added.
    """

    on_event: EventSink = _ignore
    log: Callable[[str], None] = _ignore
    stop_requested: Callable[[], bool] = lambda: False
    metrics: ProcessMetrics | None = None


class PhaseReporter:
    """Emits long work before training as phase events: signs of life, so that no stall is detected."""

    def __init__(self, on_event: EventSink) -> None:
        self._on_event = on_event
        self._name = ""

    def phase(self, name: str, total: int | None, unit: str) -> None:
        """Report that a phase begins."""
        self._name = name
        self._report()

    def advance(self, amount: int) -> None:
        """Report that the phase makes progress."""
        self._report()

    def _report(self) -> None:
        self._on_event(PhaseEvent(name=self._name))
