"""What the vectors of a batch's active rows are made of, where a row's vector is a sum of several embeddings.

    inputs = features.inputs(rows_A)            # TowerInputs, of the TowerFeatures of a tower
    block = store.pull(inputs.active(tower))
    vectors_AD = inputs.combine(tower, block)
    gradients = inputs.gradients(tower, gradient_AD)        # by table, for the same active rows

Shapes: N uses of a feature's values, A active rows, K context entities, V active values of a feature, F places of the
content of a row (``trainer/data/features.py``), R rows of the entity, D columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from crossfade.base.arrays import BoolArray, FloatArray, IntArray
from crossfade.kvstore.jit import inner_kernel, njit
from crossfade.kvstore.threads import balanced_chunk_size, for_chunks
from crossfade.trainer.config.sections import HISTORY
from crossfade.trainer.data.features import ContentMatrix
from crossfade.trainer.data.jagged_array import JaggedArray
from crossfade.trainer.data.query_history import HistoryWindows, recency_shares
from crossfade.trainer.model.active_rows import ActiveRows
from crossfade.trainer.model.spec import ModelSpec, TowerSpec


@dataclass(frozen=True)
class TowerFeatures:
    """Features and warm flags of a tower's rows.

    Attributes:
        tower: the tables that vectors are made of.
        lists: by feature, the values of each row.
        warm_R: which rows have a trained ID embedding.
        content: the content of each row; None: the tower has none.
    """

    tower: TowerSpec
    lists: Mapping[str, JaggedArray]
    warm_R: BoolArray
    content: ContentMatrix | None = None

    def inputs(self, rows_A: IntArray, id_kept_A: BoolArray | None = None) -> TowerInputs:
        """Gather what the vectors of ``rows_A``, sorted and unique, are made of; ID dropout keeps ``id_kept_A``."""
        bags = {}
        for table in self.tower.features:
            lists = self.lists[table.name].take(rows_A)
            bags[table.name] = FeatureBag.of(lists.values_N, lists.starts_L1)
        filled_A = np.zeros(len(rows_A), np.int64) if self.content is None else 1 * self.content.filled_R[rows_A]
        for bag in bags.values():
            filled_A += bag.counts_A > 0
        if self.tower.id_table is None:
            uses_id_A = np.zeros(len(rows_A), np.bool_)
        else:
            uses_id_A = self.warm_R[rows_A] if id_kept_A is None else self.warm_R[rows_A] & id_kept_A
            uses_id_A = uses_id_A | (filled_A == 0)
        content_AF = None if self.content is None else self.content.values_RF[rows_A]
        return TowerInputs(uses_id_A, rows_A[uses_id_A], bags, content_AF)


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
        """Compute the gradients of the active rows of each table from the gradients of the vectors."""
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
