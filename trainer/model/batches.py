"""What one worker computes on in one step: its interactions, its negatives, and the rows that both touch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from kvstore.arrays import FloatArray, IntArray
from trainer.data.schedule import BatchSchedule, BatchSlice
from trainer.data.stopwatch import Stopwatch
from trainer.model.active_rows import ActiveRows
from trainer.model.negatives import NegativeSampler

if TYPE_CHECKING:
    from trainer.model.tower_inputs import TowerInputs


@dataclass(frozen=True)
class Batch:
    """One worker's part of one step.

    ``query``'s uses are the examples' queries (B). ``item``'s uses are the examples' items (B), then the negatives: a
    pool of C that all examples share, or ``count`` for each example in turn (B·count).
    ``weight_B``: float32, the examples' weights. ``global_size``: examples of the step over all workers.
    ``log_q_N``: float32, for each use of an item the log of how often it is expected among the negatives of an example;
    empty where scores are not corrected by it. ``groups``: the examples that are negatives of one another, where the
    batch gives negatives: a slice for each lane. ``parts``: by entity, what its vectors are made of, where they are not
    those of its table.
    """

    epoch: int
    step: int
    query: ActiveRows
    item: ActiveRows
    weight_B: FloatArray
    global_size: int
    log_q_N: FloatArray = field(default_factory=lambda: np.empty(0, np.float32))
    groups: tuple[slice, ...] = ()
    tower_inputs: Mapping[str, TowerInputs] = field(default_factory=dict)

    def __len__(self) -> int:
        """The examples of this worker."""
        return len(self.weight_B)

    @property
    def item_index_B(self) -> IntArray:
        """The active row of each example's item."""
        return self.item.index_N[: len(self)]

    @property
    def negative_index_N(self) -> IntArray:
        """The active row of each negative."""
        return self.item.index_N[len(self) :]


_UNCORRECTED = np.empty(0, np.float32)


def make_batch(share: BatchSlice, uses_N: IntArray, epoch: int, step: int, log_q_N: FloatArray = _UNCORRECTED) -> Batch:
    """The batch of a worker's ``share`` of a step, of which ``uses_N`` are the items and then the negatives."""
    interactions = share.interactions
    ends_G = np.cumsum(share.partition_sizes_G or [len(interactions)])
    return Batch(
        epoch=epoch,
        step=step,
        query=ActiveRows.of(interactions.query_N),
        item=ActiveRows.of(uses_N),
        weight_B=interactions.weight_N,
        global_size=share.global_size,
        log_q_N=log_q_N,
        groups=tuple(slice(int(start), int(end)) for start, end in pairwise([0, *ends_G]) if end > start),
    )


def batches(
    schedule: BatchSchedule,
    sampler: NegativeSampler,
    *,
    epoch: int,
    first_step: int,
    rank: int,
    workers: int,
    epochs: int = 1,
    wait_timer: Stopwatch | None = None,
    sample_timer: Stopwatch | None = None,
    transform: Callable[[Batch], Batch] = lambda batch: batch,
) -> Iterator[Batch]:
    """The batches of worker ``rank`` of ``workers`` in ``epochs`` epochs, from ``first_step`` of ``epoch`` on.

    ``complete`` adds what else they need.

    The watches run while interactions are waited for, and while negatives are drawn and active rows found.
    """
    sample_timer = sample_timer or Stopwatch()
    shares = schedule.slices(epoch, first_step, rank, workers, epochs, wait_timer)
    for number, share in enumerate(shares, start=epoch * schedule.steps + first_step):
        at, step = divmod(number, schedule.steps)
        with sample_timer.running():
            uses_N = np.concatenate([share.interactions.item_N, sampler.draw(share, at, step)])
            batch = transform(make_batch(share, uses_N, at, step, sampler.log_q(uses_N, share)))
        yield batch
