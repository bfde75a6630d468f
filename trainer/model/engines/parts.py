"""Split a batch among devices, each of which computes some of its examples.

    parts = split_batch(batch, devices=3, in_batch=False)
    gradients = [compute(part, part.query_rows(query_AD), part.item_rows(item_AD)) for part in parts]
    query_gradient_AD = sum_rows(len(batch.query.rows_A), [part.query_rows_A for part in parts], by_query)

The examples of a part are adjacent. A part has the rows that they use, so a device gets few of the others. In-batch
negatives are items of a partition, some of which another part may compute; these count among the rows of a part, too.

Gradients of the parts are summed row by row, in the order of the devices, so results repeat.

Shapes: A active rows, B examples of a part, P examples whose items are uses of a part, N uses, D columns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.trainer.config.sections import NegativesConfig
from crossfade.trainer.model.active_rows import ActiveRows
from crossfade.trainer.model.batches import Batch
from crossfade.trainer.model.losses import LossSpec
from crossfade.trainer.model.negatives import IN_BATCH_KINDS
from crossfade.trainer.model.spec import ModelSpec


@dataclass(frozen=True)
class Pool:
    """Examples that share negatives: the drawn ones of the part, and the items of their partition.

    Attributes:
        examples: of the part's B examples.
        in_batch: of the P examples whose items are uses, those whose items are in-batch negatives; empty: none.
    """

    examples: slice
    in_batch: slice


@dataclass(frozen=True)
class BatchPart:
    """The examples of a batch that one device computes.

    Attributes:
        query: the rows of the query side, by example. Rows are places among the active rows of the batch.
        item: likewise of the item side; uses are the items of P examples, then the negatives.
        own: the part's B examples among the P.
        pools: the examples by the negatives they share; empty if negatives are drawn per example.
        group_P: the query of each of the P examples, whose other items are not its negatives.
        weight_B: weights, divided by the examples of the step over all workers.
        log_q_N: subtracted from the scores of negatives, by use; empty: nothing.
        is_complete: whether the part is the batch, so that rows need not be selected.
    """

    query: ActiveRows
    item: ActiveRows
    own: slice
    pools: tuple[Pool, ...]
    group_P: IntArray
    weight_B: FloatArray
    log_q_N: FloatArray
    is_complete: bool

    def __len__(self) -> int:
        return len(self.weight_B)

    @property
    def positives(self) -> int:
        """P, the number of examples whose items are uses."""
        return len(self.group_P)

    @property
    def negatives(self) -> int:
        """The number of drawn negatives."""
        return len(self.item.index_N) - self.positives

    def query_rows(self, query_AD: FloatArray) -> FloatArray:
        """Return the vectors of the part's queries, out of those of the batch."""
        return query_AD if self.is_complete else query_AD[self.query.rows_A]

    def item_rows(self, item_AD: FloatArray) -> FloatArray:
        """Return the vectors of the part's items, out of those of the batch."""
        return item_AD if self.is_complete else item_AD[self.item.rows_A]


def split_batch(batch: Batch, devices: int, *, in_batch: bool) -> list[BatchPart]:
    """Split ``batch`` into parts of about equally many examples, at most one for each of ``devices``.

    Args:
        batch: the batch, which has examples.
        devices: the number of devices.
        in_batch: whether the items of a partition's examples are negatives of one another.
    """
    bounds = np.linspace(0, len(batch), min(devices, len(batch)) + 1).astype(np.int64)
    return [_part(batch, int(bounds[n]), int(bounds[n + 1]), in_batch) for n in range(len(bounds) - 1)]


def _part(batch: Batch, first: int, last: int, in_batch: bool) -> BatchPart:
    touched = [part for part in batch.partition_slices if part.start < last and part.stop > first] if in_batch else []
    begin, end = (touched[0].start, touched[-1].stop) if touched else (first, last)
    is_complete = last - first == len(batch)
    query, item, log_q_N = batch.query, batch.item, batch.log_q_N
    if not is_complete:
        query = _active(batch.query.index_N[first:last])
        item, log_q_N = _item_uses(batch, slice(begin, end), slice(first, last))
    pools: tuple[Pool, ...] = ()
    if touched:
        pools = tuple(_pool(part, first, last, begin) for part in touched)
    elif not batch.is_ordered:
        pools = (Pool(slice(0, last - first), slice(0, 0)),)
    return BatchPart(
        query=query,
        item=item,
        own=slice(first - begin, last - begin),
        pools=pools,
        group_P=batch.query_groups.index_N[begin:end],
        weight_B=batch.normalized_weights()[first:last],
        log_q_N=log_q_N,
        is_complete=is_complete,
    )


