"""The batches of one worker: scheduled, with negatives, weighted, with the inputs of the towers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from crossfade.trainer.data.schedule import BatchSchedule
from crossfade.trainer.model.batches import Batch, batches
from crossfade.trainer.model.negatives import NegativeSampler
from crossfade.trainer.model.towers import Towers
from crossfade.trainer.model.weighting import FrequencyWeighting
from crossfade.trainer.training.state import BatchTimers, TrainState


@dataclass(frozen=True)
class BatchSource:
    """Makes the batches of worker ``rank`` of ``workers``."""

    schedule: BatchSchedule
    sampler: NegativeSampler
    weighting: FrequencyWeighting
    towers: Towers
    rank: int = 0
    workers: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """Return the steps of an epoch, which are the same for all workers."""
        return self.schedule.steps

    def remaining(self, state: TrainState, total_steps: int, timers: BatchTimers) -> Iterator[Batch]:
        """Yield a batch for every step after ``state``, to the end of the last epoch of a run of ``total_steps``."""
        steps = state.epoch_step + total_steps - state.step
        return batches(
            self.schedule,
            self.sampler,
            epoch=state.epoch,
            first_step=state.epoch_step,
            rank=self.rank,
            workers=self.workers,
            epochs=max(0, -(-steps // self.schedule.steps)),
            wait_timer=timers.data,
            sample_timer=timers.sample,
            transform=self._transform,
        )

    def _transform(self, batch: Batch) -> Batch:
        return self.towers.add_tower_inputs(self.weighting.apply(batch))

    def interrupt(self) -> None:
        """Make a thread that waits for data in ``remaining`` raise an error soon."""
        self.schedule.interrupt()
