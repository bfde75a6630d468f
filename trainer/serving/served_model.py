"""Answer requests from a version of a model: recommendations, similar rows, vectors, and rows by ID or name.

    served = ServedModel(folder)                    # of write_version
    rows_QK, scores_QK = served.recommend(np.array([5]), RankingOptions(k=10))
    served.names.labels("artist", rows_QK[0].tolist())

``is_quick`` states which requests take about a millisecond. The others must come from a single thread, while the event
loop may answer quick ones.

Shapes: Q queries, K ranks, R rows, N rows of a list, D columns.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crossfade.base.arrays import BoolArray, FloatArray, IntArray
from crossfade.base.errors import InputError
from crossfade.trainer.config.sections import ScoreKind
from crossfade.trainer.evaluation.held_out import ItemLists
from crossfade.trainer.model.spec import Score
from crossfade.trainer.recommend.candidates import Candidates
from crossfade.trainer.recommend.context import average_context
from crossfade.trainer.recommend.history import Histories, make_sequences
from crossfade.trainer.recommend.index_folder import indexed_rows
from crossfade.trainer.recommend.index_search import IndexRanker, VectorIndex, open_built_index
from crossfade.trainer.recommend.metadata_table import GroupLists
from crossfade.trainer.recommend.new_queries import NewQueryVectors, new_query_vectors
from crossfade.trainer.recommend.ranker import Ranker
from crossfade.trainer.recommend.recommender import popularity_damping
from crossfade.trainer.recommend.row_subset import RowSubset
from crossfade.trainer.serving.mapped_histories import MappedHistories
from crossfade.trainer.serving.names import Names
from crossfade.trainer.serving.served_metadata import ServedMetadata
from crossfade.trainer.serving.version_folder import (
    DATA,
    HISTORIES,
    METADATA,
    NAMES,
    index_folder,
    open_card,
    open_copy,
)

_QUICK_VALUES, _LEAST_DIM = 1 << 19, 32
"""Values of a table that one thread ranks exactly in about a millisecond; rows of fewer columns take as long as 32."""
_MAX_RANKERS = 64
"""Rankers for conditions, limits per group, and damping that are kept, those that were used last."""

Rankings = tuple[IntArray, FloatArray]
"""Rows, best first, int64 (Q, K), -1 where there are fewer, and their scores, float32 (Q, K)."""


@dataclass(frozen=True)
class RankingOptions:
    """How to rank.

    Attributes:
        k: rows for each query.
        exclude_known: whether to leave out the items in a query's history.
        where: a condition on the metadata; None: no condition.
        max_per: the column of a group and the most rows of a group in one list; None: no limit.
        popularity_damping: as of ``crossfade recommend``.
        allow: the only rows to rank, int64, sorted; None: all.
        deny: rows to leave out, int64, sorted.
    """

    k: int = 10
    exclude_known: bool = True
    where: str | None = None
    max_per: tuple[str, int] | None = None
    popularity_damping: float = 0.0
    allow: IntArray | None = None
    deny: IntArray | None = None


@dataclass(frozen=True)
class _RankerKey:
    """What a ranker depends on; ``entity`` and ``metric`` select vectors, their score and their index."""

    entity: str
    metric: ScoreKind
    where: str | None
    max_per: tuple[str, int] | None
    popularity_damping: float


class ServedModel:
    """A version, opened."""

    def __init__(self, folder: Path) -> None:
        """Open the version in ``folder``.

        Raises:
            InputError: it is damaged or cannot be read.
            MissingExtraError: it has an index, and FAISS is not installed.
        """
        self.card = open_card(folder)
        self.model = open_copy(folder, self.card.model, self.card.fingerprint)
        spec = self.model.spec
        self.query, self.item = spec.query.name, spec.item.name
        self.tables = {table.name: table for table in spec.vectors}
        self.names = Names(folder / NAMES)
        self.histories = MappedHistories(folder / HISTORIES)
        self.metadata = ServedMetadata(
            folder / METADATA, folder / DATA, self.item, spec.item.rows, has_file=self.card.has_metadata
        )
        self.trained = {name: indexed_rows(self.model, name) for name in self.tables}
        self._indexes: dict[ScoreKind, VectorIndex] = {
            metric: open_built_index(index_folder(folder, metric), self.trained[self.item])
            for metric in self.card.indexes
        }
        self._rankers: OrderedDict[_RankerKey, Ranker] = OrderedDict()
        # Requests are answered in the event loop and in another thread.
        self._rankers_lock = threading.Lock()
        self._new_queries: NewQueryVectors | None = None
        self._average_context_D = average_context(self.model)
        self._ranker(self._key(self.item, self.card.score, RankingOptions()))

    def warm_up(self) -> None:
        """Answer one request and start the processes for conditions, so that the first of a client finds all loaded."""
        self.metadata.start()
        self.recommend(np.flatnonzero(self.trained[self.query])[:1], RankingOptions())

    def close(self) -> None:
        """End the processes for conditions; files are closed when nothing refers to them."""
        self.metadata.close()

    def is_quick(self, entity: str, metric: ScoreKind, options: RankingOptions) -> bool:
        """Return whether one query takes about a millisecond: by an index or a small table, without metadata."""
        ranker = self._rankers.get(self._key(entity, metric, options))
        if ranker is None or options.allow is not None or options.max_per is not None:
            return False
        table = self.tables[entity]
        return isinstance(ranker, IndexRanker) or table.rows * max(table.dim, _LEAST_DIM) <= _QUICK_VALUES

    def recommend(self, rows_Q: IntArray, options: RankingOptions) -> Rankings:
        """Rank items for the queries ``rows_Q``, int64, whose vectors must be trained.

        Raises:
            InputError: a condition or column is invalid, or leaves no item.
        """
        histories = self.histories.load(rows_Q) if options.exclude_known else None
        query_QD = self.model.vectors.vectors(self.query, rows_Q) + self._average_context_D
        return self._recommend(query_QD, histories, options)

    def recommend_to_histories(self, histories: Histories, options: RankingOptions) -> Rankings:
        """Rank items for queries that were not in training, by their histories.

        Raises:
            InputError: too few queries are trained to fold in others, or as for ``recommend``.
        """
        if self._new_queries is None:
            self._new_queries = new_query_vectors(self.model)
        query_QD = self._new_queries.vectors(histories)
        return self._recommend(query_QD, histories if options.exclude_known else None, options)

    def make_histories(self, items: Sequence[IntArray], weights: Sequence[FloatArray]) -> Histories:
        """Build histories from the items of each and their weights."""
        query_N = np.repeat(np.arange(len(items)), [len(item_N) for item_N in items])
        item_N = np.concatenate([np.empty(0, np.int64), *items])
        weight_N = np.concatenate([np.empty(0, np.float32), *weights])
        return make_sequences(query_N, item_N, weight_N, len(items), self.model.spec.item.rows)

    def similar(self, entity: str, rows_Q: IntArray, options: RankingOptions) -> Rankings:
        """Rank the rows of ``entity`` by their cosine with each of ``rows_Q``, int64, without itself.

        Raises:
            InputError: a condition or column is invalid, or leaves no row.
        """
        itself = ItemLists(np.arange(len(rows_Q) + 1), rows_Q)
        return self._rank(entity, "cosine", self.model.vectors.vectors(entity, rows_Q), itself, options)

    def _recommend(self, query_QD: FloatArray, histories: Histories | None, options: RankingOptions) -> Rankings:
        nothing = ItemLists(np.zeros(len(query_QD) + 1, np.int64), np.empty(0, np.int64))
        excluded = nothing if histories is None else histories.lists
        return self._rank(self.item, self.card.score, query_QD, excluded, options)

    def _rank(
        self, entity: str, metric: ScoreKind, query_QD: FloatArray, excluded: ItemLists, options: RankingOptions
    ) -> Rankings:
        key = self._key(entity, metric, options)
        if options.deny is not None and len(options.deny):
            excluded = _with_all(excluded, options.deny)
        if options.allow is None:
            return self._ranker(key).rank(query_QD, excluded, options.k)
        candidates, damping_R = self._candidates(key), self._damping(key)
        subset = RowSubset(self.model.vectors, self.tables[entity], options.allow)
        ranker = Ranker(
            subset,
            subset.table,
            _score(metric),
            subset.candidates(candidates),
            None if damping_R is None else damping_R[options.allow],
        )
        places_QK, scores_QK = ranker.rank(query_QD, subset.places(excluded), options.k)
        return subset.rows(places_QK), scores_QK

    def _key(self, entity: str, metric: ScoreKind, options: RankingOptions) -> _RankerKey:
        return _RankerKey(entity, metric, options.where, options.max_per, options.popularity_damping)

    def _ranker(self, key: _RankerKey) -> Ranker:
        with self._rankers_lock:
            ranker = self._rankers.get(key)
            if ranker is not None:
                self._rankers.move_to_end(key)
                return ranker
        ranker = self._new_ranker(key)
        with self._rankers_lock:
            self._rankers[key] = ranker
            while len(self._rankers) > _MAX_RANKERS:
                self._rankers.popitem(last=False)
        return ranker

    def _new_ranker(self, key: _RankerKey) -> Ranker:
        table, score, candidates = self.tables[key.entity], _score(key.metric), self._candidates(key)
        index = self._indexes.get(key.metric) if key.entity == self.item else None
        damping_R = self._damping(key)
        if index is not None and damping_R is None:
            return IndexRanker(index, self.model, table, score, candidates)
        return Ranker(self.model.vectors, table, score, candidates, damping_R)

    def _candidates(self, key: _RankerKey) -> Candidates:
        kept_R: BoolArray = self.trained[key.entity]
        if key.where is not None:
            kept_R = kept_R & self.metadata.rows_where(key.where)
        if not kept_R.any():
            raise InputError(f"where {key.where}: leaves no {key.entity}; expected a condition that some meet")
        if key.max_per is None:
            return Candidates(kept_R)
        groups: GroupLists = self.metadata.groups(key.max_per[0])
        return Candidates(kept_R, groups, key.max_per[1])

    def _damping(self, key: _RankerKey) -> FloatArray | None:
        return popularity_damping(self.model, key.popularity_damping) if key.popularity_damping else None


def _score(metric: ScoreKind) -> Score:
    return Score.of(metric, 1.0)


def _with_all(lists: ItemLists, rows_N: IntArray) -> ItemLists:
    """Return ``lists`` with ``rows_N`` added to each."""
    merged = [
        np.union1d(lists.items_N[start:stop], rows_N)
        for start, stop in zip(lists.starts_Q1[:-1], lists.starts_Q1[1:], strict=True)
    ]
    starts_Q1 = np.concatenate([np.zeros(1, np.int64), np.cumsum([len(list_N) for list_N in merged], dtype=np.int64)])
    return ItemLists(starts_Q1, np.concatenate([np.empty(0, np.int64), *merged]))
