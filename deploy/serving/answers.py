"""Turn requests into questions to a model, and its answers into responses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.errors import InputError, format_names
from crossfade.deploy.serving.metrics import record_unknown
from crossfade.deploy.serving.schemas import (
    HistoryItem,
    ModelDescription,
    Neighbors,
    NewRequest,
    RecommendRequest,
    Result,
    Results,
    ScoredRow,
    Vector,
    Vectors,
)
from crossfade.trainer.recommend.model import FoundRow, Rankings
from crossfade.trainer.recommend.row_names import UnknownRowError
from crossfade.trainer.serving.version import Version


class Answers:
    """The answers of one version of a model."""

    def __init__(self, opened: Version, version: int) -> None:
        """Answer from ``opened``, as ``version``."""
        self.opened, self.version = opened, version
        self._model = opened.model

    def is_quick(self, request: RecommendRequest | Neighbors) -> bool:
        """Return whether the request takes about a millisecond, so that it may be answered at once."""
        if isinstance(request, NewRequest) or len(request.ids) != 1:
            return False
        model = self._model
        if isinstance(request, Neighbors):
            return model.is_quick(model.entity(request.options.entity), "cosine", self._filtered(request))
        options = self._filtered(request)
        if request.on_unknown == "popular" and not model.knows(model.query, [str(request.ids[0])])[0]:
            return model.is_quick(model.item, "popularity", options.of_popular)
        return model.is_quick(model.item, model.score, options)

    def load_filters(self, request: RecommendRequest | Neighbors) -> Callable[[], None] | None:
        """Return what evaluates the filters and column of the request; None if they are at hand or are not used."""
        metadata, options = self.opened.metadata, self._filtered(request)
        where, column = options.where, options.max_per[0] if options.max_per else None
        if metadata.has(where, column):
            return None

        def load() -> None:
            if where is not None:
                metadata.rows_where(where)
            if column is not None:
                metadata.groups(column)

        return load

    def recommend(self, request: RecommendRequest) -> Results:
        """Recommend items.

        Raises:
            InputError: a filter or a column is invalid.
            UnknownRowError: no item of a list or history is known.
        """
        model, options = self._model, self._filtered(request)
        if isinstance(request, NewRequest):
            items, weights = zip(*map(self._read_history, request.histories), strict=True)
            rankings = model.recommend_to_histories(model.make_histories(items, weights), options)
            return self._results(model.item, [Result() for _ in items], rankings)
        found = model.find_each(model.query, [str(id) for id in request.ids])
        results, rows_Q = _as_results(request.ids, found), _usable(found)
        record_unknown(request.on_unknown, len(found) - len(rows_Q))
        if request.on_unknown == "skip":
            results = [result for result in results if result.error is None]
        elif request.on_unknown == "popular":
            rows_Q = np.array([each.row for each in found], np.int64)
            for result in results:
                result.is_fallback, result.error = result.error is not None, None
        return self._results(model.item, results, model.recommend(rows_Q, options))

    def similar(self, request: Neighbors) -> Results:
        """Rank rows by their cosine with those of the request.

        Raises:
            InputError: a filter or a column is invalid.
            UnknownRowError: there is no such entity, or no row of a list is known.
        """
        model, entity = self._model, self._model.entity(request.options.entity)
        if entity == model.query:
            others = " or ".join(name for name in model.tables if name != entity)
            raise InputError(f"entity: expected {others}; neighbors of '{entity}' are not served")
        found = model.find_each(entity, [str(id) for id in request.ids])
        rankings = model.similar(_usable(found), self._filtered(request))
        return self._results(entity, _as_results(request.ids, found), rankings)

    def vectors(self, ids: Sequence[str], entity: str | None) -> Vectors:
        """Return the vectors of rows.

        Raises:
            UnknownRowError: there is no such row or entity, or its vector is not trained.
        """
        model, name = self._model, self._model.entity(entity)
        rows_N = model.find(name, ids)
        labels = model.labels(name, rows_N.tolist())
        found = [
            Vector.model_construct(id=labels[int(row)].id, name=labels[int(row)].name, vector=vector_D.tolist())
            for row, vector_D in zip(rows_N, model.vectors(name, rows_N), strict=True)
        ]
        return Vectors.model_construct(version=self.version, entity=name, score=model.score, vectors=found)

    def describe(self) -> ModelDescription:
        """Describe the model."""
        return ModelDescription(
            version=self.version,
            date=self.opened.card.date,
            columns=self.opened.metadata.columns,
            indexes=self.opened.card.indexes,
            **self._model.describe(),
        )

    def _filtered(self, request: RecommendRequest | Neighbors) -> Any:
        """Return the options of ``request``, with the condition that its filters are met.

        Raises:
            InputError: a filter is invalid.
        """
        if not request.where:
            return request.options
        condition = self.opened.metadata.condition((each.column, each.op, each.value) for each in request.where)
        return request.options.model_copy(update={"where": condition})

    def _read_history(self, history: Sequence[HistoryItem]) -> tuple[IntArray, FloatArray]:
        """Return the rows and weights of a history; items that are unknown are left out."""
        item, weights = self._model.item, [each.get("weight", 1.0) for each in history]
        rows = self._model.files.names(item).found([str(each["id"]) for each in history])
        found = [(rows.get(str(each["id"])), weight) for each, weight in zip(history, weights, strict=True)]
        known = [(row, weight) for row, weight in found if row is not None]
        if not known:
            names = format_names(each["id"] for each in history[:3])
            raise UnknownRowError(f"histories: none of {len(history)} items is a {item}, such as {names}")
        return np.array([row for row, _ in known], np.int64), np.array([weight for _, weight in known], np.float32)

    def _results(self, entity: str, results: list[Result], rankings: Rankings) -> Results:
        """Fill in the rankings of those of ``results`` that have no error."""
        rows_QK, scores_QK = rankings
        labels = self._model.labels(entity, np.unique(rows_QK[rows_QK >= 0]).tolist())
        ranked = zip(rows_QK.tolist(), scores_QK.tolist(), strict=True)
        for result in results:
            if result.error is None:
                rows, scores = next(ranked)
                result.items = [
                    ScoredRow.model_construct(id=labels[row].id, name=labels[row].name, score=score)
                    for row, score in zip(rows, scores, strict=True)
                    if row >= 0
                ]
        return Results.model_construct(version=self.version, results=results)


def _usable(found: Sequence[FoundRow]) -> IntArray:
    return np.array([each.row for each in found if each.error is None], np.int64)


def _as_results(ids: Sequence[int | str], found: Sequence[FoundRow]) -> list[Result]:
    """Return a result for each of ``ids``, with its label, and with the error if it cannot be used."""
    return [
        Result.model_construct(
            id=each.label.id if each.label else id,
            name=each.label.name if each.label else None,
            items=[],
            error=each.error,
        )
        for id, each in zip(ids, found, strict=True)
    ]
