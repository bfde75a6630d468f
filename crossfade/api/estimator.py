"""A recommender by the conventions of scikit-learn, for its search over hyperparameters.

from sklearn.model_selection import GridSearchCV

search = GridSearchCV(Recommender(query="user", item="artist"), {"dim": [32, 64]}, cv=3).fit(plays)
"""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crossfade.api.fit import fit
from crossfade.api.frames import open_batches
from crossfade.api.model import Model, Opened
from crossfade.base.arrays import IntArray
from crossfade.base.errors import InputError
from crossfade.trainer.prepare.option_values import EntityColumn
from crossfade.trainer.recommend.options import OnUnknown, RecommendOptions
from crossfade.trainer.recommend.trained_model import TrainedModel

try:
    from sklearn.base import BaseEstimator
except ImportError:
    BaseEstimator = object  # what it adds is for scikit-learn's own tools

_NOTHING_TO_SCORE = "X: no event has a known query with a known item that is new to it; expected at least one"
_OF_FIT = ("query", "item", "weight", "timestamp", "read", "dim", "epochs", "seed", "settings")


class Recommender(BaseEstimator):  # type: ignore[misc]
    """Trains embeddings, and recommends items to queries: ``crossfade.fit`` as an estimator.

    The parameters are those of ``crossfade.fit``, and ``k``, the depth of ``predict`` and ``score``. All events that
    ``fit`` receives are trained on, so that a search over hyperparameters alone decides what is held out.

    Attributes:
        model_: the model, after ``fit``.
    """

    model_: Model

    def __init__(
        self,
        query: str = "user",
        item: str = "item",
        *,
        k: int = 10,
        weight: str | None = None,
        timestamp: str | None = None,
        read: Mapping[str, Any] | None = None,
        dim: int = 64,
        epochs: int | None = None,
        seed: int = 1,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep the parameters, as scikit-learn asks; ``fit`` checks them."""
        self.query, self.item, self.k = query, item, k
        self.weight, self.timestamp, self.read = weight, timestamp, read
        self.dim, self.epochs, self.seed, self.settings = dim, epochs, seed, settings

    def fit(self, X: Any, y: object = None) -> Self:
        """Train on ``X``, events as ``crossfade.fit`` takes them; ``y`` is ignored, as events have no target.

        Raises:
            InputError: a column, an event, or a setting is invalid.
        """
        self.model_ = fit(X, valid=None, progress=False, **{name: getattr(self, name) for name in _OF_FIT})
        return self

    def predict(self, X: Any, *, on_unknown: OnUnknown = "error") -> Any:
        """Return the ``k`` best new items of each query in ``X``, a table with the column of queries.

        ``on_unknown``: what a query that was not in training gets, as of ``Model.recommend``.

        Raises:
            InputError: ``X`` is no such table or has no row, a query was not in training, or ``fit`` was not called.
        """
        model = self._fitted()
        column = EntityColumn.parse(self.query).column
        queries = open_batches(X, {"query": column}, "X").read_all().column(column)
        return model.recommend(pc.unique(queries).to_pylist(), k=self.k, on_unknown=on_unknown)

    def score(self, X: Any, y: object = None) -> float:
        """Return the mean recall@k of the events in ``X``, over the queries that were in training.

        Events whose query or item was not in training, or which were in training too, are left out. Recall is the share
        of a query's other items that are among its ``k`` best, of at most ``k``.

        Raises:
            InputError: ``X`` is no table of events, no event is left, or ``fit`` was not called.
        """
        model = self._fitted()
        columns = {"query": EntityColumn.parse(self.query).column, "item": EntityColumn.parse(self.item).column}
        events = open_batches(X, columns, "X").read_all()
        query, item = (events.column(column) for column in columns.values())
        return model.use(lambda opened: _recall(opened, query, item, self.k))

    def _fitted(self) -> Model:
        """Return the model.

        Raises:
            InputError: there is none.
        """
        if not hasattr(self, "model_"):
            raise InputError("this Recommender is not fitted: call fit with events first")
        return self.model_


def _rows(model: TrainedModel, entity: str, ids: pa.ChunkedArray) -> IntArray:
    """Return the row of each of ``ids``, int64 (N,); -1 for IDs without one."""
    vocabulary = model.vocabulary(entity)
    known = vocabulary.read(0, vocabulary.rows, ["id"]).column("id").cast(pa.string()).combine_chunks()
    found = pc.index_in(_texts(ids), value_set=known)
    rows_N: IntArray = pc.fill_null(found, -1).to_numpy().astype(np.int64)
    return rows_N


def _texts(ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return IDs as texts: integers that pandas has made fractional, since some are missing, without a fraction."""
    if pa.types.is_floating(ids.type) and pc.all(pc.equal(ids, pc.trunc(ids))).as_py():
        ids = ids.cast(pa.int64())
    return ids.cast(pa.string())


def _recall(model: Opened, query: pa.ChunkedArray, item: pa.ChunkedArray, k: int) -> float:
    """Return the mean recall@k of the pairs of ``query`` and ``item``.

    Shapes: N pairs, Q queries, K ranks.
    """
    items = model.tables[model.item].rows
    query_N, item_N = _rows(model.trained, model.query, query), _rows(model.trained, model.item, item)
    pair_N = np.unique((query_N * items + item_N)[(query_N >= 0) & (item_N >= 0)])
    if not len(pair_N):
        raise InputError(_NOTHING_TO_SCORE)
    queries_Q = np.unique(pair_N // items)
    item_QK, _ = model.recommend(queries_Q, RecommendOptions.of(k=k))
    lists = model.histories(queries_Q).lists
    known_N = np.repeat(queries_Q, lists.counts_L) * items + lists.values_N
    pair_N = np.setdiff1d(pair_N, known_N, assume_unique=True)
    if not len(pair_N):
        raise InputError(_NOTHING_TO_SCORE)
    ranked_N = (queries_Q[:, None] * items + item_QK)[item_QK >= 0]
    place_N = np.searchsorted(queries_Q, pair_N // items)
    held_out_Q = np.bincount(place_N, minlength=len(queries_Q))
    hits_Q = np.bincount(place_N, weights=np.isin(pair_N, ranked_N), minlength=len(queries_Q))
    counted_Q = held_out_Q > 0
    return float(np.mean(hits_Q[counted_Q] / np.minimum(held_out_Q[counted_Q], k)))