def _pool(partition: slice, first: int, last: int, begin: int) -> Pool:
    """Return the pool of the examples of ``partition`` that lie in a part from ``first`` to ``last``."""
    examples = slice(max(partition.start, first) - first, min(partition.stop, last) - first)
    return Pool(examples, slice(partition.start - begin, partition.stop - begin))


def _item_uses(batch: Batch, positives: slice, examples: slice) -> tuple[ActiveRows, FloatArray]:
    """Return the item rows of a part, and what is subtracted from scores, by use."""
    negatives = slice(0, len(batch.negative_index_N))
    if batch.is_ordered:
        count = len(batch.negative_index_N) // len(batch)
        negatives = slice(examples.start * count, examples.stop * count)

    def uses(values_N: FloatArray) -> FloatArray:
        return np.concatenate([values_N[: len(batch)][positives], values_N[len(batch) :][negatives]])

    return _active(uses(batch.item.index_N)), uses(batch.log_q_N) if len(batch.log_q_N) else batch.log_q_N


def _active(places_N: IntArray) -> ActiveRows:
    return ActiveRows.of(places_N.astype(np.int64))


def sum_rows(rows: int, parts: Sequence[ActiveRows], gradients: Sequence[FloatArray]) -> FloatArray:
    """Sum the gradients of parts, whose rows are those of ``parts``, to those of all ``rows``, in their order."""
    if len(gradients) == 1:
        return gradients[0]
    sum_AD = np.zeros((rows, gradients[0].shape[1]), np.float32)
    for active, gradient_AD in zip(parts, gradients, strict=True):
        sum_AD[active.rows_A] += gradient_AD
    return sum_AD


class PartsEngine(ABC):
    """An engine whose devices each compute a part of the batch from the vectors that it uses.

    Attributes:
        devices: as ``train.device`` names them.
    """

    def __init__(self, model: ModelSpec, loss: LossSpec, negatives: NegativesConfig, devices: Sequence[str]) -> None:
        """Prepare to split batches among ``devices``."""
        self.devices: Sequence[str] = list(devices)
        self._model = model
        self._in_batch = negatives.kind in IN_BATCH_KINDS
        self._all_softmax = negatives.kind == "all" and loss.kind == "softmax"

    def gradients(self, batch: Batch, vectors: Mapping[str, FloatArray]) -> tuple[float, dict[str, FloatArray]]:
        """Compute this worker's part of the mean loss, and the gradients of ``vectors`` (see ``Engine``)."""
        names = self._model.query.name, self._model.item.name
        if len(batch) == 0:
            return 0.0, {name: np.zeros_like(vectors[name]) for name in names}
        query_AD, item_AD = (vectors[name] for name in names)
        parts = split_batch(batch, len(self.devices), in_batch=self._in_batch)
        loss, by_query, by_item = self._compute_parts(batch, parts, query_AD, item_AD)
        query_gradient_AD = sum_rows(len(query_AD), [part.query for part in parts], by_query)
        item_gradient_AD = sum_rows(len(item_AD), [part.item for part in parts], by_item)
        return loss, dict(zip(names, (query_gradient_AD, item_gradient_AD), strict=True))

    def gpu_memory(self) -> tuple[int, int] | None:
        """Return the used and the total bytes of the GPUs together, None on the CPU. Any thread may call it."""
        sizes = self._free_and_total()
        return (sum(total - free for free, total in sizes), sum(total for _, total in sizes)) if sizes else None

    @abstractmethod
    def _compute_parts(
        self, batch: Batch, parts: Sequence[BatchPart], query_AD: FloatArray, item_AD: FloatArray
    ) -> tuple[float, Sequence[FloatArray], Sequence[FloatArray]]:
        """Compute the sum of the losses, and the gradients of each part's queries and items, from the vectors."""

    @abstractmethod
    def _free_and_total(self) -> list[tuple[int, int]]:
        """Return the free and the total bytes of each GPU."""

    def _shares_scores(self, batch: Batch) -> bool:
        """Return whether a query is scored once for all its examples."""
        return self._all_softmax and batch.shares_query_scores
