"""Recommend items of a trained model to its queries.

    recommender = Recommender(model, RecommendOptions(count=10), NullReporter())
    recommendations = recommender.for_rows(np.array([5]))
    recommendations.item_QK, recommendations.score_QK

Shapes: Q queries, K ranks, R rows, D columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import get_args

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.trainer.config.schema import SplitName
from crossfade.trainer.config.sections import resolved
from crossfade.trainer.data.lineage import LineageReader
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.embeddings.query_vectors import query_vectors
from crossfade.trainer.recommend.candidates import FilterOptions, select_candidates
from crossfade.trainer.recommend.context import average_context
from crossfade.trainer.recommend.history import Histories, load_histories
from crossfade.trainer.recommend.index_search import IndexRanker, open_index
from crossfade.trainer.recommend.new_queries import new_query_vectors
from crossfade.trainer.recommend.ranker import Ranker
from crossfade.trainer.recommend.trained_model import TrainedModel

ALL_SPLITS: tuple[SplitName, ...] = get_args(SplitName)


@dataclass(frozen=True)
class RecommendOptions:
    """How to recommend.

    Attributes:
        count: items for each query.
        exclude: splits whose items are left out for the queries that interacted with them, whatever the weight; with
            any, so are the items that they interacted with in base datasets.
        popularity_damping: α of Recommender, at least 0.
        filters: the items that may be recommended.
        index: the folder of an index of the items, to rank by instead of exactly, without popularity damping.
        context: rows of the context that recommendations are for, by entity; those left out add their average.
    """

    count: int = 10
    exclude: Sequence[SplitName] = ALL_SPLITS
    popularity_damping: float = 0.0
    filters: FilterOptions = field(default_factory=FilterOptions)
    index: str | None = None
    context: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Recommendations:
    """Items for queries.

    Attributes:
        item_QK: rows of the items, best first, int64; -1 where there are fewer.
        score_QK: their scores, float32, less the popularity damping.
        histories: what each query has interacted with in all splits, and in base datasets.
    """

    item_QK: IntArray
    score_QK: FloatArray
    histories: Histories


class Recommender:
    """Ranks a model's items for its queries.

    Items without a positive interaction in train, which training has not moved, are candidates only in a model with
    features of items. An item's score is s − α·T·log(1 + c), where s is the model's score, T its temperature, and c the
    item's interactions of positive weight in train. For a softmax model, s/T estimates log p(item | query) up to a
    constant, so that α = 1 ranks by p(item | query) / p(item), the lift, and 0 < α < 1 lies between.
    """

    def __init__(self, model: TrainedModel, options: RecommendOptions, reporter: ProgressReporter) -> None:
        """Select the candidates of ``model`` by ``options``; report progress to ``reporter``.

        Raises:
            InputError: a filter is invalid, or leaves no item, or the index is missing or another one.
        """
        self._model = model
        self._options = options
        self._reporter = reporter
        spec, entity = model.spec, model.spec.item.name
        candidates = select_candidates(model.data, model.manifest, entity, options.filters, model.counts)
        candidates = replace(candidates, kept_R=candidates.kept_R & model.trained_rows(spec.item))
        if options.index is not None:
            assert not options.popularity_damping
            index = open_index(Path(options.index), model, entity, model.job.model.score)
            self.ranker: Ranker = IndexRanker(index, model, spec.item, model.score, candidates)
            return
        damping_R = popularity_damping(model, options.popularity_damping) if options.popularity_damping else None
        self.ranker = Ranker(model.vectors, spec.item, model.score, candidates, damping_R)

    def for_rows(self, queries_Q: IntArray) -> Recommendations:
        """Recommend to ``queries_Q``, int64, sorted and unique.

        Raises:
            InputError: the dataset cannot be read.
            CheckpointError: the checkpoint is corrupt or cannot be read.
        """
        with closing(self._model.open_lineage()) as lineage:
            excluded = self.load_histories(lineage, queries_Q, self._options.exclude)
            histories = excluded
            if set(self._options.exclude) != set(self._model.manifest.splits):
                histories = self.load_histories(lineage, queries_Q, ALL_SPLITS)
        return self.rank(self.query_vectors(queries_Q), excluded, histories)

    def query_vectors(self, queries_Q: IntArray) -> FloatArray:
        """Return the vectors of ``queries_Q``, int64, sorted and unique, in the context of the options."""
        model, context = self._model, self._options.context
        rows = {table.name: np.full(len(queries_Q), context.get(table.name, -1)) for table in model.spec.context}
        query_QD: FloatArray = query_vectors(model.vectors, model.spec, queries_Q, rows) + self._average_context_D
        return query_QD

    @cached_property
    def _average_context_D(self) -> FloatArray:
        return average_context(self._model, self._options.context)

    def for_histories(self, histories: Histories) -> Recommendations:
        """Recommend to queries that were not in training, or have interacted since, by their histories.

        Raises:
            InputError: too few queries are trained.
            CheckpointError: the checkpoint is corrupt or cannot be read.
        """
        vectors = new_query_vectors(self._model)
        self._reporter.phase("fold in", len(histories.lists.starts_Q1) - 1, self._model.spec.query.name)
        query_QD = vectors.vectors(histories, lambda: self._reporter.advance(1))
        return self.rank(query_QD, histories if self._options.exclude else histories.without_items(), histories)

    def load_histories(self, lineage: LineageReader, queries_Q: IntArray, splits: Sequence[SplitName]) -> Histories:
        """Load the histories of ``queries_Q`` from ``splits``, and from the base datasets."""
        return load_histories(lineage, splits, queries_Q, self._reporter)

    def rank(self, query_QD: FloatArray, excluded: Histories, histories: Histories) -> Recommendations:
        """Recommend to queries with the vectors ``query_QD``, without the items in ``excluded``."""
        item_QK, score_QK = self.ranker.rank(query_QD, excluded.lists, self._options.count)
        return Recommendations(item_QK, score_QK, histories)


def popularity_damping(model: TrainedModel, damping: float) -> FloatArray:
    """Return α·T·log(1 + c) of each item, with ``damping`` as α (see ``Recommender``): float32 (R,)."""
    scale = damping * resolved(model.job.model.temperature)
    damping_R: FloatArray = (scale * np.log1p(model.counts(model.spec.item.name))).astype(np.float32)
    return damping_R
