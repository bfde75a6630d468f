"""Active rows: the rows of a table that a step uses, each once, and what the vectors of a batch are made of.

    active = ActiveRows.of(np.array([7, 3, 7]))
    active.rows_A                               # [3, 7]: what is pulled and pushed
    active.rows_A[active.index_N]               # [7, 3, 7]: the uses again

    inputs = tower_features.inputs(rows_A)      # TowerInputs, of a tower with features
    block = store.pull(inputs.active(tower))
    vectors_AD = inputs.combine(tower, block)
    gradients = inputs.gradients(tower, gradient_AD)        # by table, for the same active rows

Where queries have context or histories, the active queries are ``Combinations`` of a query with these.

Shapes: N uses of a table or of a feature's values, A active rows, K digits of a row or context entities, V values of a
digit or active values of a feature, F places of the content of a row (``trainer/data/features.py``), D columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from crossfade.base.arrays import BoolArray, FloatArray, IntArray
from crossfade.kvstore.jit import inner_kernel, njit
from crossfade.kvstore.threads import balanced_chunk_size, for_chunks
from crossfade.trainer.config.sections import HISTORY
from crossfade.trainer.data.query_history import HistoryWindows, recency_shares
from crossfade.trainer.data.reader import Interactions
from crossfade.trainer.model.kernel_arguments import Uses
from crossfade.trainer.model.spec import ModelSpec, TowerSpec

_MAX_USES = 1 << 31
_MAX_DIGIT_BITS = 11
"""Bits of a digit of the radix sort: its counts fit into the first-level cache."""


@dataclass(frozen=True)
class ActiveRows:
    """The distinct rows among the uses of one table, with the mapping in both directions.

    Attributes:
        uses_N: the row of each use, int64.
        rows_A: the active rows, int64, sorted.
        index_N: use n is of row ``rows_A[index_N[n]]``; int32, as the following.
        order_N: the uses, ordered by row; a row's uses keep their order, so that gradients are summed in a fixed order.
        starts_A1: the uses of active row a are ``order_N[starts_A1[a]:starts_A1[a + 1]]``.
    """

    uses_N: IntArray
    rows_A: IntArray
    index_N: IntArray
    order_N: IntArray
    starts_A1: IntArray

    @property
    def uses(self) -> Uses:
        """Return what kernels read."""
        return Uses(self.index_N, self.order_N, self.starts_A1)

    @staticmethod
    def of(uses_N: IntArray) -> ActiveRows:
        """Group ``uses_N``, int64 rows in any order, none below 0.

        There are fewer than 2^31 of them, and their number times the largest row is below 2^62.
        """
        assert len(uses_N) < _MAX_USES
        rows_A, starts_A1, order_N, index_N, _ = _group(uses_N)
        return ActiveRows(uses_N, rows_A, index_N, order_N, starts_A1)

    @staticmethod
    def sorted(uses_N: IntArray) -> tuple[ActiveRows, IntArray]:
        """Sort ``uses_N``, and return its groups and the sorted order, int32 (N,): use n was use ``order_N[n]``."""
        assert len(uses_N) < _MAX_USES
        rows_A, starts_A1, order_N, _, index_N = _group(uses_N)
        in_order_N: IntArray = np.arange(len(uses_N)).astype(order_N.dtype)
        return ActiveRows(uses_N[order_N], rows_A, index_N, in_order_N, starts_A1), order_N


@njit(cache=True, nogil=True)
def _bits(value):  # type: ignore[no-untyped-def]
    """Return the bits of a number, at least 1."""
    bits = 1
    while value >> bits:
        bits += 1
    return bits


@njit(cache=True, nogil=True)
def _sort(uses_N, number_bits):  # type: ignore[no-untyped-def]
    """Return the sorted uses, each as its row followed by its number, of ``number_bits``.

    A radix sort, from the lowest digit of the rows up, so a row's uses keep their order. Numbers travel with their row,
    since looking up the row of a number in each pass takes longer.
    """
    count = uses_N.shape[0]
    largest = np.int64(0)
    for n in range(count):
        largest = max(largest, uses_N[n])
    row_bits = _bits(largest)
    digits = (row_bits + _MAX_DIGIT_BITS - 1) // _MAX_DIGIT_BITS
    digit_bits = (row_bits + digits - 1) // digits
    mask = (np.int64(1) << digit_bits) - 1
    source_N, target_N = np.empty(count, np.int64), np.empty(count, np.int64)
    next_KV = np.zeros((digits, mask + 1), np.int32)
    for n in range(count):
        row = uses_N[n]
        source_N[n] = row << number_bits | n
        for digit in range(digits):
            next_KV[digit, row & mask] += 1
            row >>= digit_bits
    for digit in range(digits):
        first = np.int32(0)
        for value in range(mask + 1):
            next_KV[digit, value], first = first, first + next_KV[digit, value]
        shift = number_bits + digit * digit_bits
        for n in range(count):
            value = (source_N[n] >> shift) & mask
            target_N[next_KV[digit, value]] = source_N[n]
            next_KV[digit, value] += 1
        source_N, target_N = target_N, source_N
    return source_N


@njit(cache=True, nogil=True)
def _group_dense(uses_N, largest):  # type: ignore[no-untyped-def]
    """Return what ``_group`` does by counting the uses of each row up to the ``largest``."""
    count = uses_N.shape[0]
    next_R = np.zeros(largest + 1, np.int32)
    for n in range(count):
        next_R[uses_N[n]] += 1
    rows_A, starts_A = np.empty(largest + 1, np.int64), np.empty(largest + 2, np.int32)
    order_N, index_N, sorted_index_N = np.empty(count, np.int32), np.empty(count, np.int32), np.empty(count, np.int32)
    active, first = 0, np.int32(0)
    active_R = np.empty(largest + 1, np.int32)
    for row in range(largest + 1):
        uses = next_R[row]
        if uses:
            rows_A[active], starts_A[active], active_R[row], next_R[row] = row, first, active, first
            for n in range(first, first + uses):
                sorted_index_N[n] = active
            active, first = active + 1, first + uses
    starts_A[active] = count
    for n in range(count):
        row = uses_N[n]
        order_N[next_R[row]] = n
        next_R[row] += 1
        index_N[n] = active_R[row]
    return rows_A[:active].copy(), starts_A[: active + 1].copy(), order_N, index_N, sorted_index_N


@njit(cache=True, nogil=True)
def _group(uses_N):  # type: ignore[no-untyped-def]
    """Return rows_A, starts_A1, order_N, and the active row of each use, then of each use in order."""
    count, largest = uses_N.shape[0], np.int64(0)
    for n in range(count):
        largest = max(largest, uses_N[n])
    if largest < count:
        return _group_dense(uses_N, largest)
    number_bits = _bits(count)
    sorted_N = _sort(uses_N, number_bits)
    numbers = (np.int64(1) << number_bits) - 1
    rows_A, starts_A = np.empty(count, np.int64), np.empty(count + 1, np.int32)
    order_N, index_N, sorted_index_N = np.empty(count, np.int32), np.empty(count, np.int32), np.empty(count, np.int32)
    active, last = 0, np.int64(-1)
    for n in range(count):
        row, use = sorted_N[n] >> number_bits, sorted_N[n] & numbers
        if row != last:
            rows_A[active] = last = row
            starts_A[active] = n
            active += 1
        order_N[n] = use
        index_N[use] = sorted_index_N[n] = active - 1
    starts_A[active] = count
    return rows_A[:active].copy(), starts_A[: active + 1].copy(), order_N, index_N, sorted_index_N


def number_distinct(rows_NK: IntArray) -> tuple[IntArray, IntArray]:
    """Assign numbers to the distinct rows of ``rows_NK``, int64, in lexicographic order.

    Returns:
        The first place of each, int64 (A,), and the number of each of the N rows, int64.
    """
    order_N = np.lexsort(rows_NK.T[::-1])
    is_new_N = np.ones(len(rows_NK), np.bool_)
    is_new_N[1:] = (rows_NK[order_N[1:]] != rows_NK[order_N[:-1]]).any(axis=1)
    number_N = np.empty(len(rows_NK), np.int64)
    number_N[order_N] = np.cumsum(is_new_N) - 1
    return order_N[is_new_N], number_N


@dataclass(frozen=True)
class Combinations:
    """The distinct combinations of some interactions.

    Attributes:
        query: them as active rows, whose ``rows_A`` are their query rows, sorted but, where there is context or
            history, not unique.
        context_AK: their context rows, int64; None without context.
        history: their histories; None without.
        same_query: the same without the histories; None without.
    """

    query: ActiveRows
    context_AK: IntArray | None = None
    history: HistoryWindows | None = None
    same_query: ActiveRows | None = None


def group_combinations(interactions: Interactions) -> Combinations:
    """Group interactions by combination."""
    columns = _columns(interactions)
    if len(columns) == 1:
        return Combinations(ActiveRows.of(interactions.query_N))
    first_A, number_N = number_distinct(np.column_stack(columns))
    found = _combinations(replace(ActiveRows.of(number_N), uses_N=interactions.query_N), first_A, interactions)
    if interactions.history is None:
        return found
    return replace(found, same_query=group_combinations(replace(interactions, history=None)).query)


def sort_combinations(interactions: Interactions) -> tuple[Combinations, IntArray]:
    """Sort interactions by combination; returns their combinations and the order, as ``ActiveRows.sorted`` does."""
    columns = _columns(interactions)
    if len(columns) == 1:
        query, order_N = ActiveRows.sorted(interactions.query_N)
        return Combinations(query), order_N
    first_A, number_N = number_distinct(np.column_stack(columns))
    query, order_N = ActiveRows.sorted(number_N)
    return _combinations(replace(query, uses_N=interactions.query_N[order_N]), first_A, interactions), order_N


def _columns(interactions: Interactions) -> list[IntArray]:
    """Return what distinguishes combinations. Where there are histories, each interaction is one."""
    context = [] if interactions.context_NK is None else list(interactions.context_NK.T)
    number = [] if interactions.history is None else [np.arange(len(interactions))]
    return [interactions.query_N, *context, *number]


def _combinations(query: ActiveRows, first_A: IntArray, interactions: Interactions) -> Combinations:
    firsts = interactions.take(first_A)
    return Combinations(replace(query, rows_A=firsts.query_N), firsts.context_NK, firsts.history)


def query_sum_inputs(
    query_A: IntArray, context_AK: IntArray | None, history: HistoryWindows | None, model: ModelSpec
) -> TowerInputs:
    """Gather what the vectors of combinations are made of: the parts of ``model.query_sum``.

    Args:
        query_A: their query rows, int64.
        context_AK: their context rows; None: no combination has context.
        history: their histories; None: they are empty.
        model: names the parts.
    """
    if context_AK is None:
        context_AK = np.full((len(query_A), len(model.context)), -1)
    bags = {}
    rows = [(model.query.name, query_A)] if model.has_query_vectors else []
    for name, row_A in [*rows, *zip((table.name for table in model.context), context_AK.T, strict=True)]:
        has_A = row_A >= 0
        starts_A1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(has_A)])
        bags[name] = FeatureBag.of(row_A[has_A], starts_A1)
    if model.history is not None:
        bags[HISTORY] = history_bag(history, len(query_A), model.history.half_life)
    return TowerInputs(np.zeros(len(query_A), np.bool_), np.empty(0, np.int64), bags)


def history_bag(history: HistoryWindows | None, queries: int, half_life: float | None) -> FeatureBag:
    """Return the items of the histories of ``queries`` combinations, with their shares in the mean of each."""
    if history is None:
        return FeatureBag.of(np.empty(0, np.int64), np.zeros(queries + 1, np.int64))
    compact = history.compact()
    return FeatureBag.of(compact.items_S, compact.starts_N1, recency_shares(compact.starts_N1, half_life))


@dataclass(frozen=True)
class FeatureBag:
    """The values of one feature for some rows, as in PyTorch's EmbeddingBag.

    Attributes:
        values: the active values of the feature's table.
        starts_A1: row a has the uses ``starts_A1[a]`` to ``starts_A1[a + 1]``.
        counts_A: number of values of each row.
        owner_N: the row that each use belongs to.
        share_N: float64, the share of each use in the mean of its row.
    """

    values: ActiveRows
    starts_A1: IntArray
    counts_A: IntArray
    owner_N: IntArray
    share_N: FloatArray

    @staticmethod
    def of(values_N: IntArray, starts_A1: IntArray, share_N: FloatArray | None = None) -> FeatureBag:
        """Build the bag of ``values_N``, the values of one row after another; without ``share_N``, all count alike."""
        counts_A = np.diff(starts_A1)
        if share_N is None:
            share_N = np.repeat(1.0 / np.maximum(counts_A, 1), counts_A)
        owner_N = np.repeat(np.arange(len(counts_A)), counts_A)
        return FeatureBag(ActiveRows.of(values_N), starts_A1, counts_A, owner_N, share_N)

    def gradient(self, gradient_AD: FloatArray) -> FloatArray:
        """Compute the gradients of the active values, (V, D), from the gradients of the rows' vectors."""
        values, share_N = self.values, self.share_N.astype(gradient_AD.dtype)
        gradient_VD: FloatArray = _sum_by_value(gradient_AD, self.owner_N, share_N, values.order_N, values.starts_A1)
        return gradient_VD


