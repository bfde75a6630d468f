"""What the Explore page shows of a model, as objects for JSON: found items, neighbors, recommendations, histories.

    find_neighbors(model, "154")       # {"item": {"id": "154", "name": "Radiohead"}, "rows": [...]}

Shapes: Q queries, one here; K ranks; N items of a history.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.trainer.recommend.model import Model
from crossfade.trainer.recommend.options import RecommendOptions, SimilarOptions
from crossfade.trainer.recommend.row_names import RowLabel

K = 10
"""Rows of a list."""
_MAX_SUGGESTIONS = 12
Answer = dict[str, Any]


def describe(model: Model) -> Answer:
    """Describe the model: its entities, with the first row of each as an example, and its score."""
    examples = {entity: model.labels(entity, [0]).get(0) for entity in (model.query, model.item)}
    return {
        "item": model.item,
        "query": model.query,
        "score": model.score,
        "examples": {entity: _row(label) for entity, label in examples.items() if label is not None},
    }


def search(model: Model, text: str) -> Answer:
    """Find items by the first letters of words of their names, or by ID."""
    rows = model.search(model.item, text, _MAX_SUGGESTIONS)
    labels = model.labels(model.item, rows)
    return {"rows": [_row(labels[row]) for row in rows]}


def find_neighbors(model: Model, item: str) -> Answer:
    """Rank the items by their cosine with ``item``, an ID or name.

    Raises:
        InputError: there is no such item, or its vector is not trained.
    """
    row, label = _find(model, model.item, item)
    rows_QK, scores_QK = model.similar(np.array([row]), SimilarOptions(k=K))
    return {"item": _row(label), "rows": _ranked(model, rows_QK[0], scores_QK[0])}


def recommend(model: Model, query: str) -> Answer:
    """Recommend items to ``query``, an ID or name, and list the items of its history that have the largest weights.

    Raises:
        InputError: there is no such query, or its vector is not trained.
    """
    row, label = _find(model, model.query, query)
    rows_QK, scores_QK = model.recommend(np.array([row]), RecommendOptions(k=K))
    histories = model.histories(np.array([row]))
    items_N, weights_N = histories.lists.items_N, histories.weight_N
    favorites_N = histories.favorites(0, K)
    weights = weights_N[np.searchsorted(items_N, favorites_N)].tolist()
    labels = model.labels(model.item, favorites_N.tolist())
    return {
        "query": _row(label),
        "rows": _ranked(model, rows_QK[0], scores_QK[0]),
        "history": [
            {**_row(labels[item]), "weight": weight}
            for item, weight in zip(favorites_N.tolist(), weights, strict=True)
            if item in labels
        ],
        "history_items": len(items_N),
    }


def _find(model: Model, entity: str, text: str) -> tuple[int, RowLabel]:
    [row] = model.find(entity, [text]).tolist()
    return row, model.labels(entity, [row])[row]


def _ranked(model: Model, rows_K: IntArray, scores_K: FloatArray) -> list[Answer]:
    found = [(row, score) for row, score in zip(rows_K.tolist(), scores_K.tolist(), strict=True) if row >= 0]
    labels = model.labels(model.item, [row for row, _ in found])
    return [{**_row(labels[row]), "score": score} for row, score in found]


def _row(label: RowLabel) -> Answer:
    # IDs as text, so that those of two runs compare, and those above 2**53 stay exact in JavaScript.
    return {"id": str(label.id), "name": label.name}
