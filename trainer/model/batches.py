"""Batches: what one worker computes on in one step.

    for batch in batches(schedule, sampler, epoch=0, first_step=0, rank=0, workers=1):
        batch.query.rows_A, batch.item.rows_A       # the active rows of both sides
        batch.weight_B                              # one weight for each example

A batch joins the worker's slice of the step's interactions with its negatives, and groups both by active row.

Shapes: B examples, N uses of items, C negatives of a pool, P partitions of this worker, K context entities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.kvstore.jit import njit
from crossfade.trainer.data.query_history import HistoryWindows
from crossfade.trainer.data.schedule import BatchSchedule, BatchSlice
from crossfade.trainer.data.stopwatch import Stopwatch
from crossfade.trainer.model.active_rows import ActiveRows
from crossfade.trainer.model.context import group_combinations, sort_combinations
from crossfade.trainer.model.negatives import NegativeSampler
from crossfade.trainer.model.tower_inputs import JoinedRows, TowerInputs

_UNCORRECTED = np.empty(0, np.float32)


@dataclass(frozen=True)
class Batch:
    """One worker's part of one step.

    Attributes:
        epoch: the epoch, from 0.
        step: the step within the epoch, from 0.
        query: active rows of the query side; its B uses are the examples' queries. With context or histories, they are
            combinations (``context.py``), and ``query.rows_A`` has the row of each, which may repeat.
        item: active rows of the item side; its uses are the examples' items (B), then the negatives: a pool of C for
            all examples, or ``negatives.count`` for each example in turn.
        weight_B: float32, the examples' weights; negative weights are negative feedback.
        global_size: examples of the step over all workers.
        log_q_N: float32, for each use of an item the log of its expected number of draws as a negative of one example
            (logQ correction); empty without correction.
        partition_slices: the examples of each partition, which are one another's in-batch negatives.
        is_ordered: whether the examples are ordered by the row of their query, as negatives per example require.
        tower_inputs: by entity, what its vectors are made of; only for entities with features.
        context_AK: the context rows of each combination, int64, -1 for none; None without context.
        history: the history of each combination; None without.
        same_query: which examples have the same query, whatever their histories; None: ``query`` has it.
        query_inputs: what the vectors of combinations are made of; None if they are those of the query's row.
        item_rows: the rows of the item table that items and histories use; None if histories do not use it.
    """

    epoch: int
    step: int
    query: ActiveRows
    item: ActiveRows
    weight_B: FloatArray
    global_size: int
    log_q_N: FloatArray = field(default_factory=lambda: _UNCORRECTED)
    partition_slices: tuple[slice, ...] = ()
    is_ordered: bool = False
    tower_inputs: Mapping[str, TowerInputs] = field(default_factory=dict)
    context_AK: IntArray | None = None
    history: HistoryWindows | None = None
    same_query: ActiveRows | None = None
    query_inputs: TowerInputs | None = None
    item_rows: JoinedRows | None = None

    def __len__(self) -> int:
        return len(self.weight_B)

    def normalized_weights(self) -> FloatArray:
        """Return the weights divided by ``global_size``, whose losses sum to the mean loss over all workers."""
        return self.weight_B / np.float32(self.global_size)

    @property
    def query_groups(self) -> ActiveRows:
        """The examples by query: their items are not in-batch negatives of one another."""
        return self.query if self.same_query is None else self.same_query

    @property
    def shares_query_scores(self) -> bool:
        """Whether the examples of a query have the same scores, if all items are negatives and count alike."""
        only_items = len(self.item.rows_A) == len(self.negative_index_N)
        return only_items and len(self.log_q_N) == 0 and bool((self.weight_B >= 0).all())

    @property
    def item_index_B(self) -> IntArray:
        """The active row of each example's item."""
        return self.item.index_N[: len(self)]

    @property
    def negative_index_N(self) -> IntArray:
        """The active row of each negative."""
        return self.item.index_N[len(self) :]