@dataclass(frozen=True)
class JoinedRows:
    """Two sets of rows of one table, which are pulled and pushed together.

    Attributes:
        rows_A: the rows of either, int64, sorted and unique.
        own_V: places in it of the first set.
        other_V: places in it of the second.
    """

    rows_A: IntArray
    own_V: IntArray
    other_V: IntArray

    @staticmethod
    def of(own_V: IntArray, other_V: IntArray) -> JoinedRows:
        """Join two sets, each sorted and unique."""
        rows_A = np.union1d(own_V, other_V)
        return JoinedRows(rows_A, np.searchsorted(rows_A, own_V), np.searchsorted(rows_A, other_V))

    def sum(self, own_VD: FloatArray, other_VD: FloatArray) -> FloatArray:
        """Return the sum of the gradients of both sets, (A, D)."""
        sum_AD = np.zeros((len(self.rows_A), own_VD.shape[1]), own_VD.dtype)
        sum_AD[self.own_V] = own_VD
        sum_AD[self.other_V] += other_VD
        return sum_AD


@dataclass(frozen=True)
class TowerInputs:
    """What the vectors of some rows of a tower are made of.

    Attributes:
        uses_id_A: which rows use their ID embedding.
        id_rows: those rows, in the ID table.
        bags: feature bags by feature.
        content_AF: what the content layer reads, float32; None without content.
    """

    uses_id_A: BoolArray
    id_rows: IntArray
    bags: dict[str, FeatureBag]
    content_AF: FloatArray | None = None

    def active(self, tower: TowerSpec) -> dict[str, IntArray]:
        """Return the active rows of each table, sorted and unique."""
        ids = {tower.id_table.name: self.id_rows} if tower.id_table else {}
        return ids | {name: bag.values.rows_A for name, bag in self.bags.items()}

    def combine(
        self, tower: TowerSpec, block: Mapping[str, FloatArray], content_AD: FloatArray | None = None
    ) -> FloatArray:
        """Compute the vectors (A, D) from active rows of each table in ``block``, and outputs of the content layer."""
        some_VD = next(iter(block[table.name] for table in tower.tables))
        out_AD = np.zeros((len(self.uses_id_A), tower.entity.dim), some_VD.dtype)
        if tower.id_table is not None:
            out_AD[self.uses_id_A] = block[tower.id_table.name]
        for name, bag in self.bags.items():
            share_N = bag.share_N.astype(out_AD.dtype)
            _add_means(out_AD, block[name], bag.values.index_N, bag.starts_A1, share_N)
        if content_AD is not None:
            out_AD += content_AD
        return out_AD

    def gradients(self, tower: TowerSpec, gradient_AD: FloatArray) -> dict[str, FloatArray]:
        """Compute the gradients with respect to the active rows of each table from those of the vectors."""
        by_ids = {}
        if tower.id_table is not None:
            by_ids[tower.id_table.name] = gradient_AD[self.uses_id_A]
        return by_ids | {name: bag.gradient(gradient_AD) for name, bag in self.bags.items()}


