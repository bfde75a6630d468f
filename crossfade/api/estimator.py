"""A recommender by the conventions of scikit-learn, for its search over hyperparameters.

from sklearn.model_selection import GridSearchCV

search = GridSearchCV(Recommender(query="user", item="artist"), {"dim": [32, 64]}, cv=3).fit(plays)
"""

import inspect
from importlib.util import find_spec
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crossfade.api import arguments
from crossfade.api.fit import fit
from crossfade.api.fit_options import FitOptions
from crossfade.api.frames import open_batches
from crossfade.api.model import Model, Opened
from crossfade.base.arrays import IntArray
from crossfade.base.errors import InputError
from crossfade.trainer.prepare.option_values import EntityColumn
from crossfade.trainer.recommend.options import OnUnknown, RecommendOptions
from crossfade.trainer.recommend.trained_model import TrainedModel

_NOTHING_TO_SCORE = "X: no event has a known query with a known item that is new to it; expected at least one"


class Recommender:
    """Trains embeddings, and recommends items to queries: ``crossfade.fit`` as an estimator.

    The parameters are those of ``crossfade.fit``, and ``k``, the depth of ``predict`` and ``score``. All events that
    ``fit`` receives are trained on, so that a search over hyperparameters alone decides what is held out.

    Attributes:
        model_: the model, after ``fit``.
    """

    query: str
    item: str
    k: int
    model_: Model

    @arguments.takes(FitOptions, without=["names", "valid", "test", "progress"])
    def __init__(self, query: str = "user", item: str = "item", *, k: int = 10, **options: Any) -> None:
        """Keep the parameters; ``fit`` checks them.

        Args:
            query: read customers from this column; NAME=COLUMN names them.
            item: read items from this column; NAME=COLUMN names them.
            k: depth of ``predict`` and ``score``.
            **options: the fields of ``FitOptions`` but what is held out, names, and progress.
        """
        defaults = {name: parameter.default for name, parameter in _parameters().items()}
        self.set_params(**{**defaults, "query": query, "item": item, "k": k, **options})

    def __repr__(self) -> str:
        """Return the parameters that differ from their defaults."""
        defaults = {name: parameter.default for name, parameter in _parameters().items()}
        changed = (f"{name}={value!r}" for name, value in self.get_params().items() if value != defaults[name])
        return f"Recommender({', '.join(changed)})"

    def __sklearn_tags__(self) -> Any:
        """Return the tags of scikit-learn: the input is events, not numbers, and there is no target."""
        from sklearn.utils import InputTags, Tags, TargetTags

        return Tags(
            estimator_type=None,
            target_tags=TargetTags(required=False),
            transformer_tags=None,
            classifier_tags=None,
            regressor_tags=None,
            input_tags=InputTags(string=True, categorical=True),
        )

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters; ``deep`` has no effect, since none is an estimator."""
        return {name: getattr(self, name) for name in _parameters()}

    def set_params(self, **parameters: Any) -> Self:
        """Set parameters, and return self.

        Raises:
            ValueError: there is no such parameter.
        """
        for name, value in parameters.items():
            if name not in _parameters():
                raise ValueError(f"{name}: no such parameter; expected one of {', '.join(_parameters())}")
            setattr(self, name, value)
        return self

    def fit(self, X: Any, y: object = None) -> Self:
        """Train on ``X``, events as ``crossfade.fit`` takes them.

        ``y`` is there because scikit-learn passes it, None unless it is given one: events have no target beside them.
        What weighs them is a column of ``X``, which ``weight`` names.

        Raises:
            InputError: ``y`` is given, or a column, an event, or a setting is invalid.
        """
        if y is not None:
            raise InputError(
                "y: events have no target: leave it out; their weights are a column of X: Recommender(weight=COLUMN)"
            )
        arguments.whole_number("k", self.k)
        parameters = self.get_params()
        del parameters["k"]
        self.model_ = fit(X, valid=None, progress=False, **parameters)
        return self

    def predict(self, X: Any, *, on_unknown: OnUnknown = "error") -> Any:
        """Return the ``k`` best new items of each query in ``X``, a table with the column of queries.

        ``on_unknown``: what a query that was not in training gets, as of ``Model.recommend``.

        Raises:
            InputError: ``X`` is no such table, or a query was not in training.
            NotFittedError: ``fit`` was not called.
        """
        model = self._fitted()
        column = EntityColumn.parse(self.query).column
        queries = open_batches(X, {"query": column}, "X").read_all().column(column)
        if not len(queries):
            raise InputError(f"X has no row; expected at least one, with an ID in the column '{column}'")
        return model.recommend(pc.unique(queries).to_pylist(), k=self.k, on_unknown=on_unknown)

    def score(self, X: Any, y: object = None) -> float:
        """Return the mean recall@k of the events in ``X``, over the queries that were in training.

        Events whose query or item was not in training, or which were in training too, are left out. Recall is the share
        of a query's other items that are among its ``k`` best, of at most ``k``.

        Raises:
            InputError: ``X`` is no table of events, or no event is left.
            NotFittedError: ``fit`` was not called.
        """
        model, k = self._fitted(), arguments.whole_number("k", self.k)
        columns = {"query": EntityColumn.parse(self.query).column, "item": EntityColumn.parse(self.item).column}
        events = open_batches(X, columns, "X").read_all()
        query, item = (events.column(column) for column in columns.values())
        return model.use(lambda opened: _recall(opened, query, item, k))

    def _fitted(self) -> Model:
        """Return the model.

        Raises:
            NotFittedError: there is none.
        """
        if not hasattr(self, "model_"):
            raise _not_fitted()
        return self.model_


def _not_fitted() -> Exception:
    """Return scikit-learn's ``NotFittedError``, which is also an ``InputError``; only that without scikit-learn."""
    kinds: tuple[type[Exception], ...] = (InputError,)
    if find_spec("sklearn") is not None:
        from sklearn.exceptions import NotFittedError

        kinds = (InputError, NotFittedError)
    kind: type[Exception] = type("NotFittedError", kinds, {})
    return kind("this Recommender is not fitted: call fit with events first")


def _parameters() -> dict[str, inspect.Parameter]:
    """Return the parameters of the estimator, by name."""
    found = dict(inspect.signature(Recommender.__init__).parameters)
    del found["self"]
    return found


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
    item_QK, _ = model.recommend(queries_Q, RecommendOptions(k=k))
    lists = model.histories(queries_Q).lists
    known_N = np.repeat(queries_Q, np.diff(lists.starts_Q1)) * items + lists.items_N
    pair_N = np.setdiff1d(pair_N, known_N, assume_unique=True)
    if not len(pair_N):
        raise InputError(_NOTHING_TO_SCORE)
    ranked_N = (queries_Q[:, None] * items + item_QK)[item_QK >= 0]
    place_N = np.searchsorted(queries_Q, pair_N // items)
    held_out_Q = np.bincount(place_N, minlength=len(queries_Q))
    hits_Q = np.bincount(place_N, weights=np.isin(pair_N, ranked_N), minlength=len(queries_Q))
    counted_Q = held_out_Q > 0
    return float(np.mean(hits_Q[counted_Q] / np.minimum(held_out_Q[counted_Q], k)))
