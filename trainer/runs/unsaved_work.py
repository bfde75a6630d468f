"""Measure the work of a run that no checkpoint has saved: what is lost if the run fails now.

work = UnsavedWork(0, time.monotonic())  # for every attempt to train
work.record(event, time.monotonic())  # for every event of it
steps, seconds = work.since(work.checkpoint_step)
"""

from __future__ import annotations

from crossfade.trainer.runs.events import CheckpointSaved, Event, PhaseEvent, StepEvent, StoppedEvent


class UnsavedWork:
    """The steps of one attempt to train, with their times by any clock."""

    def __init__(self, start_step: int, now: float) -> None:
        """Start at ``start_step``, where the attempt resumes from a checkpoint, or at 0."""
        self.step = self.checkpoint_step = start_step
        """Steps taken so far, and those that the newest checkpoint has."""
        self._step_at = now
        self._begun_at: dict[int, float] = {}
        """When training after a step began, for the step that training started from and those of checkpoints."""

    def record(self, event: Event, now: float) -> None:
        """Record an event of the training that happened at ``now``."""
        match event:
            case StepEvent(step=step):
                self.step, self._step_at = step, now
            case PhaseEvent(name="training", step=step):
                # Each worker reports it, some of them late, when the agent of their host was out of reach.
                self._begun_at.setdefault(step or 0, now)
            case CheckpointSaved(step=step, seconds=seconds):
                self.checkpoint_step = max(self.checkpoint_step, step)
                self._begun_at[step] = now - seconds
            case StoppedEvent(step=step):
                self.step = step

    def since(self, step: int) -> tuple[int, float | None]:
        """Return how many steps were taken after ``step``, and in how many seconds; None if that is not known."""
        begun_at = self._begun_at.get(step)
        seconds = None if begun_at is None else max(0.0, self._step_at - begun_at)
        return max(0, self.step - step), seconds
