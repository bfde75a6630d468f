"""Batches: what one worker computes on in one step.

    source = BatchSource(schedule, sampler, weighting, towers.add_tower_inputs)
    for batch in source.remaining(TrainState(), total_steps, BatchTimers()):
        batch.query.rows_A, batch.item.rows_A       # the active rows of both sides
        batch.weight_B                              # one weight for each example

A batch joins the worker's slice of the step's interactions with its negatives, and groups both by active row.

Shapes: B examples, N uses of items, C negatives of a pool, P partitions of this worker, K context entities, R rows of a
table, Q queries, I items, A active rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.stopwatch import Stopwatch
from crossfade.kvstore.jit import njit
from crossfade.kvstore.tree_sums import leaf_shift
from crossfade.trainer.data.query_history import HistoryWindows
from crossfade.trainer.data.schedule import BatchSchedule, BatchSlice
from crossfade.trainer.model.active_rows import ActiveRows, group_combinations, sort_combinations
from crossfade.trainer.model.kernel_arguments import Leaves
from crossfade.trainer.model.negatives import NegativeSampler
from crossfade.trainer.model.tower_inputs import JoinedRows, TowerInputs

_UNCORRECTED = np.empty(0, np.float32)
_NO_LEAVES = np.empty(0, np.uint8)


@dataclass(frozen=True)
class Batch:
    """One worker's part of one step.

    Attributes:
        epoch: the epoch, from 0.
        step: the step within the epoch, from 0.
        query: active rows of the query side; its B uses are the examples' queries. With context or histories, they are
            ``Combinations``, and ``query.rows_A`` has the row of each, which may repeat.
        item: active rows of the item side; its uses are the examples' items (B), then the negatives: a pool of C for
            all examples, or ``negatives.count`` for each example in turn.
        weight_B: float32, the examples' weights; negative weights are negative feedback.
        global_size: examples of the step over all workers.
        log_q_N: float32, for each use of an item the log of its expected number of draws as a negative of one example
            (logQ correction); empty without correction.
        partition_slices: the examples of each partition, which are one another's in-batch negatives; not where examples
            are ordered.
        leaf_B: the leaf of each example's partition in the tree by which gradients are summed, uint8.
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
    leaf_B: NDArray[np.uint8] = field(default_factory=lambda: _NO_LEAVES)
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
    def leaves(self) -> Leaves:
        """Return what kernels read."""
        assert len(self.leaf_B) == len(self)
        return Leaves(self.leaf_B, int(self.leaf_B.max(initial=0)) + 1)

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
    starts_P1 = np.cumsum([0, *(batch_slice.partition_sizes_P or [len(interactions)])])
    return Batch(
        epoch=epoch,
        step=step,
        query=combinations.query,
        item=ActiveRows.of(uses_N),
        weight_B=interactions.weight_N,
        global_size=batch_slice.global_size,
        log_q_N=log_q_N,
        partition_slices=tuple(slice(int(start), int(end)) for start, end in pairwise(starts_P1) if end > start),
        leaf_B=_leaves(batch_slice),
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
        leaf_B=_reordered(_leaves(batch_slice), order_B),
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


def _leaves(batch_slice: BatchSlice) -> NDArray[np.uint8]:
    """Return the leaf of each example of a slice, uint8 (B,)."""
    sizes_P, first = batch_slice.partition_sizes_P or (len(batch_slice.interactions),), batch_slice.first_partition
    partition_P = np.arange(first, first + len(sizes_P))
    shift = leaf_shift(max(batch_slice.partitions, first + len(sizes_P)))
    leaf_B: NDArray[np.uint8] = _repeat((partition_P >> shift).astype(np.uint8), np.array(sizes_P), sum(sizes_P))
    return leaf_B


@njit(cache=True, error_model="numpy", nogil=True)
def _repeat(leaf_P, sizes_P, examples):  # type: ignore[no-untyped-def]
    """Return each leaf as often as its size says, in a tenth of the time that numpy takes."""
    leaf_B, first = np.empty(examples, np.uint8), 0
    for p in range(sizes_P.shape[0]):
        leaf_B[first : first + sizes_P[p]] = leaf_P[p]
        first += sizes_P[p]
    return leaf_B


class FrequencyWeighting:
    """Multiplies the weights of a batch by factors of the query's and the item's frequency: weight ∝ count^power.

    Queries with thousands of interactions would otherwise dominate the loss, while evaluation counts every query once.
    With power p, an interaction of a query that has n interactions in train weighs n^p, scaled so that weights average
    1: p = 0 weighs every interaction the same, p = −1 every query. The same holds for items, where p > 0 favors popular
    ones.
    """

    def __init__(
        self, query_power: float, query_counts_Q: IntArray | None, item_power: float, item_counts_I: IntArray | None
    ) -> None:
        """Compute the factor of each row. Counts in train are required only where the power is not 0."""
        self._query_factor_Q = _factors(query_power, query_counts_Q)
        self._item_factor_I = _factors(item_power, item_counts_I)

    def apply(self, batch: Batch) -> Batch:
        """Return ``batch`` with its weights multiplied; the same object where both powers are 0."""
        for factor_R, active in ((self._query_factor_Q, batch.query), (self._item_factor_I, batch.item)):
            if factor_R is not None:
                batch = replace(batch, weight_B=batch.weight_B * _of_examples(factor_R, active, len(batch)))
        return batch


def _factors(power: float, counts_R: IntArray | None) -> FloatArray | None:
    """Return the factor of each row, float32 (R,), 1 on average over interactions; None where all are 1."""
    if power == 0:
        return None
    assert counts_R is not None
    weight_R = np.maximum(counts_R, 1).astype(np.float64) ** power
    mean = (weight_R * counts_R).sum() / max(counts_R.sum(), 1)
    factor_R: FloatArray = (weight_R / (mean or 1.0)).astype(np.float32)
    return factor_R


def _of_examples(factor_R: FloatArray, active: ActiveRows, examples: int) -> FloatArray:
    factor_B: FloatArray = factor_R.take(active.uses_N[:examples])  # like kernels, without the interpreter's lock
    return factor_B


@dataclass
class BatchTimers:
    """Seconds that the background thread waits for data."""

    data: Stopwatch = field(default_factory=Stopwatch)


class Position(Protocol):
    """Where a run is, as ``TrainState`` holds it: complete epochs, and steps of the next epoch and in all."""

    epoch: int
    epoch_step: int
    step: int


@dataclass(frozen=True)
class BatchSource:
    """Makes the batches of worker ``rank`` of ``workers``.

    Attributes:
        schedule: assigns interactions to steps and workers.
        sampler: draws the negatives.
        weighting: multiplies the weights of the examples.
        add_inputs: adds what the vectors of a batch are made of, ``Towers.add_tower_inputs``.
    """

    schedule: BatchSchedule
    sampler: NegativeSampler
    weighting: FrequencyWeighting
    add_inputs: Callable[[Batch], Batch]
    rank: int = 0
    workers: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """Return the steps of an epoch, which are the same for all workers."""
        return self.schedule.steps

    def remaining(self, state: Position, total_steps: int, timers: BatchTimers) -> Iterator[Batch]:
        """Yield a batch for every step after ``state``, to the end of the last epoch of a run of ``total_steps``."""
        per_epoch = self.schedule.steps
        epochs = max(0, -(-(state.epoch_step + total_steps - state.step) // per_epoch))
        first = state.epoch * per_epoch + state.epoch_step
        slices = self.schedule.slices(state.epoch, state.epoch_step, self.rank, self.workers, epochs, timers.data)
        for number, batch_slice in enumerate(slices, start=first):
            yield self._batch(batch_slice, *divmod(number, per_epoch))

    def _batch(self, batch_slice: BatchSlice, epoch: int, step: int) -> Batch:
        """Make the batch of a slice of ``step`` of ``epoch``."""
        uses_N = np.concatenate([batch_slice.interactions.item_N, self.sampler.draw(batch_slice, epoch, step)])
        log_q_N = self.sampler.log_q(uses_N, batch_slice)
        per_example = self.sampler.draws_per_example
        batch = make_batch(batch_slice, uses_N, epoch, step, log_q_N, per_example=per_example)
        return self.add_inputs(self.weighting.apply(batch))

    def interrupt(self) -> None:
        """Make a thread that waits for data in ``remaining`` raise an error soon."""
        self.schedule.interrupt()
