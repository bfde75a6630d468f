"""Turn requests into calls of a served model, and rankings into responses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.errors import InputError, format_names
from crossfade.deploy.serving.schemas import (
    EntityDescription,
    Filters,
    FoundRows,
    HistoryItem,
    KnownRequest,
    ModelDescription,
    NewRequest,
    RecommendRequest,
    Result,
    Results,
    Row,
    ScoredRow,
    SimilarRequest,
    Vector,
    Vectors,
)
from crossfade.trainer.serving.served_model import RankingOptions, Rankings, ServedModel


class UnknownRowError(InputError):
    """There is no row with an ID or name, or no entity of a name."""


@dataclass(frozen=True)
class Query:
    """An ID of a request: its row if it is known and trained, otherwise the result that says why not."""

    row: int
    result: Result


class Answers:
    """The answers of one version of a model."""

    def __init__(self, served: ServedModel, version: str) -> None:
        """Answer from ``served``, as ``version``."""
        self.served = served
        self.version = version

    def is_quick(self, request: RecommendRequest | SimilarRequest) -> bool:
        """Return whether the request takes about a millisecond, so that it may be answered at once."""
        served = self.served
        if isinstance(request, NewRequest) or len(request.ids) != 1 or request.allow or request.deny:
            return False
        if isinstance(request, KnownRequest):
            return served.is_quick(served.item, served.card.score, _options(request))
        return served.is_quick(request.entity or served.item, "cosine", _options(request))

    def load_filters(self, request: RecommendRequest | SimilarRequest) -> Callable[[], None] | None:
        """Return what evaluates the condition and column of the request; None if they are at hand or are not used."""
        metadata, where = self.served.metadata, request.where
        column = request.max_per.column if request.max_per else None
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
            InputError: a condition or a column is invalid.
            UnknownRowError: no item of a list or history is known.
        """
        served, options = self.served, self._with_lists(_options(request), request, self.served.item)
        if isinstance(request, NewRequest):
            items, weights = zip(*map(self._read_history, request.histories), strict=True)
            rankings = served.recommend_to_histories(served.make_histories(items, weights), options)
            return self._results(served.item, [Result() for _ in items], rankings)
        queries = [self._find(served.query, id) for id in request.ids]
        known_Q = _rows_of(queries)
        rankings = served.recommend(known_Q, options)
        return self._results(served.item, [query.result for query in queries], rankings)

    def similar(self, request: SimilarRequest) -> Results:
        """Rank rows by their cosine with those of the request.

        Raises:
            InputError: a condition or a column is invalid.
            UnknownRowError: there is no such entity, or no row of a list is known.
        """
        entity = self.entity(request.entity)
        if entity == self.served.query:
            raise InputError(f"entity: expected {self._entities(entity)}; neighbors of '{entity}' are not served")
        if entity != self.served.item and (request.where is not None or request.max_per is not None):
            raise InputError(f"where and max_per: expected the entity '{self.served.item}', but found '{entity}'")
        options = self._with_lists(_options(request), request, entity)
        queries = [self._find(entity, id) for id in request.ids]
        rankings = self.served.similar(entity, _rows_of(queries), options)
        return self._results(entity, [query.result for query in queries], rankings)

    def vectors(self, ids: Sequence[str], entity: str | None) -> Vectors:
        """Return the vectors of rows.

        Raises:
            UnknownRowError: there is no such row or entity, or its vector is not trained.
        """
        name = self.entity(entity)
        queries = [self._find(name, id) for id in ids]
        for query in queries:
            if query.result.error is not None:
                raise UnknownRowError(query.result.error)
        rows_N = _rows_of(queries)
        vectors_ND = self.served.model.vectors.vectors(name, rows_N)
        labels = self.served.names.labels(name, rows_N.tolist())
        found = [
            Vector.model_construct(id=labels[int(row)].id, name=labels[int(row)].name, vector=vector_D.tolist())
            for row, vector_D in zip(rows_N, vectors_ND, strict=True)
        ]
        return Vectors.model_construct(version=self.version, entity=name, score=self.served.card.score, vectors=found)

    def search(self, text: str, k: int, entity: str | None) -> FoundRows:
        """Find rows by the first letters of words of their names or, without one, of their IDs.

        Raises:
            UnknownRowError: there is no such entity.
        """
        name = self.entity(entity)
        rows = self.served.names.search(name, text, k)
        labels = self.served.names.labels(name, rows)
        found = [Row.model_construct(id=labels[row].id, name=labels[row].name) for row in rows]
        return FoundRows.model_construct(version=self.version, entity=name, rows=found)

    def describe(self) -> ModelDescription:
        """Describe the model."""
        served = self.served
        entities = {
            name: EntityDescription(
                rows=table.rows, dim=table.dim, has_names=served.model.manifest.entities[name].has_names
            )
            for name, table in served.tables.items()
        }
        return ModelDescription(
            version=self.version,
            job=served.card.job,
            model=served.card.model,
            date=served.card.date,
            score=served.card.score,
            query=served.query,
            item=served.item,
            entities=entities,
            columns=served.metadata.columns,
            indexes=served.card.indexes,
        )

    def entity(self, name: str | None) -> str:
        """Return ``name``, or the item entity for None.

        Raises:
            UnknownRowError: there is no such entity.
        """
        if name is not None and name not in self.served.tables:
            raise UnknownRowError(f"there is no entity '{name}'; expected {self._entities()}")
        return name or self.served.item

    def _entities(self, without: str | None = None) -> str:
        return " or ".join(name for name in self.served.tables if name != without)

    def _find(self, entity: str, id: int | str) -> Query:
        """Find the row of ``id``, with its label."""
        row = self.served.names.find(entity, str(id))
        if row is None:
            return Query(-1, Result(id=id, error=f"there is no {entity} with the ID or name '{id}'"))
        label = self.served.names.labels(entity, [row])[row]
        found = Result.model_construct(id=label.id, name=label.name, items=[], error=None)
        if not self.served.trained[entity][row]:
            found.error = (
                f"{entity} '{id}' has no interaction of positive weight in train, so its vector is not trained"
            )
            return Query(-1, found)
        return Query(row, found)

    def _read_history(self, history: Sequence[HistoryItem]) -> tuple[IntArray, FloatArray]:
        """Return the rows and weights of a history; items that are unknown are left out."""
        found = [
            (self.served.names.find(self.served.item, str(each["id"])), each.get("weight", 1.0)) for each in history
        ]
        known = [(row, weight) for row, weight in found if row is not None]
        if not known:
            names = format_names(each["id"] for each in history[:3])
            raise UnknownRowError(f"histories: none of {len(history)} items is a {self.served.item}, such as {names}")
        rows, weights = zip(*known, strict=True)
        return np.array(rows, np.int64), np.array(weights, np.float32)

    def _with_lists(self, options: RankingOptions, request: Filters, entity: str) -> RankingOptions:
        if not request.allow and not request.deny:
            return options
        allow_P, deny_N = (
            np.unique(
                np.array([row for id in ids if (row := self.served.names.find(entity, str(id))) is not None], np.int64)
            )
            for ids in (request.allow, request.deny)
        )
        if request.allow and not len(allow_P):
            raise UnknownRowError(f"allow: none of {len(request.allow)} IDs is one of {entity}")
        return RankingOptions(**{**vars(options), "allow": allow_P if request.allow else None, "deny": deny_N})

    def _results(self, entity: str, results: list[Result], rankings: Rankings) -> Results:
        """Fill in the rankings of those of ``results`` that have no error."""
        rows_QK, scores_QK = rankings
        labels = self.served.names.labels(entity, np.unique(rows_QK[rows_QK >= 0]).tolist())
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


def _options(request: Filters) -> RankingOptions:
    max_per = (request.max_per.column, request.max_per.count) if request.max_per else None
    options = RankingOptions(k=request.k, where=request.where, max_per=max_per)
    if isinstance(request, KnownRequest | NewRequest):
        more = {"exclude_known": request.exclude_known, "popularity_damping": request.popularity_damping}
        return RankingOptions(**{**vars(options), **more})
    return options


def _rows_of(queries: Sequence[Query]) -> IntArray:
    return np.array([query.row for query in queries if query.result.error is None], np.int64)