def make_batch(
    batch_slice: BatchSlice,
    uses_N: IntArray,
    epoch: int,
    step: int,
    log_q_N: FloatArray = _UNCORRECTED,
    *,
    per_example: bool = False,
) -> Batch:
    """Build the batch of a worker's slice of a step.

    Args:
        batch_slice: the slice.
        uses_N: its items, then the negatives, int64 rows.
        epoch: the epoch.
        step: the step within the epoch.
        log_q_N: logQ correction of each use; empty: none.
        per_example: whether each example has negatives of its own. The examples are then ordered by query.
    """
    interactions = batch_slice.interactions
    if per_example:
        return _ordered_batch(batch_slice, uses_N, epoch, step, log_q_N)
    combinations = group_combinations(interactions)
    ends_P = np.cumsum(batch_slice.partition_sizes_P or [len(interactions)])
    return Batch(
        epoch=epoch,
        step=step,
        query=combinations.query,
        item=ActiveRows.of(uses_N),
        weight_B=interactions.weight_N,
        global_size=batch_slice.global_size,
        log_q_N=log_q_N,
        partition_slices=tuple(slice(int(start), int(end)) for start, end in pairwise([0, *ends_P]) if end > start),
        context_AK=combinations.context_AK,
        history=combinations.history,
        same_query=combinations.same_query,
    )


def _ordered_batch(batch_slice: BatchSlice, uses_N: IntArray, epoch: int, step: int, log_q_N: FloatArray) -> Batch:
    combinations, order_B = sort_combinations(batch_slice.interactions)
    return Batch(
        epoch=epoch,
        step=step,
        query=combinations.query,
        item=ActiveRows.of(_reordered(uses_N, order_B)),
        weight_B=_reordered(batch_slice.interactions.weight_N, order_B),
        global_size=batch_slice.global_size,
        log_q_N=_reordered(log_q_N, order_B),
        is_ordered=True,
        context_AK=combinations.context_AK,
        history=combinations.history,
    )


@njit(cache=True, error_model="numpy", nogil=True)
def _reordered(values_N, order_B):  # type: ignore[no-untyped-def]
    """Return the values of examples, then those of the negatives of each, with the examples in order ``order_B``."""
    examples, ordered_N = order_B.shape[0], np.empty_like(values_N)
    if examples == 0 or values_N.shape[0] == 0:
        return ordered_N
    negatives = values_N.shape[0] // examples - 1
    for b in range(examples):
        ordered_N[b] = values_N[order_B[b]]
        first, from_first = examples + b * negatives, examples + order_B[b] * negatives
        for c in range(negatives):
            ordered_N[first + c] = values_N[from_first + c]
    return ordered_N


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
    """Yield the batches of worker ``rank`` for ``epochs`` epochs, starting at ``first_step`` of ``epoch``.

    Args:
        schedule: assigns interactions to steps and workers.
        sampler: draws the negatives.
        epoch: first epoch.
        first_step: first step of that epoch.
        rank: this worker, from 0.
        workers: number of workers.
        epochs: number of epochs, the first included.
        wait_timer: measures the seconds spent waiting for interactions.
        sample_timer: measures the seconds spent drawing negatives and finding active rows.
        transform: completes each batch, for example with weights and tower inputs.
    """
    sample_timer = sample_timer or Stopwatch()
    slices = schedule.slices(epoch, first_step, rank, workers, epochs, wait_timer)
    for number, batch_slice in enumerate(slices, start=epoch * schedule.steps + first_step):
        at, step = divmod(number, schedule.steps)
        with sample_timer.running():
            uses_N = np.concatenate([batch_slice.interactions.item_N, sampler.draw(batch_slice, at, step)])
            log_q_N = sampler.log_q(uses_N, batch_slice)
            batch = transform(make_batch(batch_slice, uses_N, at, step, log_q_N, per_example=sampler.draws_per_example))
        yield batch
