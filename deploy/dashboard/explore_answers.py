"""What the Explore page shows of a model, as objects for JSON: found items, neighbors, recommendations, histories.

    find_neighbors(served, "154")       # {"item": {"id": "154", "name": "Radiohead"}, "rows": [...]}

Shapes: Q queries, one here; K ranks; N items of a history.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.errors import InputError
from crossfade.trainer.recommend.row_names import RowLabel
from crossfade.trainer.serving.served_model import RankingOptions, ServedModel

K = 10
"""Rows of a list."""
_MAX_SUGGESTIONS = 12
Answer = dict[str, Any]


def describe(served: ServedModel) -> Answer:
    """Describe the model: its entities, with the first row of each as an example, and its score."""
    examples = {entity: served.names.labels(entity, [0]).get(0) for entity in (served.query, served.item)}
    return {
        "item": served.item,
        "query": served.query,
        "score": served.card.score,
        "examples": {entity: _row(label) for entity, label in examples.items() if label is not None},
    }


def search(served: ServedModel, text: str) -> Answer:
    """Find items by the first letters of words of their names, or by ID."""
    rows = served.names.search(served.item, text, _MAX_SUGGESTIONS)
    labels = served.names.labels(served.item, rows)
    return {"rows": [_row(labels[row]) for row in rows]}


def find_neighbors(served: ServedModel, item: str) -> Answer:
    """Rank the items by their cosine with ``item``, an ID or name.

    Raises:
        InputError: there is no such item, or its vector is not trained.
    """
    row, label = _find(served, served.item, item)
    rows_QK, scores_QK = served.similar(served.item, np.array([row]), RankingOptions(K))
    return {"item": _row(label), "rows": _ranked(served, rows_QK[0], scores_QK[0])}


def recommend(served: ServedModel, query: str) -> Answer:
    """Recommend items to ``query``, an ID or name, and list the items of its history that have the largest weights.

    Raises:
        InputError: there is no such query, or its vector is not trained.
    """
    row, label = _find(served, served.query, query)
    rows_QK, scores_QK = served.recommend(np.array([row]), RankingOptions(K))
    histories = served.histories.load(np.array([row]))
    items_N, weights_N = histories.lists.items_N, histories.weight_N
    favorites_N = histories.favorites(0, K)
    weights = weights_N[np.searchsorted(items_N, favorites_N)].tolist()
    labels = served.names.labels(served.item, favorites_N.tolist())
    return {
        "query": _row(label),
        "rows": _ranked(served, rows_QK[0], scores_QK[0]),
        "history": [
            {**_row(labels[item]), "weight": weight}
            for item, weight in zip(favorites_N.tolist(), weights, strict=True)
            if item in labels
        ],
        "history_items": len(items_N),
    }


def _find(served: ServedModel, entity: str, text: str) -> tuple[int, RowLabel]:
    row = served.names.find(entity, text)
    if row is None:
        raise InputError(f"there is no {entity} with the ID or name '{text}'")
    label = served.names.labels(entity, [row])[row]
    if not served.trained[entity][row]:
        raise InputError(
            f"{entity} '{label}' has no interaction of positive weight in train, so its vector is not trained"
        )
    return row, label


def _ranked(served: ServedModel, rows_K: IntArray, scores_K: FloatArray) -> list[Answer]:
    found = [(row, score) for row, score in zip(rows_K.tolist(), scores_K.tolist(), strict=True) if row >= 0]
    labels = served.names.labels(served.item, [row for row, _ in found])
    return [{**_row(labels[row]), "score": score} for row, score in found]


def _row(label: RowLabel) -> Answer:
    # IDs as text, so that those of two runs compare, and those above 2**53 stay exact in JavaScript.
    return {"id": str(label.id), "name": label.name}
