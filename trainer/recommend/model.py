"""The one model that answers: recommendations, neighbors, vectors, and rows by ID or name.

    with closing(open_model(ModelSource.of(source="runs/lastfm"), print)) as opened:
        rankings = opened.use(lambda model: model.recommend(model.find("listener", ["2"]), RecommendOptions.of(k=5)))

Commands, Python, ``crossfade serve``, and the page Explore ask it. It reads vectors and the dataset of a run or
checkpoint where they are (``RunFiles``), or a copy of all that answers need (``trainer/serving/version.py``).

Shapes: Q queries, K ranks, R rows of an entity, N rows of a list, D columns.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Hashable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from crossfade.base.arrays import BoolArray, FloatArray, IntArray
from crossfade.base.errors import InputError, Option, OptionError, format_names
from crossfade.base.options import alternatives
from crossfade.trainer.config.score import ScoreKind
from crossfade.trainer.data.jagged_array import JaggedArray
from crossfade.trainer.data.reporter import NullReporter, ProgressReporter
from crossfade.trainer.data.split_names import ALL_SPLITS, SplitName
from crossfade.trainer.embeddings.checkpoint_source import Log
from crossfade.trainer.embeddings.query_vectors import query_vectors, vectors_of_rows
from crossfade.trainer.model.spec import Score
from crossfade.trainer.recommend.candidates import Candidates, filter_rows
from crossfade.trainer.recommend.fold_in import FoldIn, HistoryMeans, new_query_vectors
from crossfade.trainer.recommend.history import Histories, load_histories, new_histories
from crossfade.trainer.recommend.options import FilterOptions, RankingOptions, RecommendOptions, SimilarOptions
from crossfade.trainer.recommend.ranker import CountVectors, Ranker
from crossfade.trainer.recommend.reranking import Reranking
from crossfade.trainer.recommend.row_names import RowLabel, RowLookup, RowNames, UnknownRowError, untrained
from crossfade.trainer.recommend.trained_model import OpenModel, TrainedModel
from crossfade.trainer.recommend.vector_index import IndexRanker, VectorIndex, open_index
from crossfade.trainer.runs.options import ModelSource

_QUICK_VALUES, _LEAST_DIM = 1 << 19, 32
"""Values of a table that one thread ranks exactly in about a millisecond; rows of fewer columns take as long as 32."""
_MAX_RANKERS = 64
"""Rankers for conditions, limits per group, and damping that are kept, those that were used last."""
_KEPT_INTERACTIONS = 1 << 24
"""Interactions of all queries up to which a model that is asked repeatedly keeps them in memory."""
_SILENT = NullReporter()
Metric = ScoreKind | Literal["popularity"]
"""What rows are ranked by: a score of vectors, or how often they occur in train with a positive weight."""


class Rankings(NamedTuple):
    """Rows, best first, int64, -1 where there are fewer, and their scores, float32."""

    rows_QK: IntArray
    scores_QK: FloatArray


@dataclass(frozen=True)
class FoundRow:
    """What a text, an ID or name, stands for.

    Attributes:
        row: the row, or -1.
        label: its ID and name; None without a row.
        error: why the row cannot be used: there is none, or its vector is not trained.
    """

    row: int
    label: RowLabel | None = None
    error: str | None = None


class ModelFiles(Protocol):
    """What a model reads besides vectors, from a run and its dataset or from a copy of them."""

    def names(self, entity: str) -> RowLookup:
        """Return the IDs and names of ``entity``."""

    def histories(self, rows_Q: IntArray, splits: Sequence[SplitName], reporter: ProgressReporter) -> Histories:
        """Return the histories of ``rows_Q``, in any order, from ``splits`` and, with any, from base datasets."""

    def candidates(self, entity: str, options: FilterOptions) -> Candidates:
        """Return the rows that meet the condition of ``options``, and their groups."""

    def index(self, entity: str, metric: ScoreKind, options: RankingOptions) -> VectorIndex | None:
        """Return the index to search, if there is one."""


class RunFiles:
    """Reads the dataset, and its base datasets, of a run or checkpoint."""

    def __init__(self, trained: TrainedModel) -> None:
        """Read what belongs to ``trained``."""
        self._trained = trained
        self._kept: dict[tuple[frozenset[str], bool], Histories] = {}
        self._last: tuple[object, Histories] | None = None

    def names(self, entity: str) -> RowLookup:
        """Return the IDs and names of ``entity``, in its vocabulary."""
        return RowNames(self._trained.vocabulary(entity), entity)

    def histories(self, rows_Q: IntArray, splits: Sequence[SplitName], reporter: ProgressReporter) -> Histories:
        """Return the histories of ``rows_Q``; a model that is kept reads those of all queries once, if they fit."""
        key = frozenset(splits) & set(self._trained.manifest.splits), bool(splits)
        if key in self._kept:
            return self._kept[key].take(rows_Q)
        if self._last is not None and self._last[0] == (key, rows_Q.tobytes()):
            return self._last[1]
        with closing(self._trained.open_lineage()) as lineage:
            if self._trained.keep and lineage.known_rows(splits) <= _KEPT_INTERACTIONS:
                everyone_Q = np.arange(self._trained.spec.query.rows)
                self._kept[key] = load_histories(lineage, splits, everyone_Q, reporter)
                return self._kept[key].take(rows_Q)
            sorted_Q, place_Q = np.unique(rows_Q, return_inverse=True)
            histories = load_histories(lineage, splits, sorted_Q, reporter).take(place_Q)
        self._last = (key, rows_Q.tobytes()), histories
        return histories

    def candidates(self, entity: str, options: FilterOptions) -> Candidates:
        """Return the rows that meet the condition of ``options``, and their groups."""
        return filter_rows(self._trained, entity, options)

    def index(self, entity: str, metric: ScoreKind, options: RankingOptions) -> VectorIndex | None:
        """Return the index that ``options`` name."""
        return None if options.index is None else open_index(Path(options.index), self._trained, entity, metric)


@dataclass(frozen=True)
class Selection:
    """The rows that options select, to be ranked for any number of queries.

    Attributes:
        ranker: ranks them.
        reranking: how to choose the rows of a list from its best; None: it has the best.
    """

    ranker: Ranker
    reranking: Reranking | None = None

    def rank(self, query_QD: FloatArray, excluded: JaggedArray, k: int) -> Rankings:
        """Return ``k`` rows for each of ``query_QD``, float32, without those ``excluded`` for it."""
        if self.reranking is None:
            return Rankings(*self.ranker.rank(query_QD, excluded, k))
        best = self.ranker.rank(query_QD, excluded, self.reranking.options.depth(k), k)
        return Rankings(*self.reranking.choose(*best, k, self.ranker.source, self.ranker.table))


class Model:
    """A trained model, opened: it keeps what it has read for the next answer.

    A row without an interaction of positive weight in train, which training has not moved, is neither a query nor a
    candidate, unless it has features. Lists of items may be re-ranked (``trainer/recommend/reranking.py``).

    ``is_quick`` states which requests take about a millisecond. The others must come from one thread at a time, while
    another thread may ask quick ones.
    """

    def __init__(self, trained: TrainedModel, files: ModelFiles | None = None, log: Log | None = None) -> None:
        """Answer by ``trained``.

        Args:
            trained: the vectors, the job, and the dataset.
            files: names, histories, metadata, and indexes; None: those of the dataset.
            log: gets a line for each name that several rows have.
        """
        self.trained = trained
        self.files = files or RunFiles(trained)
        self._log = log
        self.query, self.item = trained.spec.query.name, trained.spec.item.name
        self.tables = {table.name: table for table in trained.spec.vectors}
        self.score: ScoreKind = trained.job.model.score
        self.trained_rows = cache(trained.trained_rows)
        """Returns which rows of an entity have an ID and a trained vector, bool (R,)."""
        self._rankers: OrderedDict[Hashable, Ranker] = OrderedDict()
        # Requests are answered in the event loop and in another thread.
        self._rankers_lock = threading.Lock()
        self._average_context = cache(trained.average_context)

    def prepare(self) -> None:
        """Read what the first answers need, so that they are quick."""
        for entity in self.tables:
            self.trained_rows(entity)
        self._average_context(frozenset())
        self._ranker(self.item, self.score, RecommendOptions())
        self._ranker(self.item, "popularity", RankingOptions())

    def entity(self, name: str | None) -> str:
        """Return ``name``, or the item entity for None.

        Raises:
            UnknownRowError: the model has no vectors of it.
        """
        if name is not None and name not in self.tables:
            raise UnknownRowError(f"there is no entity '{name}'; expected {' or '.join(self.tables)}")
        return name or self.item

    def find_each(self, entity: str, texts: Sequence[str]) -> list[FoundRow]:
        """Find the row of each of ``texts``, IDs or names; errors are part of the answer."""
        names, trained_R = self.files.names(entity), self.trained_rows(entity)
        rows = names.found(texts, self._log)
        labels, found = names.labels(rows.values()), []
        for text in texts:
            row = rows.get(text)
            if row is None:
                found.append(FoundRow(-1, None, names.describe_unknown([text])))
            else:
                found.append(FoundRow(row, labels[row], None if trained_R[row] else untrained(entity, [text])))
        return found

    def find(self, entity: str, texts: Sequence[str], *, trained: bool = True) -> IntArray:
        """Return the rows of ``texts``, IDs or names, int64 (N,), which must have trained vectors if ``trained``.

        Raises:
            UnknownRowError: some are unknown, or their vectors are not trained; the message lists them.
        """
        names, distinct = self.files.names(entity), dict.fromkeys(texts)
        rows = names.found(texts, self._log)
        if missing := [text for text in distinct if text not in rows]:
            raise UnknownRowError(names.describe_unknown(missing))
        if trained and (missing := [text for text in distinct if not self.trained_rows(entity)[rows[text]]]):
            raise UnknownRowError(untrained(entity, missing))
        return np.array([rows[text] for text in texts], np.int64)

    def knows(self, entity: str, texts: Sequence[str]) -> BoolArray:
        """Return which of ``texts``, IDs or names, ``find`` accepts, bool (N,)."""
        rows, trained_R = self.files.names(entity).found(texts), self.trained_rows(entity)
        return np.array([text in rows and bool(trained_R[rows[text]]) for text in texts])

    def labels(self, entity: str, rows: Collection[int]) -> dict[int, RowLabel]:
        """Return the labels of ``rows``, in any order; a vacant row has none, or one without an ID."""
        return self.files.names(entity).labels(rows)

    def ids(self, entity: str, rows_N: IntArray, column: str = "id") -> pa.Array:
        """Return the IDs of ``rows_N``, or another ``column`` of the vocabulary, in any order."""
        return self.trained.vocabulary(entity).values(rows_N, column)

    @cached_property
    def item_columns(self) -> dict[str, pa.Array]:
        """The IDs and, if there are, names of all items, by row."""
        items = self.trained.vocabulary(self.item)
        table = items.read(0, items.rows, [name for name in items.columns if name != "row"])
        return {name: table.column(name).combine_chunks() for name in table.column_names}

    def histories(
        self, rows_Q: IntArray, splits: Sequence[SplitName] = ALL_SPLITS, reporter: ProgressReporter = _SILENT
    ) -> Histories:
        """Return what queries have interacted with in ``splits``, and with any of these, in base datasets."""
        return self.files.histories(rows_Q, splits, reporter)

    def make_histories(self, items: Sequence[IntArray], weights: Sequence[FloatArray]) -> Histories:
        """Build the histories of new queries from the items of each, the oldest first, and their weights."""
        return new_histories(items, weights, self.tables[self.item].rows)

    def vectors(self, entity: str, rows_N: IntArray) -> FloatArray:
        """Return the vectors of ``rows_N``, in any order, float32 (N, D)."""
        return vectors_of_rows(self.trained.vectors, entity, rows_N)

    def has_vector(self, rows_Q: IntArray) -> BoolArray:
        """Return which of the queries ``rows_Q``, -1 where an ID has no row, have a trained vector, bool (Q,)."""
        found_Q: BoolArray = (rows_Q >= 0) & self.trained_rows(self.query)[rows_Q]
        return found_Q

    def recommend(self, rows_Q: IntArray, options: RecommendOptions, reporter: ProgressReporter = _SILENT) -> Rankings:
        """Rank items for the queries ``rows_Q``, int64, in any order; without a trained vector, see ``rank``.

        Raises:
            CheckpointError: the checkpoint is corrupt or cannot be read.
            InputError: an option is invalid or leaves no item, or the dataset cannot be read.
        """
        selection = self.select_items(options)
        excluded = JaggedArray.empty(len(rows_Q))
        if options.exclude:
            excluded = self.histories(rows_Q, options.exclude, reporter).lists
        return self.rank(selection, rows_Q, excluded, options)

    def rank(
        self, selection: Selection, rows_Q: IntArray, excluded: JaggedArray, options: RecommendOptions
    ) -> Rankings:
        """Rank the items of ``selection``, which ``options`` make, without those ``excluded`` for each of ``rows_Q``.

        Queries without a trained vector, -1 among them, get the most popular items that the filters keep, and as scores
        their counts.
        """
        known_Q = self.has_vector(rows_Q)
        if known_Q.all():
            return selection.rank(self.query_vectors(rows_Q, options), excluded, options.k)
        popular = self._select(self.item, "popularity", options.of_popular)
        one_QD = np.ones((len(rows_Q) - np.count_nonzero(known_Q), 1), np.float32)
        ranked = popular.rank(one_QD, excluded.take(np.flatnonzero(~known_Q)), options.k)
        rows_QK = np.full((len(rows_Q), ranked.rows_QK.shape[1]), -1)
        scores_QK = np.full(rows_QK.shape, -np.inf, np.float32)
        rows_QK[~known_Q], scores_QK[~known_Q] = ranked
        if known_Q.any():
            ranked = self.rank(selection, rows_Q[known_Q], excluded.take(np.flatnonzero(known_Q)), options)
            width = ranked.rows_QK.shape[1]  # less, if an index has fewer rows
            rows_QK[known_Q, :width], scores_QK[known_Q, :width] = ranked
        return Rankings(rows_QK, scores_QK)

    def recommend_to_histories(self, histories: Histories, options: RecommendOptions) -> Rankings:
        """Rank items for queries that were not in training, or have interacted since, by their histories.

        Raises:
            InputError: too few queries are trained to fold in others, or as for ``recommend``.
        """
        options.check_for_histories()
        selection, query_QD = self.select_items(options), self._new_queries.vectors(histories)
        excluded = histories.lists if options.exclude else JaggedArray.empty(len(query_QD))
        return selection.rank(query_QD, excluded, options.k)

    def similar(self, rows_Q: IntArray, options: SimilarOptions) -> Rankings:
        """Rank the rows of an entity by their cosine with each of ``rows_Q``, int64, without itself.

        Raises:
            CheckpointError: the checkpoint is corrupt or cannot be read.
            InputError: an option is invalid, or leaves no row.
        """
        entity = self.entity(options.entity)
        selection = self._select(entity, "cosine", options)
        itself = JaggedArray(np.arange(len(rows_Q) + 1), rows_Q)
        return selection.rank(self.vectors(entity, rows_Q), itself, options.k)

    def describe(self) -> dict[str, Any]:
        """Describe the model: its job, score, and the entities that have vectors."""
        entities = self.trained.manifest.entities
        sizes = {
            name: {"rows": table.rows, "dim": table.dim, "has_names": entities[name].has_names}
            for name, table in self.tables.items()
        }
        return {
            "job": self.trained.job.name,
            "model": self.trained.uri,
            "score": self.score,
            "popularity": None if self.trained.popularity is None else self.trained.popularity.card.model_dump(),
            "query": self.query,
            "item": self.item,
            "entities": sizes,
        }

    def query_vectors(self, rows_Q: IntArray, options: RecommendOptions) -> FloatArray:
        """Return the vectors of ``rows_Q`` in the context of ``options``, and the average of other context."""
        given = self._find_context(options.context)
        tables = self.trained.spec.context if given else ()
        context = {table.name: np.full(len(rows_Q), given.get(table.name, -1)) for table in tables}
        query_QD = query_vectors(self.trained.vectors, self.trained.spec, rows_Q, context)
        return np.asarray(query_QD + self._average_context(frozenset(given)), np.float32)

    def _find_context(self, context: Sequence[tuple[str, str]]) -> dict[str, int]:
        """Return the row of the value, an ID or name, of each entity in ``context``."""
        known = [table.name for table in self.trained.spec.context]
        rows = {}
        for entity, text in context:
            if entity not in known:
                found = f"its context is {', '.join(known)}" if known else "its queries have no context"
                problem = f"{self.trained.uri} has no context '{entity}'; {found}"
                raise OptionError("context", found=f"{entity}={text}", problem=problem)
            try:
                rows[entity] = int(self.find(entity, [text], trained=False)[0])
            except InputError as error:
                raise OptionError("context", found=f"{entity}={text}", problem=str(error)) from None
        return rows

    @cached_property
    def _new_queries(self) -> FoldIn | HistoryMeans:
        return new_query_vectors(self.trained)

    def is_quick(self, entity: str, metric: Metric, options: RankingOptions) -> bool:
        """Return whether one query takes about a millisecond: by an index or a small table, without metadata."""
        if options.allow or options.deny or options.max_per is not None:
            return False
        ranker, table = self._rankers.get(_key(entity, metric, options)), self.tables[entity]
        chosen = options.depth(options.k) if isinstance(options, RecommendOptions) and options.chooses else 0
        if options.k * chosen * table.dim > _QUICK_VALUES:
            return False
        is_small = table.rows * max(table.dim, _LEAST_DIM) <= _QUICK_VALUES
        return isinstance(ranker, IndexRanker) or (ranker is not None and is_small)

    def select_items(self, options: RecommendOptions) -> Selection:
        """Select the items that ``options`` keep.

        Raises:
            InputError: a filter is invalid, or leaves no item, or the index is missing or another one.
        """
        selection = self._select(self.item, self.score, options)
        if not options.chooses:
            return selection
        return replace(selection, reranking=Reranking.of(options, self.trained.job))

    def _select(self, entity: str, metric: Metric, options: RankingOptions) -> Selection:
        if not options.allow and not options.deny:
            return Selection(self._ranker(entity, metric, options))
        return Selection(self._new_ranker(entity, metric, options))

    def _ranker(self, entity: str, metric: Metric, options: RankingOptions) -> Ranker:
        key = _key(entity, metric, options)
        with self._rankers_lock:
            ranker = self._rankers.get(key)
            if ranker is not None:
                self._rankers.move_to_end(key)
                return ranker
        ranker = self._new_ranker(entity, metric, options)
        with self._rankers_lock:
            self._rankers[key] = ranker
            while len(self._rankers) > _MAX_RANKERS:
                self._rankers.popitem(last=False)
        return ranker

    def _new_ranker(self, entity: str, metric: Metric, options: RankingOptions) -> Ranker:
        candidates, table, source = self.candidates(entity, options), self.tables[entity], self.trained.vectors
        # One ranker for each entity and metric keeps vectors; clients may request any number of others.
        keep_vectors = not (options.where or options.max_per or options.allow or options.deny)
        if metric == "popularity":
            counts, table = CountVectors(self.trained.counts(entity)), replace(table, dim=1)
            return Ranker(counts, table, Score.of("dot", 1.0), candidates, keep_vectors=keep_vectors)
        score, searched_by = Score.of(metric, 1.0), metric
        if isinstance(options, RecommendOptions):
            score, searched_by = self.trained.score, self.trained.ranking_metric
            if options.popularity_damping:
                damping_R = Reranking.of(options, self.trained.job).damping(self.trained.counts(self.item))
                return Ranker(source, table, score, candidates, damping_R)
        index = self.files.index(entity, searched_by, options)
        if index is not None:
            return IndexRanker(index, source, table, score, candidates)
        return Ranker(source, table, score, candidates, keep_vectors=keep_vectors)

    def candidates(self, entity: str, options: FilterOptions) -> Candidates:
        """Return the rows of ``entity`` that have trained vectors and that the filters of ``options`` keep.

        Raises:
            InputError: a filter is invalid, or the condition leaves no row.
            UnknownRowError: none of the allowed IDs has a row; others without one have no effect.
        """
        candidates = self.files.candidates(entity, options)
        kept_R = candidates.kept_R & self.trained_rows(entity)
        if options.where is not None and not kept_R.any():
            raise InputError(
                f"the filters leave no {entity}: relax ", alternatives(map(Option, ("where", "allow", "deny")))
            )
        names = self.files.names(entity)
        if options.allow:
            allow_N, unknown = names.rows_of(options.allow)
            if not len(allow_N):
                none = f": none of its {len(unknown)} IDs is one of {entity}: {format_names(unknown[:3])}"
                raise UnknownRowError(Option("allow"), none)
            kept_R &= np.isin(np.arange(len(kept_R)), allow_N)
        if options.deny:
            deny_N, unknown = names.rows_of(options.deny)
            kept_R[deny_N] = False
            if unknown and not len(deny_N) and self._log is not None:
                self._log(f"none of the {len(unknown):,} denied IDs is one of {entity}")
        return replace(candidates, kept_R=kept_R)


def open_model(source: ModelSource, log: Log, *, keep: bool = False) -> OpenModel[Model]:
    """Return the model at ``source``, which opens when it is used; ``log`` and ``keep`` as of ``OpenModel``."""
    return OpenModel(source, log, lambda trained: Model(trained, log=log), keep=keep)


def _key(entity: str, metric: Metric, options: RankingOptions) -> Hashable:
    """Return what a ranker depends on; without a popularity damping, it is not one of recommendations."""
    damping = options.popularity_damping if isinstance(options, RecommendOptions) else None
    return entity, metric, options.where, options.metadata, options.max_per, damping, options.index