@inner_kernel()
def _add_means_of_chunk(begin, end, out_AD, values_VD, index_N, starts_A1, weight_N):  # type: ignore[no-untyped-def]
    for a in range(begin, end):
        for n in range(starts_A1[a], starts_A1[a + 1]):
            for d in range(out_AD.shape[1]):
                out_AD[a, d] += weight_N[n] * values_VD[index_N[n], d]


@njit(cache=True, error_model="numpy")
def _add_means(out_AD, values_VD, index_N, starts_A1, weight_N):  # type: ignore[no-untyped-def]
    """Add to each row the embeddings of its values, each times its weight."""
    size = balanced_chunk_size(out_AD.shape[0])
    for_chunks(_add_means_of_chunk, out_AD.shape[0], size, (out_AD, values_VD, index_N, starts_A1, weight_N))


@inner_kernel()
def _sum_chunk_by_value(  # type: ignore[no-untyped-def]
    begin, end, gradient_AD, owner_N, weight_N, order_N, starts_V1, out_VD
):
    for v in range(begin, end):
        for n in range(starts_V1[v], starts_V1[v + 1]):
            a, weight = owner_N[order_N[n]], weight_N[order_N[n]]
            for d in range(out_VD.shape[1]):
                out_VD[v, d] += weight * gradient_AD[a, d]


@njit(cache=True, error_model="numpy")
def _sum_by_value(gradient_AD, owner_N, weight_N, order_N, starts_V1):  # type: ignore[no-untyped-def]
    """Sum for each value the gradients of the rows that have it, in the order of rows, whatever the threads."""
    out_VD = np.zeros((starts_V1.shape[0] - 1, gradient_AD.shape[1]), gradient_AD.dtype)
    arguments = (gradient_AD, owner_N, weight_N, order_N, starts_V1, out_VD)
    for_chunks(_sum_chunk_by_value, out_VD.shape[0], balanced_chunk_size(out_VD.shape[0]), arguments)
    return out_VD
